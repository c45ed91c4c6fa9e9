"""Calls of `preference_loss` from hidden states, drawn by hypothesis: loss and gradients are those from the logits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import prefuse
from prefuse.language import log_sigmoid, pair_objective
from prefuse.linear.plans import PLANS, SPARSE
from tests.devices import integers, normal, uniform
from tests.linear.test_preference import clipped, coupled, listwise

pytestmark = pytest.mark.usefixtures("device")

F64 = torch.float64


@pair_objective
def with_tokens(pair, *, beta=0.5):
    """Looks at tokens of both roles."""
    drift = pair.chosen.token["kl"].sum() - pair.rejected.token["entropy"].mean()
    return -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio) - 0.1 * drift)


READ_A_REFERENCE = ("dpo", "ipo", "aot", with_tokens, clipped)
OBJECTIVES = (*READ_A_REFERENCE, "simpo", "orpo", "sft", listwise, coupled)
"""Pairs, groups, points and tokens; some look at all responses together."""

TRAINED = ("hidden", "weight", "bias", "a", "b")


def layout(draw, pairs: int) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
    """The shape of the labels, and where responses begin if they are packed."""
    if draw(st.booleans()):
        return (2 * pairs, draw(st.integers(1, 7))), {}
    lengths = draw(st.lists(st.integers(1, 9), min_size=2 * pairs, max_size=2 * pairs))
    shape = (sum(lengths),) if draw(st.booleans()) else (1, sum(lengths))
    return shape, {"cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)])}


@st.composite
def calls(draw):
    """An objective, the tensors of a head, what is trained, other arguments, a plan and its memory."""
    objective, pairs, seed = draw(st.sampled_from(OBJECTIVES)), draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    shape, options = layout(draw, pairs)
    features, classes = draw(st.sampled_from([1, 4, 16])), draw(st.sampled_from([2, 29, 300]))
    labels = integers(classes, *shape, seed=seed)
    labels[uniform(*shape, seed=seed + 1) < draw(st.sampled_from([0.0, 0.0, 0.3, 0.8]))] = -100
    options |= {"labels": labels, "shift": draw(st.booleans()), "reduction": draw(st.sampled_from(["mean", "sum"]))}
    if draw(st.booleans()):
        options["mask"] = uniform(*shape, seed=seed + 2) < 0.7
    if draw(st.booleans()):
        one, each = 0.7, 0.5 + uniform(*shape, seed=seed + 3, dtype=F64)
        options["temperature"] = each if draw(st.booleans()) else one
    if draw(st.booleans()):
        options["softcap"] = 3.0
    if objective is listwise:
        options["groups"] = integers(3, 2 * pairs, seed=seed + 4)
        options["score"] = uniform(2 * pairs, seed=seed + 5, dtype=F64)
    head = {
        "hidden": normal(*shape, features, seed=seed + 6, dtype=F64),
        "weight": normal(classes, features, seed=seed + 7, dtype=F64),
    }
    if draw(st.booleans()):
        head["bias"] = normal(classes, seed=seed + 8, dtype=F64)
    if draw(st.booleans()):
        head["a"] = normal(2, features, seed=seed + 9, dtype=F64)
        head["b"] = normal(classes, 2, seed=seed + 10, dtype=F64)
    trained = ["hidden", *(name for name in head if name != "hidden" and draw(st.booleans()))]
    reference = normal(*shape, features, seed=seed + 11, dtype=F64) if objective in READ_A_REFERENCE else None
    plan = draw(st.sampled_from([None, *(plan for plan in PLANS if plan not in (*SPARSE, "forward"))]))
    workspace_bytes = draw(st.one_of(st.none(), st.integers(1, 2 * labels.numel() + 2).map(lambda n: n * classes * 8)))
    return objective, head, trained, reference, options, {"plan": plan, "workspace_bytes": workspace_bytes}


def scored(objective, head, trained, **arguments):
    """The loss, and its gradients by what is trained."""
    leaves = [head[name] for name in trained]
    score = prefuse.preference_loss(objective, **arguments)
    if not score.loss.requires_grad:  # nothing is scored
        return score.loss, [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(score.loss, leaves, materialize_grads=True)
    return score.loss.detach(), list(found)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_any_call_is_that_from_logits(call):
    objective, head, trained, reference, options, how = call
    for name in trained:
        head[name].requires_grad_()
    weight, bias = head["weight"], head.get("bias")
    lora = (head["a"], head["b"], 0.5) if "a" in head else None
    own = weight if lora is None else weight + lora[2] * lora[1] @ lora[0]
    shift = 0 if bias is None else bias
    of_reference = None if reference is None else (reference @ weight.T + shift).detach()
    expected = scored(
        objective, head, trained, logits=head["hidden"] @ own.T + shift, reference=of_reference, **options
    )
    of_head = {"hidden": head["hidden"], "weight": weight, "bias": bias, "lora": lora, "reference": reference}
    try:
        found = scored(objective, head, trained, **of_head, **options, **how)
    except ValueError as error:
        assume("is not possible here" not in str(error))
        raise
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9, equal_nan=True)
    size = max(1e-3, *(float(gradient.nan_to_num().abs().max()) for gradient in expected[1]))
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * size, equal_nan=True)
