"""Relations that objectives of `prefuse.objectives.transport` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, SIZE
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_aot_with_one_pair_is_conservative_dpo():
    columns = {key: value[:1] for key, value in COLUMNS.items()}
    smoothing = {"beta": 0.2, "label_smoothing": 0.1}
    expected = evaluate("dpo", smoothing, columns).losses
    for name in ("aot", "aot_unpaired"):
        assert_allclose(evaluate(name, smoothing, columns).losses, expected, rtol=1e-13)


def test_aot_ignores_the_order_of_the_batch():
    order = np.random.default_rng(4).permutation(SIZE)
    shuffled = {name: value[order] for name, value in COLUMNS.items()}
    for name in ("aot", "aot_unpaired"):
        first, second = evaluate(name, {}, COLUMNS), evaluate(name, {}, shuffled)
        assert_allclose(first.loss, second.loss, rtol=1e-13)
        assert_allclose(first.gradients["chosen_logps"][order], second.gradients["chosen_logps"], rtol=1e-12)
