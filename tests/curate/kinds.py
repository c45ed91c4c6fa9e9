"""The kinds of rows that `prefuse.curate` takes, and the same rows of each kind as a list of dicts."""

import datasets
import numpy as np
import pandas as pd

MAKERS = {"dicts": list, "pandas": pd.DataFrame, "datasets": datasets.Dataset.from_list}


def as_dicts(rows):
    """Rows of any kind as dicts of plain Python values."""
    if isinstance(rows, list):
        dicts = rows
    elif isinstance(rows, pd.DataFrame):
        assert list(rows.index) == list(range(len(rows)))
        dicts = rows.to_dict("records")
    else:
        assert isinstance(rows, datasets.Dataset)
        dicts = rows.to_list()
    return [{name: plain(value) for name, value in row.items()} for row in dicts]


def plain(value):
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def responses(scores_by_prompt):
    """One row per response, prompts interleaved, with a column that nobody asks for."""
    rows = [
        {"prompt": prompt, "response": f"{prompt}{index}", "score": score, "tokens": 10 * index}
        for prompt, scores in scores_by_prompt.items()
        for index, score in enumerate(scores)
    ]
    return sorted(rows, key=lambda row: row["tokens"])


def texts(rows):
    return [(row["chosen"], row["rejected"]) for row in as_dicts(rows)]
