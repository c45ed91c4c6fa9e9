"""The errors prefuse raises under a name of its own."""


class LanguageError(ValueError):
    """An objective says something the language cannot say; the message names the objective and what to write instead."""
