"""What the libraries' functions share."""

from __future__ import annotations

from prefuse._arguments.checks import check_integer

NO_LABEL_IGNORED = -(2**63)
"""An ignore index that no label can be, for functions that know none: there −100 is as wrong as any other non-class."""


def check_chunk_size(chunk_size: int) -> int:
    """`chunk_size` as an int above 0."""
    chunk_size = check_integer("chunk_size", chunk_size)
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    return chunk_size
