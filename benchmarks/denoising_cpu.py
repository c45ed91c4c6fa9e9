"""Squared errors of denoising on the CPU: prefuse beside the same in PyTorch, eager and compiled.

    python benchmarks/denoising_cpu.py [--rounds 15] [--results DIR]

Latents of an image model, [32, 4, 64, 64], and of a video model, [8, 16, 16, 128, 128]; the target is noise and takes
no gradient. The least traffic is one read of both tensors forward; forward and backward read them twice and write
the gradient once.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from prefuse import squared_errors
from prefuse.bench import machine, results, tables, timing

PREFUSE = "prefuse"
SHAPES = {"image": (32, 4, 64, 64), "video": (8, 16, 16, 128, 128)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
VISITS = {"forward": 2, "forward + backward": 5}
"""Tensors read or written at least."""


def main() -> None:
    options = parse()
    cases = [
        case
        for shape in SHAPES
        for dtype in DTYPES
        for task in VISITS
        for case in compare(shape, dtype, task, options.rounds)
    ]
    report: dict[str, object] = {
        "comparison": "squared errors of denoising",
        "shapes": SHAPES,
        "machine": machine.describe(),
        "cases": cases,
    }
    print(report["machine"])
    columns = ("latents", "dtype", "task", "way")
    rows = [
        [
            *(case[column] for column in columns),
            f"{case['seconds']['median'] * 1e3:.2f}",
            f"{case['this_over_prefuse']:.2f}",
            f"{case['least_traffic_gb_per_s']:.1f}",
        ]
        for case in cases
    ]
    tables.show("squared errors", [*columns, "ms", "of prefuse's time", "GB/s of least traffic"], rows)
    print(f"written to {results.write(options.results, 'denoising_cpu', report)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def eager(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def with_mse_loss(predicted: Tensor, target: Tensor) -> Tensor:
    return mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)


def compare(shape: str, dtype: str, task: str, rounds: int) -> list[dict[str, object]]:
    """All ways to one task, in the same rounds, after checking that they agree."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.empty(SHAPES[shape]).normal_(generator=generator).to(DTYPES[dtype]) for _ in range(2))
    ways: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
        PREFUSE: squared_errors,
        "eager": eager,
        "mse_loss": with_mse_loss,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    for way in ways.values():
        torch.testing.assert_close(way(predicted, target), eager(predicted, target), rtol=1e-5, atol=0)
    leaf = predicted.requires_grad_(task != "forward")
    runs = {name: run(way, leaf, target) for name, way in ways.items()}
    timings = timing.interleaved(runs, rounds)
    traffic = VISITS[task] * math.prod(SHAPES[shape]) * predicted.element_size()
    return [
        {
            "latents": shape,
            "dtype": dtype,
            "task": task,
            "way": name,
            "seconds": seconds.as_dict(),
            "this_over_prefuse": seconds.median / timings[PREFUSE].median,
            "least_traffic_gb_per_s": traffic / seconds.median / 1e9,
        }
        for name, seconds in timings.items()
    ]


def run(way: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor) -> Callable[[], object]:
    """The call, and where a gradient is wanted the way back, which makes and drops it."""
    if not predicted.requires_grad:
        return lambda: way(predicted, target)
    return lambda: torch.autograd.grad(way(predicted, target).sum(), predicted)


if __name__ == "__main__":
    main()
