"""A label of unpaired data is desirable where it is above 0: true, 1 and 1.0, and neither 0 nor −1."""

import numpy as np
import pytest

from prefuse import objectives
from prefuse.catalogue.samples import sample

NAMES = ("apo_zero_unpaired", "asft_unpaired", "bco", "kto", "nbpo")


@pytest.mark.parametrize("name", NAMES)
def test_minus_one_is_undesirable(name):
    objective = objectives.get(name)
    columns = sample(objective, 0)
    assert "label" in columns
    desirable = np.arange(len(columns["label"])) % 2 == 0
    by_kind = [
        np.asarray(objective(**{**columns, "label": label}).losses)
        for label in (desirable, desirable.astype(np.int64), desirable.astype(float), np.where(desirable, 1.0, -1.0))
    ]
    for losses in by_kind[1:]:
        np.testing.assert_array_equal(losses, by_kind[0])
    assert not np.array_equal(np.asarray(objective(**{**columns, "label": ~desirable}).losses), by_kind[0])
