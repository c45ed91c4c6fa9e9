"""How many launches registered objectives take on small batches, where a GPU spends most of its time on them.

Counted from the launches that a device would get; nothing is run.
"""

import numpy as np
import pytest
import torch

from prefuse import objectives, preference_loss
from prefuse.losses.columns import reading
from tests.codegen.emulated import planned
from tests.objectives.pairs_and_points import VARIANTS, column_names, random_columns, variant_id

PAIRS, TOKENS = 64, 512
READS = {name: objectives.get(name).columns for name in sorted({name for name, _ in VARIANTS})}
OF_PAIRS = [name for name, columns in READS.items() if "chosen_logps" in columns and "rejected_mask" not in columns]


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_columns_of_64_pairs_take_one(variant):
    name, parameters = variant
    made = random_columns(PAIRS, seed=0)
    columns = {column: torch.from_numpy(np.asarray(made[column])) for column in column_names(name, parameters)}
    for column in columns.values():
        column.requires_grad_(column.is_floating_point())
    with planned() as runs:
        score = objectives.get(name)(**parameters)(**columns)
        score.loss.backward(retain_graph=True)
        assert runs == [1], "loss, metrics and gradients come out of one launch"
        score.losses.sum().backward()
    assert runs == [1, 1]


def _others(objective):
    """Columns that logits do not give."""
    gathered = {need.argument for need in reading(objective, ()).needs}
    made = random_columns(PAIRS, seed=0)
    return {name: torch.from_numpy(made[name]) for name in objective.columns if name not in gathered}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_logits_of_64_pairs_of_512_tokens_take_one_for_the_objective(name):
    objective = objectives.get(name)
    responses = len(objective.roles) * PAIRS
    logits = torch.zeros(responses, TOKENS, 3, requires_grad=True)
    labels = torch.zeros(responses, TOKENS, dtype=torch.int64)
    labels[:, -100:] = -100
    reads_reference = any(need.name == "ref_logp" for need in reading(objective, ()).needs)
    reference = torch.zeros(logits.shape) if reads_reference else None
    with planned() as runs:
        score = preference_loss(name, logits=logits, labels=labels, reference=reference, **_others(objective))
        score.loss.backward()
    assert runs == [1]


IN_STAGES = {"aot": 5, "aot_unpaired": 5, "bco_pair": 5, "orpo": 5, "rationale_orpo": 5, "sft": 4, "tpo": 5, "tpo_l": 5}
IN_STAGES |= {"alpha_dpo": 7, "beta_dpo": 5, "dr_dpo": 5, "kto_pair": 5}
"""More than sum, score, pull back: what sorts the batch, averages over it or divides by its tokens waits for all of it
once more, and a standard deviation twice."""


@pytest.mark.parametrize("name", OF_PAIRS)
def test_token_columns_of_64_pairs_of_512_tokens_take_a_few(name):
    # Too much for one block to read: each sums the tokens of a pair, one scores the pairs, all write the gradient.
    objective = objectives.get(name)
    sums = {need.argument for need in reading(objective, ()).needs if need.name in ("logp", "ref_logp")}
    given = {
        column.replace("logps", "token_logps"): torch.zeros(PAIRS, TOKENS, requires_grad=not column.startswith("ref_"))
        for column in sums
    }
    given |= {f"{role}_mask": torch.ones(PAIRS, TOKENS, dtype=torch.bool) for role in objective.roles}
    given |= _others(objective)
    with planned() as runs:
        objectives.get(name)(**given).loss.backward()
    assert runs == [IN_STAGES.get(name, 3)]
