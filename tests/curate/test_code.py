"""Programs and tests that judge each other."""

import numpy as np
import pytest
import torch

from prefuse import curate
from tests.curate.kinds import as_dicts

LINKS = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("rounds", "programs", "tests"),
    [
        (0, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        (1, [2.7, 1.85, 1.0], [1.85, 1.85, 1.85]),
        (2, [5.1225, 3.4225, 1.7225], [4.145, 4.145, 3.4225]),
        (10, [1312.530601, 960.162145, 352.368456], None),
    ],
)
def test_worked_rounds(rounds, programs, tests):
    scores = curate.mutual_ranking(LINKS, rounds=rounds)
    np.testing.assert_allclose(scores.programs, programs, rtol=1e-9)
    if tests is not None:
        np.testing.assert_allclose(scores.tests, tests, rtol=1e-12)


def test_many_rounds_tend_to_the_singular_vector():
    scores = curate.mutual_ranking(LINKS, rounds=60).programs
    left = np.abs(np.linalg.svd(LINKS)[0][:, 0])
    np.testing.assert_allclose(scores / np.linalg.norm(scores), left, rtol=1e-9)


@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (5, 0)])
def test_edges_and_batches_agree_with_the_matrix(shape):
    passed = np.random.default_rng(1).random((6, *shape)) < 0.5
    batch = curate.mutual_ranking(passed, rounds=4)
    problem, program, test = np.nonzero(passed)
    joint = curate.mutual_ranking_of_edges(
        problem * shape[0] + program, problem * shape[1] + test, (6 * shape[0], 6 * shape[1]), rounds=4
    )
    np.testing.assert_allclose(joint.programs.reshape(6, -1), batch.programs, rtol=1e-12)
    np.testing.assert_allclose(joint.tests.reshape(6, shape[1]), batch.tests, rtol=1e-12)
    for one, programs in zip(passed, batch.programs, strict=True):
        np.testing.assert_allclose(curate.mutual_ranking(one, rounds=4).programs, programs, rtol=1e-12)


def test_broken_tests_mislead_less_than_counting():
    """Programs of known quality, two fifths of the tests broken: the ranking knows the truth better than counting."""
    rng = np.random.default_rng(0)
    ours, counts = [], []
    for _ in range(200):
        right = rng.random(15) < 0.5
        broken = rng.random(15) < 0.4
        passed = np.where(
            broken, rng.random((15, 15)) < 0.5, rng.random((15, 15)) < np.where(right, 0.95, 0.3)[:, None]
        )
        if 0 < right.sum() < 15:
            ours.append(np.corrcoef(rank(curate.mutual_ranking(passed).programs), right)[0, 1])
            counts.append(np.corrcoef(rank(passed.sum(1)), right)[0, 1])
    assert np.mean(ours) > np.mean(counts) + 0.005


def rank(scores):
    return np.argsort(np.argsort(scores + 1e-9 * np.arange(len(scores))))


