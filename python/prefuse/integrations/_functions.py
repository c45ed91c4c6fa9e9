"""A function of a framework's, replaced wherever its modules hold it by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from prefuse._patches import Acceleration, Patch, original, patch

Make = Callable[[Patch], Callable[..., Any]]
"""What makes our function, of the patch that knows the framework's own."""


def replace(acceleration: Acceleration, owner: Any, name: str, make: Make, place: str) -> None:
    """Puts what `make` makes in the place of ``owner.name``, as `place`.

    Args:
        acceleration: takes the place and the way back.
        owner: a class, or a module: then also in all loaded modules of its package that import the function by name.
            Those loaded later import ours, which asks `Patch.active`.
        name: of the function.
        make: see `Make`. It is not called where the function is replaced already.
        place: in words.
    """
    own = original(owner, name)
    first = patch(owner, name, make)
    acceleration.add(place, first.remove)
    if not isinstance(owner, ModuleType):
        return
    ours = getattr(owner, name)
    package = owner.__name__.partition(".")[0]
    for module, attribute in [*_holders(package, own), *_holders(package, ours)]:
        if module is not owner:
            acceleration.add(None, patch(module, attribute, lambda _: ours).remove)


def _holders(package: str, function: Any) -> Iterator[tuple[ModuleType, str]]:
    """The loaded modules of a package that hold a function, and under which names."""
    for path, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (path == package or path.startswith(f"{package}.")):
            yield from ((module, name) for name, value in list(vars(module).items()) if value is function)
