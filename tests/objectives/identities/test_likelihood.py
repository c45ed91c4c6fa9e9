"""Relations that objectives of `prefuse.objectives.likelihood` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.objectives.identities.shared import COLUMNS, SIZE, gradients, losses, same

pytestmark = pytest.mark.evidence("identities")


def test_dpop_is_dpo_where_the_chosen_response_rose():
    risen = COLUMNS | {"ref_chosen_logps": COLUMNS["chosen_logps"] - 1.0}
    same(losses("dpop", risen, beta=0.2), losses("dpo", risen, beta=0.2))


def test_dpop_passes_no_gradient_through_its_penalty_at_the_kink():
    level = COLUMNS | {"ref_chosen_logps": COLUMNS["chosen_logps"]}
    same(gradients("dpop", level, beta=0.2)["chosen_logps"], gradients("dpo", level, beta=0.2)["chosen_logps"])


def test_codpo_is_rpo():
    same(losses("codpo", beta=0.2, weight=3.0), losses("rpo", beta=0.2, alpha=3.0))


def test_rationale_with_certainty_costs_log_two_in_the_original_code():
    certain = COLUMNS | {"rationale_logps": np.zeros(SIZE)}
    original = losses("rationale_dpo", certain, beta=0.2, variant="original")
    same(original, losses("dpo", beta=0.2) + np.log(2))
    same(losses("rationale_dpo", certain, beta=0.2), losses("dpo", beta=0.2))


def test_rationale_orpo_is_orpo_and_a_likelihood():
    rationale = COLUMNS["rationale_logps"] / COLUMNS["rationale_lengths"]
    same(losses("rationale_orpo", beta=0.2, gamma=3.0), losses("orpo", beta=0.2) - 3.0 * rationale)
