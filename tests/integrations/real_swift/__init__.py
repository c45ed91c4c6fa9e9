"""The real ms-swift, on the CPU: `make test-swift`; skipped elsewhere."""

from typing import Any

MADE: list[Any] = []
"""What the plugin of a test has accelerated."""
