"""The first calls on a new device, the smallest first: `python -m prefuse.bench.first_calls [--after NAME]`.

Each has its own guard, waits for the device, and prints one line at once, so that the first error names its kernel. An
error of the device stays with the process; it ends then, and the rest is tried by a fresh one, `--after` that call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from prefuse._backends import backend
from prefuse._backends.rows import Rows, bits_of

from . import device_checks, gather

BROKEN = 3
"""The status of a process whose device answers no more."""

Call = tuple[str, Callable[[], str]]
"""A name, and what gives "" or says what is wrong."""


def calls(device: torch.device) -> list[Call]:
    """Every call with its name, the smallest and simplest first."""
    bf16, f32 = torch.bfloat16, torch.float32
    both = ((bf16, 1000), (bf16, 40_000), (bf16, 128_256), (bf16, 151_936), (f32, 128_256), (bf16, 50_257))
    return [
        ("segment_sum", lambda: _segments(device)),
        *((f"rows {width} {_short(dtype)}", _rows(width, dtype, device)) for dtype, width in both),
        *((f"rows_both {width} {_short(dtype)}", _both(width, dtype, device)) for dtype, width in both),
        ("rows_both in place", _both(128_256, bf16, device, in_place=True)),
        ("squared errors", lambda: device_checks.squared_errors(bf16, f32, device) or ""),
        ("objective", lambda: device_checks.objective(device) or ""),
        ("head", lambda: device_checks.head(bf16, device) or ""),
        ("sparse head", lambda: device_checks.sparse_head(bf16, device) or ""),
    ]


def run(wanted: Iterable[Call], wait: Callable[[], None]) -> int:
    """Runs the calls, printing a line of each; 0 where all are right, 1 where not, `BROKEN` behind the last."""
    status = 0
    for name, call in wanted:
        try:
            wrong = call()
            wait()
        except Exception as error:  # whatever the driver, a compiler or a kernel raises
            wrong = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        print(f"{'wrong' if wrong else 'ok':<6}{name}{f': {wrong}' if wrong else ''}", flush=True)
        status = 1 if wrong else status
        if wrong and not _answers(wait):
            return BROKEN
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the status of `run`."""
    parser = argparse.ArgumentParser(prog="python -m prefuse.bench.first_calls")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--after", help="the call that the last process ended with")
    options = parser.parse_args(arguments)
    found = calls(options.device)
    names = [name for name, _ in found]
    if options.after and options.after not in names:
        parser.error(f"--after: got {options.after!r}, expected one of {', '.join(names)}")
    begin = names.index(options.after) + 1 if options.after else 0
    return run(found[begin:], torch.cuda.synchronize if options.device.type == "cuda" else lambda: None)


def _answers(wait: Callable[[], None]) -> bool:
    try:
        wait()
    except Exception:
        return False
    return True


def _segments(device: torch.device) -> str:
    values, offsets = torch.arange(12.0, device=device), torch.tensor([0, 5, 5, 12], device=device)
    sums = torch.empty(3, device=device)
    backend(device).segment_sum(values, offsets, sums)
    return "" if sums.tolist() == [10.0, 0.0, 56.0] else f"got {sums.tolist()}, expected [10, 0, 56]"


def _rows(width: int, dtype: torch.dtype, device: torch.device) -> Callable[[], str]:
    return lambda: device_checks.rows(5, width, dtype, device) or ""


def _both(width: int, dtype: torch.dtype, device: torch.device, in_place: bool = False) -> Callable[[], str]:
    """The bits of `rows_both` are those of the two calls."""

    def call() -> str:
        logits, labels = gather.inputs(5, width, dtype, device=device)
        grads = torch.linspace(-1, 1, 10, device=device).view(2, 5)

        def case(of: Tensor) -> Rows:
            return Rows(of, labels, None, None, None, 1.0, 1.0, 0.0, -100, bits_of(("logp", "lse")), 10)

        out, other = torch.full_like(grads, 777.0), torch.full_like(grads, 777.0)
        own = logits.clone()
        gradient = own if in_place else torch.full_like(logits, 777.0)
        backend(device).rows_both(case(own), grads, out, gradient)
        expected = torch.full_like(logits, 777.0)
        backend(device).rows_forward(case(logits), other)
        backend(device).rows_backward(case(logits), grads, other, expected)
        if not torch.equal(out, other):
            return f"statistics are off by {float((out - other).abs().max()):.3g}"
        off = (gradient.float() - expected.float()).abs().max()
        return "" if torch.equal(gradient, expected) else f"the gradient is off by {float(off):.3g}"

    return call


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
