"""The errors prefuse raises under a name of its own."""

__all__ = ["LanguageError"]


class LanguageError(ValueError):
    """An objective says what the language cannot say; the message names it and what to write instead."""
