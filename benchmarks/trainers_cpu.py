"""The log-probabilities of training frameworks, by their own way and by prefuse: memory and time of a step.

    python benchmarks/trainers_cpu.py [--tokens 1024] [--features 256] [--classes 65536] [--rounds 5]
                                      [--processor-time] [--no-memory] [--paths NAME …] [--results DIR]

Hidden states and weight in bfloat16, both with a gradient; one forward and backward pass. Peak resident memory of each
path is that of a process of its own; times are interleaved in one. The frameworks' ways are written out after their
functions: see `prefuse.bench.trainers`, whose `PATHS` are the rows.
"""

import argparse
import time
from pathlib import Path

import torch

from prefuse._display import tables
from prefuse.bench import machine, memory, results, timing, trainers

MEBIBYTE = 1 << 20
FAR = 0.05  # of the largest gradient: 16-bit logits are rounded by some, not by others


def main() -> None:
    options = parse()
    about = machine.describe()
    print(about)
    sizes = {"tokens": options.tokens, "features": options.features, "classes": options.classes}
    steps = {name: trainers.step(name, **sizes) for name in options.paths}
    for name in steps:
        check(name, sizes)
    clock = time.process_time if options.processor_time else time.perf_counter
    timings = timing.in_rounds(steps, options.rounds, clock)
    factory = "prefuse.bench.trainers:step"
    cases = [
        {
            "path": name,
            "framework": trainers.PATHS[name].framework,
            "against": trainers.PATHS[name].against,
            "seconds": timings[name].as_dict(),
            "peak_extra_bytes": memory.peak_extra_bytes(factory, name=name, **sizes) if options.memory else None,
        }
        for name in steps
    ]
    show(sizes, cases)
    report = {
        "comparison": "log-probabilities and entropies of hidden states in bfloat16, forward and backward",
        **sizes,
        "threads": torch.get_num_threads(),
        "clock": "processor time" if options.processor_time else "wall clock",
        "machine": about,
        "cases": cases,
    }
    print(results.write(options.results, "trainers_cpu", report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--classes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paths", nargs="+", default=list(trainers.PATHS), choices=list(trainers.PATHS))
    parser.add_argument("--processor-time", action="store_true", help="of one thread, where other programs run too")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def check(name: str, sizes: dict[str, int]) -> None:
    """A path that is compared with another has its gradients."""
    against = trainers.PATHS[name].against
    if against is None:
        return
    found, right = trainers.step(name, **sizes)(), trainers.step(against, **sizes)()
    for ours, theirs in zip(found[1:], right[1:], strict=True):
        if not float((ours.float() - theirs.float()).norm()) <= FAR * float(theirs.float().norm()):
            raise SystemExit(f"{name} is far from {against}")


def show(sizes: dict[str, int], cases: list[dict]) -> None:
    logits = 2 * sizes["tokens"] * sizes["classes"]
    by_name = {case["path"]: case for case in cases}
    rows = []
    for case in cases:
        peak, other = case["peak_extra_bytes"], by_name.get(case["against"])
        of_memory = speed = ""
        if other is not None:
            speed = f"{other['seconds']['fastest'] / case['seconds']['fastest']:.2f}"
            of_memory = "" if peak is None else f"{peak / other['peak_extra_bytes']:.2f}"
        of_logits = ("", "") if peak is None else (f"{peak / MEBIBYTE:.0f}", f"{peak / logits:.1f}")
        rows.append((case["path"], *of_logits, of_memory, f"{case['seconds']['median']:.2f}", speed))
    header = ("path", "MiB", "in logits", "of its memory", "s", "speed-up (higher is better)")
    tables.show("N = {tokens}, H = {features}, V = {classes}, bfloat16".format(**sizes), header, rows)


if __name__ == "__main__":
    main()