def test_tensors_in_tensors_out():
    scores = curate.mutual_ranking(torch.tensor(LINKS, dtype=torch.bool), rounds=1)
    torch.testing.assert_close(scores.programs, torch.tensor([2.7, 1.85, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("passed", "options", "message"),
    [
        ([1, 0], {}, r"^passed: expected shape \(..., J, K\), got \(2,\)"),
        ([[0.5]], {}, "^passed: expected true or false"),
        ([[2]], {}, r"^passed: 2.0 at \[0, 0\], expected probabilities"),
        ([[1]], {"damping": 1.5}, "^damping: expected a number <= 1, got 1.5"),
        ([[1]], {"rounds": -1}, "^rounds: expected an int >= 0"),
        (np.ones((9, 9)), {"rounds": 500}, "^rounds: scores overflow in 500 rounds"),
    ],
)
def test_bad_input_is_named(passed, options, message):
    with pytest.raises(ValueError, match=message):
        curate.mutual_ranking(np.array(passed), **options)


def test_bad_edges_are_named():
    with pytest.raises(ValueError, match=r"^tests: expected indices from 0 to 1, got 0 to 2"):
        curate.mutual_ranking_of_edges([0, 1], [0, 2], (2, 2))
    with pytest.raises(ValueError, match=r"^tests: expected one per program, shape \(2,\), got \(1,\)"):
        curate.mutual_ranking_of_edges([0, 1], [0], (2, 2))


def problems():
    return [
        {
            "prompt": "p",
            "programs": ["x", "y", "z"],
            "tests": ["t0", "t1", "t2"],
            "passed": LINKS.tolist(),
            "seconds": [3.0, 1.0, 0.1],
        },
        {"prompt": "flat", "programs": ["x", "y"], "tests": ["t"], "passed": [[1], [1]], "seconds": [2.0, 5.0]},
        {
            "prompt": "four",
            "programs": ["a", "b", "c", "d"],
            "tests": ["0", "1", "2", "3"],
            "passed": [[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]],
            "seconds": [1.0, 1.0, 1.0, 1.0],
        },
    ]


def test_correctness_pairs(make):
    pairs = as_dicts(curate.correctness_pairs(make(problems())))
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("p", "x", "z"),
        ("four", "a", "c"),
    ]
    assert pairs[0]["chosen_score"] == pytest.approx(1312.530601)
    assert pairs[0]["rejected_score"] == pytest.approx(352.368456)


def test_efficiency_pairs_are_of_trusted_programs(make):
    pairs = as_dicts(curate.efficiency_pairs(make(problems()), trust=0.7))
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("p", "y", "x"),
        ("flat", "x", "y"),
    ]
    assert (pairs[0]["chosen_seconds"], pairs[0]["rejected_seconds"]) == (1.0, 3.0)
    assert [pair["prompt"] for pair in as_dicts(curate.efficiency_pairs(make(problems()), trust=0.9))] == ["flat"]


def test_minimax_selection_worked():
    """Programs pass 3, 2, 1, 3 tests; tests are passed by 3, 3, 1, 2: lowest index of equals."""
    passed = np.array([[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]])
    assert curate.minimax_selection(passed) == (0, 3, 2, 0)
    assert curate.minimax_selection(torch.tensor(passed)) == (0, 3, 2, 0)


def test_minimax_selection_where_there_is_none():
    assert curate.minimax_selection(np.ones((3, 2))) is None
    assert curate.minimax_selection(np.zeros((3, 2))) is None
    assert curate.minimax_selection(np.zeros((0, 2))) is None
    assert curate.minimax_selection([[1], [0]]) == (0, 0, 1, 0)


def test_minimax_ties_at_random_stay_within_the_rule():
    passed = np.array([[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1]])
    picked = [curate.minimax_selection(passed, ties=seed) for seed in range(40)]
    assert {one.chosen_program for one in picked} == {0, 3}
    assert {one.chosen_test for one in picked if one.chosen_program == 3} == {2}
    assert all((one.rejected_program, one.rejected_test) == (2, 0) for one in picked)
    assert picked == [curate.minimax_selection(passed, ties=seed) for seed in range(40)]


def test_code_and_test_pairs(make):
    pairs = as_dicts(curate.code_and_test_pairs(make(problems()), joined="{}+{}".format))
    assert pairs == [
        {"prompt": "p", "chosen": "x+t0", "rejected": "z+t0"},
        {"prompt": "four", "chosen": "a+3", "rejected": "c+0"},
    ]


@pytest.mark.parametrize(
    ("change", "function", "message"),
    [
        ({"programs": ["x"]}, "correctness_pairs", "^passed: expected 1 lines in row 1, one per program, got 2"),
        ({"passed": [[1], [0, 1]]}, "correctness_pairs", r"^passed: .*\(row 1\)"),
        ({"seconds": [1.0]}, "efficiency_pairs", "^seconds: expected 2 numbers in row 1, one per program, got 1"),
        ({"tests": []}, "code_and_test_pairs", "^tests: expected 1 in row 1, as in its matrix, got 0"),
    ],
)
def test_bad_problems_are_named(change, function, message):
    first, second, _ = problems()
    with pytest.raises(ValueError, match=message):
        getattr(curate, function)([first, {**second, **change}])
