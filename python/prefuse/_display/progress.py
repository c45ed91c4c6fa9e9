"""A bar beside work that takes a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one after the other, and meanwhile how many are done, in a notebook or on a terminal.

    The bar goes when the work is done. Where tqdm is not installed, or standard error is a file, there is none.
    """
    bar = _bar()
    yield from items if bar is None else bar(items, desc=what, leave=False, disable=None)


def _bar() -> type | None:
    """tqdm's bar for where this runs: a widget in a notebook that has them."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook lacks ipywidgets and has no bar then
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm  # type: ignore[no-any-return]
