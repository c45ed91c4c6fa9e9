"""Every program that the kernels are compiled to, and what the assembler says of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import prefuse._prefuse as _prefuse
from prefuse._backends.nvrtc import SHARED_MEMORY
from prefuse._backends.rows import bits_of

Program = tuple[str, list[tuple[str, str]]]
"""A kernel's name and the constants it is compiled with."""

_WIDE = 1 << 17

STATISTICS = {
    "logp": ("logp", "lse"),
    "moments": ("logp", "lse", "entropy", "log_sum_sq", "mean_logit", "top1"),
    "top-k": ("logp", "lse", "topk_mass", "topk_entropy"),
    "reference": ("logp", "lse", "entropy", "ref_logp", "ref_lse", "kl", "rkl"),
}
"""Sets of statistics that stand for all: each kind of work alone, with all the work of its kind."""


def programs(
    architecture: int,
    dtypes: tuple[str, ...] = ("bf16", "f16", "f32", "f64"),
    widths: tuple[int, ...] = (_WIDE, 1000),
) -> list[Program]:
    """The programs that calls on logits or samples of these dtypes run, made from the launches they would get."""
    found: list[Program] = []
    for dtype in dtypes:
        for width in widths:
            for names in STATISTICS.values():
                found += rows_programs(architecture, dtype, width, names, softcap=0.0)
            found += rows_programs(architecture, dtype, width, STATISTICS["logp"], softcap=30.0)
    for dtype in ("f32", "f64"):
        values, offsets = (dtype, (4,), (1,)), ("i64", (5,), (1,))
        found += _of(_prefuse.cuda_plan_segment_sum(values, offsets, values))
        found += _of(_prefuse.cuda_plan_segment_expand(values, offsets, values))
    for dtype in dtypes:
        found += column_programs(dtype)
        for other in dict.fromkeys((dtype, "f64" if dtype == "f64" else "f32")):
            found += distance_programs(dtype, other)
    return [program for i, program in enumerate(found) if program not in found[:i]]


def rows_programs(architecture: int, dtype: str, width: int, names: Sequence[str], softcap: float) -> list[Program]:
    """Those of calls on rows of `width` logits with these statistics."""
    rows, multiprocessors = 4, 1000  # so few rows that they are split where they can be
    logits = (dtype, (rows, width), (width, 1))
    labels = ("i64", (rows,), (1,))
    table = ("f64" if dtype == "f64" else "f32", (len(names), rows), (rows, 1))
    reference = logits if "kl" in names else None
    call = ((logits, labels, None, reference, 1.0, 1.0, softcap, -100, 0, width), bits_of(names))
    _, forward = _prefuse.cuda_plan_rows_forward(*call, 10, table, None, multiprocessors)
    target = (multiprocessors, architecture, SHARED_MEMORY[architecture])
    both = _prefuse.cuda_plan_rows_both(*call, 10, table, table, logits, None, target)
    return _of(forward) + _of(_prefuse.cuda_plan_rows_backward(*call, table, table, logits)) + _of(both)


def distance_programs(first: str, second: str) -> list[Program]:
    """Those of squared distances between samples of these dtypes."""
    samples, size = 4, 1 << 16
    one, other = ((dtype, (samples, size), (size, 1)) for dtype in (first, second))
    sums = ("f64" if first == "f64" else "f32", (samples,), (1,))
    forward = _prefuse.cuda_plan_distance_forward(one, other, sums, None)
    return _of(forward) + _of(_prefuse.cuda_plan_distance_backward(one, other, sums, one))


def column_programs(dtype: str) -> list[Program]:
    """Those of sparse gradients of logits of this dtype."""
    rows, width, wide = 4, 1 << 16, "f64" if dtype == "f64" else "f32"
    logits, numbers = (dtype, (rows, width), (width, 1)), (wide, (rows,), (1,))
    strips = (logits, numbers, numbers, ("i64", (rows,), (1,)), rows)
    found = ("bool", (1, width), (width, 1)), (dtype, (1, width), (width, 1))
    columns, starts, values = ("i64", (8,), (1,)), ("i64", (2,), (1,)), (dtype, (rows * 8,), (1,))
    gathered = columns, starts, values, (wide, (1, rows), (rows, 1))
    total, product = (wide, (width, 64), (64, 1)), (wide, (8, 64), (64, 1))
    launches = _prefuse.cuda_plan_columns_find(strips, 0.5, found)
    launches += _prefuse.cuda_plan_columns_gather(strips, gathered)
    launches += _prefuse.cuda_plan_columns_add((total, product, columns))
    return _of(launches) + (product_programs(dtype) if dtype in ("f16", "bf16") else [])


def product_programs(dtype: str) -> list[Program]:
    """Those that multiply gathered columns of this dtype, of 16 bits."""
    halves, sums, row = (dtype, (8, 8), (8, 1)), ("f32", (8, 8), (8, 1)), ("f32", (8,), (1,))
    columns, strips = ("i64", (8,), (1,)), ("i64", (8, 5), (5, 1))
    to_input = (dtype, (64,), (1,)), columns, strips, halves, row, row, sums, sums, 8
    launches = _prefuse.cuda_plan_columns_to_input(to_input)
    return _of(launches + _prefuse.cuda_plan_columns_to_weight((sums, halves, columns, halves)))


def _of(launches: list[dict[str, Any]]) -> list[Program]:
    return [(launch["kernel"], launch["defines"]) for launch in launches]
