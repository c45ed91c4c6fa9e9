"""Pairs of programs, judged by tests that were generated with them.

The matrix ``passed`` [J, K] of a problem is true where program j passes test k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._numbers import Array, Seed, at_least, count, generator, integers, like, probabilities
from ._rows import Floats, Indices, Part, Rows, Table, finite, table
from .ranking import Pairs, best_versus_worst_indices


class MutualScores(NamedTuple):
    """Scores of the programs and of the tests."""

    programs: Any
    tests: Any


class _Candidates(NamedTuple):
    """The programs of all problems: their texts, the row of each one's problem, their scores."""

    texts: list[Any]
    problem: Indices
    scores: Floats


class Selected(NamedTuple):
    """Indices of DSTC's two programs and two tests."""

    chosen_program: int
    chosen_test: int
    rejected_program: int
    rejected_test: int


def mutual_ranking(passed: Array, *, damping: float = 0.85, rounds: int = 10) -> MutualScores:
    """Rank programs by the tests they pass and tests by the programs that pass them (CodeDPO, arXiv:2410.05605).

    All scores begin at 1; in each round, from the scores before it, ``c_j ← (1-d) c_j + d Σ_k t_k L_jk`` and
    ``t_k ← (1-d) t_k + d Σ_j c_j L_jk`` with L the matrix (Zhang et al. 2024). Scores grow from round to round: only
    their order means something. With more rounds it tends to that of the first singular vectors of L.

    Args:
        passed: true or 1 where program j passes test k, [..., J, K].
        damping: d in [0, 1].
        rounds: 10 in the paper.

    Returns:
        `programs` [..., J] and `tests` [..., K].

    Raises:
        ValueError: scores have grown too large for float64.
    """
    matrix = _matrix(passed).astype(np.float64)
    transposed = np.ascontiguousarray(matrix.swapaxes(-1, -2))
    c, t = _rounds(
        lambda t: (matrix @ t[..., None])[..., 0],
        lambda c: (transposed @ c[..., None])[..., 0],
        (matrix.shape[:-1], transposed.shape[:-1]),
        damping,
        rounds,
    )
    return MutualScores(like(passed, c), like(passed, t))


def mutual_ranking_of_edges(
    programs: Any, tests: Any, shape: tuple[int, int], *, damping: float = 0.85, rounds: int = 10
) -> MutualScores:
    """`mutual_ranking` of a sparse matrix, or of many problems at once whose programs and tests are numbered through.

    Args:
        programs, tests: the indices of each program that passes a test, and of that test, integers [E].
        shape: number of programs and of tests.
        damping, rounds: as in `mutual_ranking`.
    """
    rows, columns = integers("programs", programs), integers("tests", tests)
    if rows.shape != columns.shape or rows.ndim != 1:
        raise ValueError(f"tests: expected one per program, shape {rows.shape}, got {columns.shape}")
    for name, ids, limit in (("programs", rows, shape[0]), ("tests", columns, shape[1])):
        if len(ids) and not (ids.min() >= 0 and ids.max() < limit):
            raise ValueError(f"{name}: expected indices from 0 to {limit - 1}, got {ids.min()} to {ids.max()}")
    c, t = _rounds(
        lambda t: np.bincount(rows, weights=t[columns], minlength=shape[0]),
        lambda c: np.bincount(columns, weights=c[rows], minlength=shape[1]),
        ((shape[0],), (shape[1],)),
        damping,
        rounds,
    )
    return MutualScores(like(programs, c), like(programs, t))


def correctness_pairs(
    rows: Rows,
    *,
    programs: str = "programs",
    passed: str = "passed",
    prompt: str = "prompt",
    shared: Sequence[str] = (),
    damping: float = 0.85,
    rounds: int = 10,
) -> Rows:
    """CodeDPO's correctness pairs: of each problem, the program ranked highest against the one ranked lowest.

    Problems whose programs all score the same give none.

    Args:
        rows: one per problem.
        programs: the column of a list of J texts.
        passed: the column of the matrix, J lists of K.
        prompt, shared: the columns to keep.
        damping, rounds: as in `mutual_ranking`.

    Returns:
        One row per pair: the prompt, `chosen`, `rejected`, `chosen_score`, `rejected_score`.
    """
    given = table(rows)
    candidates = _candidates(given, programs, passed, damping, rounds)
    pairs = best_versus_worst_indices(candidates.scores, candidates.problem)
    return _pair_rows(given, candidates, pairs, (prompt, *shared), {"score": candidates.scores})


