"""What has been put in another library's places, and the way back."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Acceleration"]


class Acceleration:
    """What of another library runs on prefuse, and the way back. A context manager, or until `remove`.

    Attributes:
        places: what runs on prefuse, in words.
        left: what was left as it is, and why: the reason by the place.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self.left: dict[str, str] = {}
        self._undo: list[Callable[[], object]] = []

    def add(self, place: str | None, undo: Callable[[], object]) -> None:
        """Counts a place, if it is to be named, and how to leave it again."""
        if place is not None and place not in self.places:
            self.places.append(place)
        self._undo.append(undo)

    def remove(self) -> None:
        """Puts everything back as it was; a second time does nothing."""
        while self._undo:
            self._undo.pop()()
        self.places = []
        self.left = {}

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        left = "; ".join(f"{name}: {reason}" for name, reason in self.left.items())
        return f"Acceleration({', '.join(self.places) or 'removed'}{f'; left: {left}' if left else ''})"
