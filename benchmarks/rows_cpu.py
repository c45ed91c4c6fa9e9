"""Token log-probabilities on the CPU: prefuse beside what else is in use, and the machine's own memory bandwidth.

    python benchmarks/rows_cpu.py [--rows 512] [--vocabulary 128256] [--rounds 5] [--results DIR]

Per dtype, forward without autograd and forward+backward are timed in interleaved rounds, the machine's own reading and
copying among them. The least traffic a forward pass can do is one read of the logits; forward+backward reads them twice
and writes them once. GB/s counts that least traffic, so a case's share of the bandwidth says how far it is from it.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from prefuse.bench import gather, machine, memory, results, timing

DTYPES = ("float32", "bfloat16")
READ, COPY = "read", "copy"


def main() -> None:
    options = parse()
    report: dict[str, object] = {
        "comparison": "token log-probabilities",
        "rows": options.rows,
        "vocabulary": options.vocabulary,
        "machine": machine.describe(),
        "cases": [case for dtype in DTYPES for backward in (False, True) for case in compare(options, dtype, backward)],
    }
    print_tables(report)
    print(f"written to {results.write(options.results, 'rows_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def compare(options: argparse.Namespace, dtype: str, backward: bool) -> list[dict[str, object]]:
    """Every hand on one dtype and direction, fastest peer and bandwidth from the same rounds."""
    logits, labels = gather.inputs(options.rows, options.vocabulary, getattr(torch, dtype))
    size = logits.numel() * logits.element_size()
    bandwidth = machine.bandwidth_cases(options.rows * options.vocabulary * 4)
    hands = {name: gather.bound(name, logits, labels, backward) for name in names(backward)}
    timings = timing.interleaved(hands | {name: run for name, (run, _) in bandwidth.items()}, options.rounds)
    speeds = {name: moved / timings[name].median / 1e9 for name, (_, moved) in bandwidth.items()}
    traffic, limit = (3 * size, COPY) if backward else (size, READ)
    cases: list[dict[str, object]] = []
    for name in hands:
        seconds = timings[name].median
        extra = memory.peak_extra_bytes(
            "prefuse.bench.gather:run",
            name=name,
            rows=options.rows,
            vocabulary=options.vocabulary,
            dtype=dtype,
            backward=backward,
        )
        cases.append(
            {
                "hand": name,
                "dtype": dtype,
                "pass": "forward+backward" if backward else "forward",
                "seconds": timings[name].as_dict(),
                "gigabytes_per_second": traffic / seconds / 1e9,
                "share_of_bandwidth": traffic / seconds / 1e9 / speeds[limit],
                "bandwidth": speeds | {"limit": limit},
                "times_prefuse": seconds / timings[gather.PREFUSE].median,
                "peak_extra_bytes": extra,
                "peak_extra_logits": None if extra is None else extra / size,
            }
        )
    return cases


def names(backward: bool) -> list[str]:
    """In place differs from not in place in the backward pass only."""
    return [name for name in gather.available() if backward or name != gather.PREFUSE_INPLACE]


def print_tables(report: dict[str, object]) -> None:
    cases = report["cases"]
    assert isinstance(cases, list)
    console = Console()
    console.print(report["machine"])
    for dtype in DTYPES:
        for direction in ("forward", "forward+backward"):
            console.print(table([case for case in cases if (case["dtype"], case["pass"]) == (dtype, direction)]))


def table(cases: list[dict]) -> Table:
    first = cases[0]
    limit = first["bandwidth"]["limit"]
    out = Table(
        title=f"{first['pass']}, {first['dtype']} "
        f"(read {first['bandwidth'][READ]:.1f} GB/s, copy {first['bandwidth'][COPY]:.1f} GB/s)"
    )
    out.add_column("hand")
    for heading in ("ms", "GB/s", f"of {limit}", "time / prefuse", "extra memory / logits"):
        out.add_column(heading, justify="right")
    for case in cases:
        extra = case["peak_extra_logits"]
        out.add_row(
            case["hand"],
            f"{case['seconds']['median'] * 1e3:.1f}",
            f"{case['gigabytes_per_second']:.2f}",
            f"{case['share_of_bandwidth']:.0%}",
            f"{case['times_prefuse']:.2f}",
            "not measured" if extra is None else f"{extra:.2f}",
        )
    return out


if __name__ == "__main__":
    main()