def efficiency_pairs(
    rows: Rows,
    *,
    programs: str = "programs",
    passed: str = "passed",
    seconds: str = "seconds",
    prompt: str = "prompt",
    shared: Sequence[str] = (),
    trust: float = 0.9,
    damping: float = 0.85,
    rounds: int = 10,
) -> Rows:
    """CodeDPO's efficiency pairs: among programs that are likely right, the fastest against the slowest.

    Args:
        rows: one per problem.
        programs, passed, prompt, shared, damping, rounds: as in `correctness_pairs`.
        seconds: the column of a list of J run times, on the tests ranked highest.
        trust: programs count as right from this share of the best program's score on; the share is ours.

    Returns:
        One row per pair: the prompt, `chosen`, `rejected`, `chosen_seconds`, `rejected_seconds`.
    """
    _must_be_share("trust", trust)
    given = table(rows)
    candidates = _candidates(given, programs, passed, damping, rounds)
    taken = _run_times(given.values(seconds), np.bincount(candidates.problem, minlength=len(given)), seconds)
    highest = np.zeros(len(given))
    np.maximum.at(highest, candidates.problem, candidates.scores)
    right = np.flatnonzero(candidates.scores >= trust * highest[candidates.problem])
    pairs = best_versus_worst_indices(-taken[right], candidates.problem[right])
    return _pair_rows(
        given, candidates, Pairs(right[pairs.chosen], right[pairs.rejected]), (prompt, *shared), {"seconds": taken}
    )


def minimax_selection(passed: Any, *, ties: Seed | None = None) -> Selected | None:
    """DSTC's choice of two programs, each with a test (Liu et al. 2024, arXiv:2411.13611), as reconstructed.

    Chosen are the program that passes most tests and, of the tests it passes, the one that fewest programs pass;
    rejected are the program that passes fewest tests and, of those it fails, the test that most programs pass. So the
    chosen program is right on a hard test and the rejected one wrong on an easy one.

    Args:
        passed: [J, K].
        ties: None takes the lowest index of equals, a seed or a generator one of them at random.

    Returns:
        Indices, or None where there is no such pair: no test passed by the one program, none failed by the other, or
        the two programs pass equally many.
    """
    matrix = _matrix(passed)
    if matrix.ndim != 2:
        raise ValueError(f"passed: expected shape (J, K), got {matrix.shape}")
    random = None if ties is None else generator(ties)
    by_program, by_test = matrix.sum(1), matrix.sum(0)
    if not matrix.size or by_program.max() == by_program.min():
        return None
    chosen = _one_of(by_program == by_program.max(), random)
    rejected = _one_of(by_program == by_program.min(), random)
    passes, fails = matrix[chosen], ~matrix[rejected]
    hard = _one_of(passes & (by_test == by_test[passes].min()), random)
    easy = _one_of(fails & (by_test == by_test[fails].max()), random)
    return Selected(chosen, hard, rejected, easy)


def code_and_test_pairs(
    rows: Rows,
    *,
    programs: str = "programs",
    tests: str = "tests",
    passed: str = "passed",
    prompt: str = "prompt",
    shared: Sequence[str] = (),
    joined: Callable[[str, str], str] = "{}\n\n{}".format,
    ties: Seed | None = None,
) -> Rows:
    """DSTC's pairs: each program followed by its test; see `minimax_selection`.

    Args:
        rows: one per problem.
        programs, tests, passed: the columns of J texts, of K texts and of the matrix.
        prompt, shared: the columns to keep.
        joined: makes one text of a program and a test.
        ties: as in `minimax_selection`.

    Returns:
        One row per problem that has a pair: the prompt, `chosen`, `rejected`.
    """
    given = table(rows)
    given.require(prompt, *shared)
    random = None if ties is None else generator(ties)
    checks, found = given.values(tests), []
    for row, (texts, matrix) in enumerate(_problems(given.values(programs), given.values(passed))):
        if len(checks[row]) != matrix.shape[1]:
            raise ValueError(
                f"{tests}: expected {matrix.shape[1]} in row {row}, as in its matrix, got {len(checks[row])}"
            )
        picked = minimax_selection(matrix, ties=random)
        if picked is not None:
            chosen = joined(texts[picked.chosen_program], checks[row][picked.chosen_test])
            rejected = joined(texts[picked.rejected_program], checks[row][picked.rejected_test])
            found.append((row, chosen, rejected))
    kept = np.asarray([row for row, _, _ in found], np.int64)
    prompts = given.gathered([Part(kept, {name: name for name in (prompt, *shared)})])
    return table(prompts).with_columns(
        {"chosen": [chosen for _, chosen, _ in found], "rejected": [rejected for _, _, rejected in found]}
    )


