"""What Liger's losses have in common as Python: a module whose options are fields, and a function of the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from inspect import Parameter, Signature
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from prefuse.compat._shared import check_chunk_size

Result = tuple[Tensor, tuple[Tensor, ...]]


class Loss(nn.Module):
    """A loss whose options are the fields of a dataclass."""

    chunk_size: int

    def __post_init__(self) -> None:
        super().__init__()
        check_chunk_size(self.chunk_size)


def apply_of(loss: type[Loss], score: Callable[..., Result], order: str, **defaults: Any) -> Callable[..., Result]:
    """`apply` of one of Liger's autograd functions: every argument by position.

    Args:
        loss: the module; what is a field of it is an option, with its default.
        score: the implementation, `score(options, **tensors)`.
        order: the arguments' names in Liger's order; a tensor that may be left out has a `?` behind it.
        defaults: those that Liger's function has other than its module.
    """
    known = {field.name: field.default for field in dataclasses.fields(loss)} | defaults  # type: ignore[arg-type]
    parameters = [_parameter(name, known) for name in order.split()]
    signature = Signature(parameters, return_annotation=Result)

    def apply(*arguments: Any, **named: Any) -> Result:
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        options = {name: value for name, value in given.arguments.items() if name in known}
        tensors = {name: value for name, value in given.arguments.items() if name not in known}
        return score(SimpleNamespace(**options), **tensors)

    apply.__signature__ = signature  # type: ignore[attr-defined]
    apply.__doc__ = f"The loss and what Liger returns with it; `{loss.__name__}` says what each argument is."
    return apply


def _parameter(name: str, options: dict[str, Any]) -> Parameter:
    default = options.get(name, None if name.endswith("?") else Parameter.empty)
    return Parameter(name.rstrip("?"), Parameter.POSITIONAL_OR_KEYWORD, default=default)
