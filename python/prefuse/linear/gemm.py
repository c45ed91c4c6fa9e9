"""The head's matrix products. PyTorch computes them; what it takes to have float32 sums stands here alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
_BLOCK_BYTES = 32 << 20
_HAS_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype_out")


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of matrices of `dtype` are added up."""
    return torch.float32 if dtype in HALVES else dtype


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype closest to `sum_dtype` that one product can be written in at full speed."""
    return sum_dtype(dtype) if _writes_float32(device.type) else dtype


def rounds_products(matrix: Tensor) -> bool:
    """Whether products of such a matrix are rounded to 16 bits as they are written."""
    return product_dtype(matrix.device, matrix.dtype) != sum_dtype(matrix.dtype)


def project(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, out: Tensor) -> None:
    """out [N, V] = Σ inputs[f] [N, H_f] @ weights[f].T + bias, in the dtype of the inputs or in float32."""
    if out.dtype != inputs[0].dtype:
        multiply(inputs[0], weights[0].t(), out)
        if bias is not None:
            out.add_(bias)
    elif bias is None:
        torch.mm(inputs[0], weights[0].t(), out=out)
    else:
        torch.addmm(bias, inputs[0], weights[0].t(), out=out)
    add_factors(inputs[1:], weights[1:], out)


def add_factors(inputs: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor) -> None:
    """Out += Σ inputs[f] @ weights[f].T."""
    for factor, weight in zip(inputs, weights, strict=True):
        add_product(out, factor, weight.t(), exact=True)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Out = a @ b, rounded once, to the dtype of `out`: that of `a` or float32."""
    if not a.shape[1]:
        out.zero_()
    elif out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif _writes_float32(a.device.type):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.zero_()
        for start, stop in _blocks(b.shape[0], b.shape[1] * 4):
            out.addmm_(a[:, start:stop].to(out.dtype), b[start:stop].to(out.dtype))


def add_product(total: Tensor, a: Tensor, b: Tensor, exact: bool = False) -> None:
    """Total += a @ b, where `total` has the dtype of `a` or float32.

    Where no GEMM of 16-bit matrices adds to a float32 one, each product is rounded to 16 bits, their sum is not;
    `exact`: neither is, and the matrices are converted.
    """
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif _writes_float32(a.device.type):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif exact:
        for start, stop in _blocks(b.shape[0], (total.shape[0] + total.shape[1]) * 4):
            total.addmm_(a[:, start:stop].to(total.dtype), b[start:stop].to(total.dtype))
    else:
        for start, stop in _blocks(total.shape[0], total.shape[1] * a.element_size()):
            total[start:stop].add_(torch.mm(a[start:stop], b))


def add_rows(total: Tensor, index: Tensor, rows: Tensor, factors: Tensor) -> None:
    """total[index[i]] += factors[i] · rows[i], added up in float32 and rounded once for each row of `total`.

    The sums have the same bits at every run, and nothing is waited for.
    """
    if total.dtype not in HALVES:
        total.index_put_((index,), scale_rows(rows, factors, total.dtype), accumulate=True)
        return
    order = index.argsort(stable=True)
    index = index[order]
    number = torch.nn.functional.pad((index[1:] != index[:-1]).cumsum(0), (1, 0))[: index.shape[0]]
    sums = rows.new_zeros(rows.shape, dtype=torch.float32)
    sums.index_put_((number,), scale_rows(rows[order], factors[order], torch.float32), accumulate=True)
    total[index] = (sums[number] + total[index]).to(total.dtype)  # equal indices write equal rows


def scale_rows(rows: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """factors[:, None] · rows as a new tensor of `dtype`, multiplied in the wider of the two dtypes, rounded once."""
    result = torch.empty_like(rows, dtype=dtype)
    for start, stop in _blocks(rows.shape[0], rows.shape[1] * 8):
        torch.mul(rows[start:stop], factors[start:stop, None], out=result[start:stop])
    return result


def sum_rows(matrix: Tensor) -> Tensor:
    """The sum of the rows, [H] in the dtype of sums; of 16 bits by parts on the CPU, which would convert them all."""
    dtype = sum_dtype(matrix.dtype)
    if matrix.device.type != "cpu" or matrix.dtype == dtype:
        return matrix.sum(0, dtype=dtype)
    parts = _blocks(matrix.shape[0], matrix.shape[1] * dtype.itemsize)
    return torch.stack([matrix[start:stop].sum(0, dtype=dtype) for start, stop in parts]).sum(0)


def _blocks(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """[start, stop) of blocks of rows that take little memory each."""
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


@functools.cache
def _writes_float32(device_type: str) -> bool:
    """Whether PyTorch multiplies 16-bit matrices into a float32 one on such a device: tried once.

    Versions that have the overload may refuse to add to a float32 matrix.
    """
    if device_type != "cuda" or not _HAS_OUT_DTYPE:
        return False
    half = torch.ones(8, 8, dtype=torch.bfloat16, device=device_type)
    try:
        torch.addmm(half.float(), half, half, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True
