"""What the terminal shows while the demo works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn


class Display:
    """Live progress on a terminal; elsewhere (a log file) only what is finished."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Shows a spinner meanwhile."""
        with self.console.status(f"{what} …"):
            yield

    @contextmanager
    def training(self, name: str, steps: int) -> Iterator[Callable[[int, str], None]]:
        """Shows a bar; what is given takes the number of steps done and a line of figures."""
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=steps, figures="")
            yield lambda step, figures: progress.update(task, completed=step, figures=figures)
