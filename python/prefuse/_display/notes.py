"""Lines that say once what runs, through `logging`, and shown although nobody has set logging up."""

from __future__ import annotations

import logging
import os


def logger_of(name: str) -> logging.Logger:
    """The logger of a module, whose lines at level INFO are shown unless it was set to another level."""
    log = logging.getLogger(name)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    return log


def note(log: logging.Logger, text: str) -> None:
    """Logs a line at level INFO, in the first process of several; on stderr where no handler is set up."""
    if os.environ.get("RANK", "0") != "0":
        return
    own = None if log.hasHandlers() else logging.StreamHandler()
    if own is not None:
        log.addHandler(own)
    try:
        log.info(text)
    finally:
        if own is not None:
            log.removeHandler(own)