def _rounds(
    to_programs: Callable[[Floats], NDArray[Any]],
    to_tests: Callable[[Floats], NDArray[Any]],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    damping: float,
    rounds: int,
) -> tuple[Floats, Floats]:
    """Rounds of mutual ranking, given what the scores of one side add up to on the other."""
    _must_be_share("damping", damping)
    count("rounds", rounds, least=0)
    c, t = np.ones(shapes[0]), np.ones(shapes[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(rounds):
            c, t = (1.0 - damping) * c + damping * to_programs(t), (1.0 - damping) * t + damping * to_tests(c)
    if not (np.isfinite(c).all() and np.isfinite(t).all()):
        raise ValueError(f"rounds: scores overflow in {rounds} rounds; take fewer, as only their order matters")
    return c, t


def _matrix(passed: Any) -> NDArray[np.bool_]:
    values = probabilities("passed", passed)
    if values.ndim < 2:
        raise ValueError(f"passed: expected shape (..., J, K), got {values.shape}")
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("passed: expected true or false, 1 or 0, got numbers between")
    return np.asarray(values != 0.0)


def _problems(programs: list[Any], passed: list[Any]) -> list[tuple[Any, NDArray[np.bool_]]]:
    found = []
    for row, (texts, matrix) in enumerate(zip(programs, passed, strict=True)):
        try:
            checked = _matrix([np.asarray(line) for line in matrix])
        except ValueError as error:
            raise ValueError(f"{error} (row {row})") from None
        if len(checked) != len(texts):
            raise ValueError(f"passed: expected {len(texts)} lines in row {row}, one per program, got {len(checked)}")
        found.append((texts, checked))
    return found


def _candidates(given: Table[Any], programs: str, passed: str, damping: float, rounds: int) -> _Candidates:
    """All problems ranked in one go, their programs and tests numbered through."""
    problems = _problems(given.values(programs), given.values(passed))
    sizes = np.asarray([matrix.shape for _, matrix in problems], np.int64).reshape(-1, 2)
    starts = np.cumsum(sizes, axis=0) - sizes
    edges = [np.argwhere(matrix) + start for (_, matrix), start in zip(problems, starts, strict=True)]
    program, test = np.concatenate([*edges, np.zeros((0, 2), np.int64)]).T
    total = int(sizes[:, 0].sum()), int(sizes[:, 1].sum())
    scores = mutual_ranking_of_edges(program, test, total, damping=damping, rounds=rounds).programs
    texts = [text for texts, _ in problems for text in texts]
    return _Candidates(texts, np.repeat(np.arange(len(problems)), sizes[:, 0]), scores)


def _run_times(values: list[Any], sizes: Indices, column: str) -> Floats:
    for row, (seconds, size) in enumerate(zip(values, sizes.tolist(), strict=True)):
        if len(seconds) != size:
            raise ValueError(f"{column}: expected {size} numbers in row {row}, one per program, got {len(seconds)}")
    return finite(column, [second for seconds in values for second in seconds])


def _pair_rows(
    given: Table[Rows], candidates: _Candidates, pairs: Pairs[Any], kept: Sequence[str], measured: dict[str, Floats]
) -> Rows:
    given.require(*kept)
    columns: dict[str, Sequence[Any]] = {}
    for side, indices in zip(Pairs._fields, pairs, strict=True):
        columns[side] = [candidates.texts[index] for index in indices]
    for name, values in measured.items():
        for side, indices in zip(Pairs._fields, pairs, strict=True):
            columns[f"{side}_{name}"] = values[indices].tolist()
    prompts = given.gathered([Part(candidates.problem[pairs.chosen], {name: name for name in kept})])
    return table(prompts).with_columns(columns)


def _one_of(candidates: NDArray[np.bool_], random: np.random.Generator | None) -> int:
    indices = np.flatnonzero(candidates)
    return int(indices[0] if random is None else random.choice(indices))


def _must_be_share(name: str, value: float) -> None:
    at_least(name, value, 0.0)
    if value > 1.0:
        raise ValueError(f"{name}: expected a number <= 1, got {value}")
