"""Rankings and pairs of a million responses on the CPU: prefuse beside pandas, NumPy and Python.

    python benchmarks/curate_cpu.py [--responses 1000000] [--size 8] [--rounds 9] [--results DIR]

Responses stand in random order, `--size` to a prompt; scores have ties. Statistical rejection sampling keeps 8 of 64,
and programs and tests come 15 and 15 to a problem, so that there are as many outcomes as responses. What is compared
gives the same result, which is checked first.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from prefuse import curate
from prefuse._display import tables
from prefuse.bench import machine, results, timing

Ways = Mapping[str, Callable[[], object]]
PREFUSE = "prefuse"
PROGRAMS = 15


def main() -> None:
    options = parse()
    tasks = make_tasks(options.responses, options.size)
    cases = [case for task, ways in tasks.items() for case in compare(task, ways, options.rounds)]
    report: dict[str, object] = {
        "comparison": "rankings and pairs of many responses",
        "responses": options.responses,
        "responses per prompt": options.size,
        "machine": machine.describe(),
        "cases": cases,
    }
    print(report["machine"])
    rows = [
        [case["task"], case["way"], f"{case['seconds']['median'] * 1e3:.1f}", f"{case['this_over_prefuse']:.1f}"]
        for case in cases
    ]
    tables.show(f"{options.responses} responses", ["task", "way", "ms", "of prefuse's time"], rows)
    print(f"written to {results.write(options.results, 'curate_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def make_tasks(responses: int, size: int) -> dict[str, Ways]:
    random = np.random.default_rng(0)
    groups = random.permutation(np.arange(responses) // size)
    scores = np.round(random.normal(size=responses), 2)
    frame = pd.DataFrame({"prompt": [f"prompt {group}" for group in groups], "score": scores})
    frame["response"] = np.arange(responses)
    passed = random.random((responses // PROGRAMS**2, PROGRAMS, PROGRAMS)) < 0.5
    return {
        "rank in groups": ranking(scores, groups),
        "best versus worst": ends(scores, groups),
        "best versus worst, rows": ends_of_rows(frame),
        "all pairs": every_pair(scores, groups),
        "rejection sampling": sampling(scores, np.arange(responses) // 64),
        "mutual ranking": mutual(passed),
    }


def compare(task: str, ways: Ways, rounds: int) -> list[dict[str, object]]:
    timings = timing.interleaved(ways, rounds, warm_up=1)
    return [
        {
            "task": task,
            "way": way,
            "seconds": seconds.as_dict(),
            "this_over_prefuse": seconds.median / timings[PREFUSE].median,
        }
        for way, seconds in timings.items()
    ]


def ranking(scores: np.ndarray, groups: np.ndarray) -> Ways:
    frame = pd.DataFrame({"group": groups, "score": -scores})
    ways: Ways = {
        PREFUSE: lambda: curate.rank_within_groups(scores, groups).order,
        "NumPy, lexsort": lambda: np.lexsort((-scores, groups)),
        "pandas, sort_values": lambda: frame.sort_values(["group", "score"], kind="stable").index.to_numpy(),
    }
    return checked(ways)


def ends(scores: np.ndarray, groups: np.ndarray) -> Ways:
    frame = pd.DataFrame({"group": groups, "score": scores})

    def by_pandas() -> np.ndarray:
        found = frame.groupby("group", sort=True).score
        return differing(scores, np.stack([found.idxmax().to_numpy(), found.idxmin().to_numpy()]))

    def by_numpy() -> np.ndarray:
        order = np.lexsort((-scores, groups))
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        return differing(scores, order[[starts, np.append(starts[1:], len(order)) - 1]])

    ways: Ways = {
        PREFUSE: lambda: np.stack(curate.best_versus_worst_indices(scores, groups)),
        "NumPy, lexsort": by_numpy,
        "pandas, idxmax and idxmin": by_pandas,
    }
    # Of several worst pandas takes the first: the same scores, another index.
    return checked(ways, lambda pairs: scores[pairs])


def ends_of_rows(frame: pd.DataFrame) -> Ways:
    def by_pandas() -> pd.DataFrame:
        found = frame.groupby("prompt", sort=False).score
        best, worst = frame.loc[found.idxmax()], frame.loc[found.idxmin()]
        pairs = pd.DataFrame(
            {
                "prompt": best["prompt"].to_numpy(),
                "chosen": best["response"].to_numpy(),
                "rejected": worst["response"].to_numpy(),
                "chosen_score": best["score"].to_numpy(),
                "rejected_score": worst["score"].to_numpy(),
            }
        )
        return pairs[pairs["chosen_score"] > pairs["rejected_score"]]

    ways: Ways = {PREFUSE: lambda: curate.best_versus_worst(frame), "pandas, idxmax and idxmin": by_pandas}
    return checked(ways, lambda pairs: pairs[["chosen", "chosen_score", "rejected_score"]].to_numpy())


def every_pair(scores: np.ndarray, groups: np.ndarray) -> Ways:
    frame = pd.DataFrame({"group": groups, "score": scores, "index": np.arange(len(scores))})

    def by_pandas() -> np.ndarray:
        ordered = frame.sort_values(["group", "score"], ascending=[True, False], kind="stable")
        joined = ordered.merge(ordered, on="group", suffixes=("", "_rejected"))
        kept = joined[joined["score"] > joined["score_rejected"]]
        return kept[["index", "index_rejected"]].to_numpy().T

    def by_numpy() -> np.ndarray:
        order = np.lexsort((-scores, groups))
        sizes = np.bincount(groups)
        after = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(order))
        chosen = np.repeat(np.arange(len(order)), after)
        within = np.arange(len(chosen)) - np.repeat(np.cumsum(after) - after, after)
        return differing(scores, order[[chosen, chosen + 1 + within]])

    ways: Ways = {
        PREFUSE: lambda: np.stack(curate.all_pairs_indices(scores, groups)),
        "NumPy, lexsort": by_numpy,
        "pandas, merge": by_pandas,
    }
    return checked(ways)


def sampling(scores: np.ndarray, groups: np.ndarray) -> Ways:
    starts = np.flatnonzero(np.diff(groups, prepend=-1))

    def prompt_by_prompt() -> np.ndarray:
        random = np.random.default_rng(0)
        prompts = zip(starts, np.split(scores, starts[1:]), strict=True)
        return np.concatenate([of_one(start, own, random) for start, own in prompts])

    def of_one(start: int, own: np.ndarray, random: np.random.Generator) -> np.ndarray:
        left, accepted = np.arange(len(own)), np.zeros(0, int)
        while len(left) and len(accepted) < 8:
            hit = random.random(len(left)) < np.exp((own[left] - own[left].max()) / 0.5)
            accepted = np.concatenate([accepted, left[hit]])
            left = left[~hit]
        return start + accepted[:8]

    ways: Ways = {
        PREFUSE: lambda: curate.rejection_sampling_indices(scores, groups, keep=8, beta=0.5),
        "NumPy, prompt by prompt": prompt_by_prompt,
    }
    # Other random numbers: as many samples, as good on average.
    return checked(ways, lambda kept: np.array([len(kept), scores[kept].mean()]), rtol=0.02)


def mutual(passed: np.ndarray) -> Ways:
    def problem_by_problem() -> np.ndarray:
        return np.stack([of_one(matrix.astype(float)) for matrix in passed])

    def of_one(matrix: np.ndarray) -> np.ndarray:
        programs, tests = np.ones(PROGRAMS), np.ones(PROGRAMS)
        for _ in range(10):
            programs, tests = 0.15 * programs + 0.85 * matrix @ tests, 0.15 * tests + 0.85 * matrix.T @ programs
        return programs

    problem, program, test = np.nonzero(passed)
    left, right = problem * PROGRAMS + program, problem * PROGRAMS + test
    shape = (len(passed) * PROGRAMS,) * 2
    ways: Ways = {
        PREFUSE: lambda: curate.mutual_ranking(passed).programs,
        "prefuse, edges": lambda: curate.mutual_ranking_of_edges(left, right, shape).programs,
        "NumPy, problem by problem": problem_by_problem,
    }
    return checked(ways, np.ravel, rtol=1e-9)


def differing(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return pairs[:, scores[pairs[0]] > scores[pairs[1]]]


def checked(ways: Ways, seen: Callable[..., np.ndarray] = np.asarray, rtol: float = 0.0) -> Ways:
    """The ways, once they are known to agree."""
    expected = seen(ways[PREFUSE]())
    for way in ways.values():
        np.testing.assert_allclose(seen(way()), expected, rtol=rtol)
    return ways


if __name__ == "__main__":
    main()
