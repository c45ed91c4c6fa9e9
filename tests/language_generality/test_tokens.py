"""Objectives that look inside the response: positions, steps, detached coefficients, weights of whole pairs."""

from __future__ import annotations

import numpy as np

from prefuse.language import exp, pair_objective, token_objective
from prefuse.objectives import dpo, oreo_value, wpo

from .checking import check_numbers, ragged_mask

LENGTHS = [3, 1, 5, 4]
MASK = ragged_mask(LENGTHS, 6)  # the last column is padding for every response


def padded(seed=1):
    """A token column; padding holds NaN, which no result may ever see."""
    return np.where(MASK, np.random.default_rng(seed).normal(-1, 1, MASK.shape), np.nan)


def rows(tensor, mask):
    return [values[keep] for values, keep in zip(tensor, mask, strict=True)]


def pair_tokens(chosen, rejected, **token_columns):
    """Token columns of a batch of pairs from ragged lists, padded with NaN."""
    columns = {}
    for role, values in (("chosen", chosen), ("rejected", rejected)):
        width = max(map(len, values))
        columns[f"{role}_mask"] = ragged_mask([len(v) for v in values], width)
        columns[f"{role}_token_logps"] = pad(values, width)
        columns[f"ref_{role}_token_logps"] = pad([[0.0] * len(v) for v in values], width)
        for name, by_role in token_columns.items():
            columns[f"{role}_token_{name}"] = pad(by_role[role == "rejected"], width)
    return columns


def pad(values, width):
    return np.array([[*v, *[np.nan] * (width - len(v))] for v in values], dtype=np.float64)


# --- the batch of libraries.md 1.1.4, by token ----------------------------------------------------------------------

F1_CHOSEN = [[-1.0, -0.5, -2.0], [-0.25, -1.5, -0.75, -1.0]]
F1_REJECTED = [[-1.5, -2.5, -0.5, -1.25, -0.75], [-2.0, -1.0]]
F1_REF_CHOSEN = [[-1.25, -0.75, -1.75], [-0.5, -1.25, -1.25, -1.5]]
F1_REF_REJECTED = [[-1.0, -2.0, -0.75, -1.0, -0.5], [-1.75, -1.25]]
F1_TOKENS = pair_tokens(F1_CHOSEN, F1_REJECTED) | {
    "ref_chosen_token_logps": pad(F1_REF_CHOSEN, 4),
    "ref_rejected_token_logps": pad(F1_REF_REJECTED, 5),
}


# --- WPO: weights from the policy's own tokens, through weighted_by (libraries.md 1.1.4) ---------------------------


@pair_objective
def wpo_weight(pair):
    def confidence(role):
        return (role.token.logp - role.token["log_sum_sq"]).mean()

    return exp(confidence(pair.chosen) + confidence(pair.rejected))


def test_wpo_is_dpo_weighted():
    """The catalogue's objective, once more as a composition of two."""
    squares = {
        "chosen_token_log_sum_sq": pad([[-0.9, -0.4, -1.1], [-0.2, -0.8, -0.6, -0.7]], 4),
        "rejected_token_log_sum_sq": pad([[-0.8, -1.2, -0.3, -0.9, -0.5], [-1.0, -0.6]], 5),
    }
    weighted, whole = dpo(beta=0.1).weighted_by(wpo_weight), wpo(beta=0.1, variant="trl-1.16")
    check_numbers(weighted, F1_TOKENS | squares, 0.241440)
    ours, expected = weighted(**F1_TOKENS, **squares), whole(**F1_TOKENS, **squares)
    np.testing.assert_allclose(ours.losses, expected.losses, rtol=1e-14)
    for column, gradient in expected.gradients.items():
        np.testing.assert_allclose(ours.gradients[column], gradient, rtol=1e-12, atol=1e-17, err_msg=column)


# --- step scores of a preference tree (arXiv:2410.12854): means over steps inside a response -----------------------


@token_objective
def step_score(token):
    start, weight = token["step_start"], token["weight"]
    total, tokens = token.logratio.suffix_sum(reset=start), (token.logratio * 0.0 + 1.0).suffix_sum(reset=start)
    return (start * weight * total / tokens).sum() / (start * weight).sum()


def test_step_score():  # token_rl_data.md, TPO-tree: step means .3, -.1, .2 with weights 2, 1.6, 1.1
    columns = {"logps": [[0.1, 0.5, -0.1, 0.6, -0.2, 0.2]], "ref_logps": [[0.0] * 6], "mask": [[True] * 6]}
    columns |= {"step_start": [[True, False, True, True, False, False]]}
    columns |= {"weight": [[2.0, 2.0, 1.6, 1.1, 1.1, 1.1]]}
    check_numbers(step_score, columns, 0.140426)


# --- packed layout and responses without tokens --------------------------------------------------------------------


def test_packed_equals_padded():
    padded_columns = {"logps": padded(1), "ref_logps": padded(2), "value": padded(3), "reward": np.arange(4.0)}
    packed = {name: column[MASK] for name, column in padded_columns.items() if name != "reward"}
    packed |= {"reward": padded_columns["reward"], "cu_seqlens": np.cumsum([0, *LENGTHS])}
    first = oreo_value(**padded_columns, mask=MASK)
    second = oreo_value(**packed)
    np.testing.assert_array_equal(first.losses, second.losses)
    np.testing.assert_array_equal(first.gradients["value"][MASK], second.gradients["value"])


def test_a_response_without_tokens_has_loss_and_gradient_zero():
    mask = MASK.copy()
    mask[1] = False
    columns = {"logps": padded(1), "ref_logps": padded(2), "value": padded(3), "reward": np.arange(4.0)}
    score = oreo_value(**columns, mask=mask)
    assert score.losses[1] == 0.0
    np.testing.assert_array_equal(score.gradients["value"][1], 0.0)
    assert np.isfinite(score.loss)
