"""The real DeepSpeed, on the CPU: see `conftest`."""

MEASURED: dict[str, list[dict[str, float]]] = {}
"""By kind of case: the largest differences of each case, for the table at the end."""
