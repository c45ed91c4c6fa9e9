"""What trainers log, read from wherever they put it, and what the papers say to look out for.

`read` makes a `Run` of a trainer, its ``trainer_state.json``, TensorBoard's files, a trackio project, a run of wandb's
API, its offline file or a table. `prefuse.viz.dashboard` draws it; ``python -m prefuse dashboard RUN`` prints and
draws it.
"""

from prefuse.runs.reading import read
from prefuse.runs.run import Run, Series
from prefuse.runs.signs import Sign, signs

__all__ = ["Run", "Series", "Sign", "read", "signs"]
