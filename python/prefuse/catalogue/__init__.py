"""The registered objectives as a reader meets them: a table to search, a page each, the same as documentation."""

from prefuse.catalogue.entries import Catalogue, Entry, catalogue, entry

__all__ = ["Catalogue", "Entry", "catalogue", "entry"]
