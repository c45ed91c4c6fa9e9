"""Runs out of trainers, files, TensorBoard, trackio and wandb. Every error names what was looked at."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefuse.runs import offline
from prefuse.runs.run import Run, canonical, run_of

TRACKIO = "trackio:"
"""``trackio:PROJECT`` is the project's newest run, ``trackio:PROJECT/RUN`` the one of that name."""

_STATE = "trainer_state.json"
_EVENTS = "*tfevents*"
_OFFLINE = "run-*.wandb"


def read(run: Any) -> Run:
    """What a training has logged until now.

    Args:
        run: a `transformers.Trainer` (or its `state`, or the list `state.log_history`); a run of trackio's or wandb's
            API; a pandas table with a column ``step``, whose empty cells count as not logged; a `Run`, which is
            returned; ``"trackio:PROJECT"`` or ``"trackio:PROJECT/RUN"``; or a path: a folder with TensorBoard's event
            files, a trainer's output folder (event files or ``trainer_state.json``, of the checkpoint with the most
            steps, or the newest offline file of wandb's), such a file, or rows in JSON lines or CSV with a column
            ``step``.

    Returns:
        A `Run`. Numbers only; names as TRL gives them, ``eval/`` before those of evaluations.

    Raises:
        FileNotFoundError: there is no such path, or nothing in it that can be read.
        ImportError: TensorBoard, trackio or wandb, which reads its own, is not installed.
        TypeError: `run` is none of these.
        ValueError: a file is not what its name says, or nothing was logged.
    """
    found = _read(run)
    if not found.series:
        raise ValueError(f"run: nothing was logged in {found.name}")
    return found


def _read(run: Any) -> Run:
    if isinstance(run, Run):
        return run
    if isinstance(run, str) and run.startswith(TRACKIO):
        return _trackio(run.removeprefix(TRACKIO))
    if isinstance(run, str | Path):
        return _path(Path(run))
    state = getattr(run, "state", run)
    history = getattr(state, "log_history", state)
    if isinstance(history, Sequence):
        return run_of(_title(run), history)
    if hasattr(run, "scan_history"):
        return run_of(str(getattr(run, "name", "wandb")), run.scan_history())
    if hasattr(run, "to_dict") and hasattr(run, "columns"):
        return run_of("table", ({k: v for k, v in row.items() if v == v} for row in run.to_dict("records")))
    if type(run).__module__.partition(".")[0] == "trackio":
        return _trackio_run(run)
    raise TypeError(
        "run: expected a trainer, its log history, a path, 'trackio:PROJECT', a run of trackio or wandb, or a table, "
        f"got {type(run).__name__}"
    )


def _title(run: Any) -> str:
    return str(getattr(getattr(run, "args", None), "output_dir", None) or "run")


def _path(path: Path) -> Run:
    if not path.exists():
        raise FileNotFoundError(f"run: no file or folder {path}")
    if path.is_dir():
        return _folder(path)
    if "tfevents" in path.name:
        return _tensorboard(path)
    if path.suffix == ".wandb":
        return run_of(str(path), offline.rows(path))
    return run_of(str(path), _rows(path))


def _folder(path: Path) -> Run:
    """The folder of the newest event file; without one the trainer's state with the most steps; then wandb's file."""
    events = [found for found in path.rglob(_EVENTS) if found.is_file()]
    if events:
        return _tensorboard(max(events, key=lambda found: (found.stat().st_mtime, found.name)).parent)
    states = [run_of(str(path), _rows(found)) for found in sorted(path.rglob(_STATE))]
    if states:
        return max(states, key=lambda found: found.last_step)
    if stored := [found for found in path.rglob(_OFFLINE) if found.is_file()]:
        return _path(max(stored, key=lambda found: (found.stat().st_mtime, found.name)))
    raise FileNotFoundError(f"run: {path} has no event files of TensorBoard's, no {_STATE} and no {_OFFLINE}")


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            yield from csv.DictReader(text.splitlines())
        elif path.suffix == ".json":
            content = json.loads(text)
            yield from content["log_history"] if isinstance(content, dict) else content
        elif path.suffix == ".jsonl":
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        else:
            raise ValueError("expected a name that ends in .json, .jsonl or .csv, or an event file")
    except KeyError as error:
        raise ValueError(f"run: {path} has no {error}, which a {_STATE} has") from error
    except ValueError as error:
        raise ValueError(f"run: {path}: {error}") from error


def _tensorboard(path: Path) -> Run:
    """All event files of one folder, or one file: those of the evaluation and of other writers are in the same."""
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError as error:
        raise ImportError(f"run: {path} is read by TensorBoard itself; pip install tensorboard") from error
    accumulator = event_accumulator.EventAccumulator(str(path), size_guidance={event_accumulator.SCALARS: 0})
    accumulator.Reload()
    rows = (
        {"step": event.step, canonical(tag): event.value}
        for tag in accumulator.Tags()[event_accumulator.SCALARS]
        for event in accumulator.Scalars(tag)
    )
    return run_of(str(path), rows)


def _trackio(place: str) -> Run:
    try:
        import trackio
    except ImportError as error:
        raise ImportError(f"run: {TRACKIO}{place} takes trackio, which reads its own; pip install trackio") from error
    project, _, name = place.partition("/")
    runs = list(trackio.Api().runs(project))
    chosen = [run for run in runs if not name or run.name == name]
    if not chosen:
        there = f"has {', '.join(run.name for run in runs)}" if runs else "has no runs here"
        raise FileNotFoundError(f"run: no run {name or '(any)'} in trackio's project {project}, which {there}")
    return _trackio_run(chosen[-1])


def _trackio_run(run: Any) -> Run:
    from trackio.sqlite_storage import SQLiteStorage

    return run_of(f"{run.project}/{run.name}", SQLiteStorage.get_logs(run.project, run.name, run_id=run.id))
