"""What stands in the place of another library's attributes, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_KEY = "_prefuse_patches"
_ABSENT = object()


class Patch:
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
        """Undo one `patch`; with the last the original is back."""
        self._count -= 1
        if self._count:
            return
        if self._own is _ABSENT:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
        patches = vars(self._owner)[_KEY]
        del patches[self._name]
        if not patches:
            delattr(self._owner, _KEY)


def patch(owner: Any, name: str, make: Callable[[Patch], Any]) -> Patch:
    """Puts what `make` makes in the place of an attribute, or counts once more where it stands there already."""
    if _KEY not in vars(owner):
        setattr(owner, _KEY, {})
    patches = vars(owner)[_KEY]
    if name not in patches:
        made = patches[name] = Patch(owner, name)
        setattr(owner, name, make(made))
    patches[name]._count += 1
    found: Patch = patches[name]
    return found


def original(owner: Any, name: str) -> Any:
    """An attribute as it is without ours; None where there is none."""
    patches = getattr(owner, "__dict__", {}).get(_KEY, {})
    return patches[name].original if name in patches else getattr(owner, name, None)
