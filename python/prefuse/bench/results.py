"""Results as data: one JSON file per comparison and machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .machine import cpu_model


def write(folder: Path, comparison: str, results: dict[str, object]) -> Path:
    """Writes `<comparison>-<processor>.json` into `folder`, which is made if need be, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    path = folder / f"{comparison}-{processor}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path
