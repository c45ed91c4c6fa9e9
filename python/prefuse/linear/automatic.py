"""``sparse="auto"``: whether gradients are worth lists, and from which probability on, by a look at a few rows.

The logits of a few rows are made first, and lists of them by falling eps, until the error of d(log p)/d(hidden) that
they predict is below the rounding of the hidden states' dtype. Where the lists have become long by then, or nothing can
be gained, gradients are dense. What this costs is a reading of the weight, so it is left out where there are few rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from prefuse._backends import lists as backend
from prefuse._backends.lists import Lists, Sampling
from prefuse._parallel.sharded_weights import is_zero3
from prefuse.linear.call import SMOOTHED, Call
from prefuse.linear.operands import Operands, Statistics, request
from prefuse.linear.plans import choose
from prefuse.linear.sparse import AUTO, Sparse, check_sparse

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The largest relative error of a number that is rounded to the dtype; that of others no short list comes down to."""

LEAST_ROWS, LEAST_CLASSES = 2048, 16384
"""Below these a look costs more than a twentieth of the dense plan, or there is little to gain."""

FORESEEN = frozenset({"logp", SMOOTHED, "lse", "mean_logit"})
"""Statistics of whose gradients the error of d(log p)/d(hidden) tells. An entropy's is several times as large, and
lists that bring it below the rounding of 16 bits are too long."""

LOOKED_AT = 8
"""Rows of which logits are made beforehand."""

DIGITS = (11, 12, 13, 14)
"""2 to the minus how much eps may be."""

LONGEST = {(False, False): 1 / 70, (False, True): 1 / 70, (True, False): 1 / 160, (True, True): 1 / 80}
"""The part of all classes that a list may have, by whether the processor multiplies 16-bit matrices in hardware (AMX)
and whether the weight is trained: up to here it takes no longer than the GEMMs it replaces."""

NORMS = 512
"""Rows of the weight that are looked at for their size."""


def settle(
    sparse: float | str | Sparse | None, operands: Operands, statistics: Statistics, index: Tensor | None
) -> Statistics:
    """`statistics` with what the argument `sparse` means for them.

    Raises:
        TypeError, ValueError: as `check_sparse`.
    """
    if isinstance(sparse, str) and sparse == AUTO:
        return statistics._replace(sparse=_found(operands, statistics, index))
    if not any(operands.wants):
        return statistics
    device, shared = operands.labels.device, bool(statistics.shard.name)
    found = check_sparse(sparse, statistics.differentiated, device, statistics.smoothing, operands.softcap, shared)
    return statistics._replace(sparse=found)


def _found(operands: Operands, statistics: Statistics, index: Tensor | None) -> Sparse | None:
    """The largest eps whose error is small enough; None where its lists are long, or dense gradients cost no more."""
    tolerance = ROUNDING.get(operands.inputs[0].dtype)
    possible = (
        any(operands.wants)
        and statistics.differentiated
        and FORESEEN.issuperset(statistics.differentiated)
        and operands.labels.device.type == "cpu"
        and not statistics.shard.name
        and not any(map(is_zero3, operands.weights))  # gathered again for some plans alone, on all processes or none
        and not operands.softcap
    )
    large = index is not None and index.shape[0] >= LEAST_ROWS and operands.weights[0].shape[0] >= LEAST_CLASSES
    if tolerance is None or index is None or not possible or not large:
        return None
    with torch.no_grad():
        few = index[:: index.shape[0] // LOOKED_AT][:LOOKED_AT]
        job = operands.job(few, statistics)
        asked = request(operands, statistics, few, choose(dataclasses.replace(job, hidden=False, weight=False)))
        call = dataclasses.replace(asked.call(), names=("logp", "lse"), reference=None)
        trained = any(operands.wants[len(operands.inputs) :])
        return _look(call, tolerance, LONGEST[_multiplies_in_hardware(), trained])


def _multiplies_in_hardware() -> bool:
    """Whether GEMMs of 16 bits are an order of magnitude faster than what lists are summed with; True if not known."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_tile", capabilities.get("architecture") in (None, "x86_64")))


def _look(call: Call, tolerance: float, longest: float) -> Sparse | None:
    part = call.part(0, call.count)
    rows = call.tile(part, call.buffer(call.count))
    table, numbers = call.new_table(call.count), torch.arange(call.count)
    for digits in DIGITS:
        lists = backend.make(rows, table, True, numbers, Sampling(2.0**-digits, 0, digits))
        if lists.classes.shape[0] > call.count * longest * call.head.classes:
            return None
        if _error(call, part, lists, 2.0**-digits) <= tolerance:
            return Sparse(2.0**-digits)
    return None


def _error(call: Call, part: Tensor | slice, lists: Lists, eps: float) -> float:
    """The relative error of d(log p)/d(hidden) over some rows: an estimate, not less than the true one in the mean.

    What is listed as eps has the expectation p/eps, so that Σ eps²·|W_j|² over it has Σ p·eps·|W_j|².
    """
    offsets = torch.nn.functional.pad(lists.lengths.cumsum(0), (1, 0))
    rest, labels = -torch.ones_like(lists.at_label[0]), call.labels[part].contiguous()
    matrix = backend.Matrix(
        offsets, lists.classes, lists.values, rest, lists.at_label[0].contiguous(), labels, call.head.classes
    )
    weight = call.head.weights[0].contiguous()
    gradient = rest.new_empty((call.count, weight.shape[1]))
    matrix.by_row(weight, gradient)
    transform = call.transform
    temperature = transform.temperature if transform.temperatures is None else transform.temperatures[part]
    least = eps * transform.scale / torch.as_tensor(temperature, dtype=rest.dtype).expand(call.count)
    least = least.repeat_interleave(lists.lengths)
    rounded = (lists.values <= least * (1 + 1e-5)).nonzero()[:, 0]
    some = rounded[:: max(1, rounded.shape[0] // NORMS)]
    norms = weight[lists.classes[some]].float().square().sum(1)
    variance = float((least[some].square() * norms).sum()) * rounded.shape[0] / max(1, some.shape[0])
    exact = float(gradient.double().square().sum()) - variance
    return (variance / exact) ** 0.5 if exact > 0 else float("inf") if variance else 0.0
