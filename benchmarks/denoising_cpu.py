"""Squared errors of denoising on the CPU: prefuse beside the same in PyTorch, eager and compiled.

    python benchmarks/denoising_cpu.py [--rounds 15] [--results DIR]

Latents of an image model, [32, 4, 64, 64], and of a video model, [8, 16, 16, 128, 128]; the target is noise and takes
no gradient. The least traffic is one read of both tensors forward; forward and backward read them twice and write
the gradient once.
"""

import argparse
from pathlib import Path

import torch

from prefuse._display import tables
from prefuse.bench import denoising, machine, results, timing

SHAPES = {"image": (32, 4, 64, 64), "video": (8, 16, 16, 128, 128)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    options = parse()
    cases = [
        case
        for shape in SHAPES
        for dtype in DTYPES
        for task in denoising.VISITS
        for case in compare(shape, dtype, task, options.rounds)
    ]
    report: dict[str, object] = {
        "comparison": "squared errors of denoising",
        "shapes": SHAPES,
        "machine": machine.describe(),
        "cases": cases,
    }
    print(report["machine"])
    columns = ("latents", "dtype", "task", "hand")
    rows = [
        [
            *(case[column] for column in columns),
            f"{case['seconds']['median'] * 1e3:.2f}",
            f"{case['times_prefuse']:.2f}",
            f"{case['gigabytes_per_second']:.1f}",
        ]
        for case in cases
    ]
    tables.show("squared errors", [*columns, "ms", "time / prefuse", "GB/s"], rows)
    print(f"written to {results.write(options.results, 'denoising_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def compare(shape: str, dtype: str, task: str, rounds: int) -> list[dict[str, object]]:
    """All hands on one task, in the same rounds."""
    predicted, target = denoising.inputs(SHAPES[shape], DTYPES[dtype])
    timings = timing.interleaved(denoising.cases(predicted, target, task), rounds)
    moved = denoising.least_bytes(predicted, task)
    return [
        {
            "latents": shape,
            "dtype": dtype,
            "task": task,
            "hand": name,
            "seconds": seconds.as_dict(),
            "times_prefuse": seconds.median / timings[denoising.PREFUSE].median,
            "gigabytes_per_second": moved / seconds.median / 1e9,
        }
        for name, seconds in timings.items()
    ]


if __name__ == "__main__":
    main()
