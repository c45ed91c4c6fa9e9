"""What stands in the place of another library's attributes, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_KEY = "_prefuse_swaps"
_ABSENT = object()


class Swap:
    """One attribute of a module, class or instance with something of ours in its place, counted by who wants it.

    Attributes:
        original: what stood there, also where the owner had inherited it.
        active: whether anybody wants it still. What got hold of ours in between asks this.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.original = getattr(owner, name)
        self._owner = owner
        self._name = name
        self._own = vars(owner).get(name, _ABSENT)
        self._count = 0

    @property
    def active(self) -> bool:
        """See the class."""
        return self._count > 0

    def remove(self) -> None:
        """Undo one `swap`; with the last the original is back."""
        self._count -= 1
        if self._count:
            return
        if self._own is _ABSENT:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
        swaps = vars(self._owner)[_KEY]
        del swaps[self._name]
        if not swaps:
            delattr(self._owner, _KEY)


def swap(owner: Any, name: str, make: Callable[[Swap], Any]) -> Swap:
    """Puts what `make` makes in the place of an attribute, or counts once more where it stands there already."""
    if _KEY not in vars(owner):
        setattr(owner, _KEY, {})
    swaps = vars(owner)[_KEY]
    if name not in swaps:
        made = swaps[name] = Swap(owner, name)
        setattr(owner, name, make(made))
    swaps[name]._count += 1
    found: Swap = swaps[name]
    return found


def original(owner: Any, name: str) -> Any:
    """An attribute as it is without ours; None where there is none."""
    swaps = getattr(owner, "__dict__", {}).get(_KEY, {})
    return swaps[name].original if name in swaps else getattr(owner, name, None)
