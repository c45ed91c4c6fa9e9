"""What prefuse has no rules for, and therefore refuses: `torch.func` transforms and forward-mode derivatives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

compiler_disabled = _disable_dynamo
"""`torch.compiler.disable`, which imports the compiler (longer than torch itself) when the function is first called."""

NO_TRANSFORMS = (
    "prefuse has no rules for torch.func transforms (vmap, grad, jvp, …) and forward-mode derivatives; "
    "pass the whole batch, of any leading shape, and differentiate with torch.autograd"
)


def refuse_transforms(values: Iterable[object]) -> None:
    """Refuses tensors among `values` that a transform has wrapped, or whose tangents would be lost without a word."""
    if torch.compiler.is_compiling() or not is_transforming():
        return
    for value in values:
        if isinstance(value, torch.Tensor) and _is_transformed(value):
            raise NotImplementedError(NO_TRANSFORMS)


def refuse_vmap(info: Any, in_dims: Any, *args: Any) -> NoReturn:
    """The rule for vmap of every operator: there is none."""
    raise NotImplementedError(NO_TRANSFORMS)


def is_transforming() -> bool:
    """Whether a transform or a level of forward mode is active at all; cheap, as it is asked at every call."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _is_transformed(tensor: torch.Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
