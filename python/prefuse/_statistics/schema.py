"""Arguments of `torch.library` operators, which take no objects, from the NamedTuples that hold them."""

from __future__ import annotations

from typing import get_type_hints

from torch import Tensor

_TYPES = {
    list[Tensor]: "Tensor[]",
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    int: "SymInt",
    bool: "bool",
    str: "str",
    list[bool]: "bool[]",
}
"""Types as an operator's schema writes them."""


def arguments_of(kind: type, count: int | None = None) -> str:
    """The fields of a NamedTuple, or the first `count`, as arguments of an operator."""
    return ", ".join(f"{_TYPES[hint]} {name}" for name, hint in list(get_type_hints(kind).items())[:count])
