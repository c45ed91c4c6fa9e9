"""preference_loss, pair_loss and dpo_loss against the formulas written in plain PyTorch, from logits to gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from prefuse import objectives
from prefuse._backends.rows import names_of
from prefuse.functional import response_lengths, sequence_logps, token_logps
from prefuse.language import clamp as clip
from prefuse.language import exp as exponential
from prefuse.language import (
    from_torch,
    group_objective,
    log_sigmoid,
    minimum,
    pair_objective,
    point_objective,
    sigmoid,
    square,
    token_objective,
)
from prefuse.losses.preference import dpo_loss, pair_loss, preference_loss
from tests.devices import normal, on_the_cpu

pytestmark = pytest.mark.usefixtures("device")

V, B, T = 11, 3, 6


@pair_objective
def plain_dpo(pair, *, beta=0.1):
    return -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio))


@pair_objective
def plain_simpo(pair, *, beta=2.0, gamma=1.0):
    return -log_sigmoid(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - gamma)


@pair_objective
def with_token_kl(pair, *, beta=0.5):
    """A margin with per-token columns of both roles, and a column of the caller's."""
    drift = (pair.chosen.token["kl"] * pair.chosen.token["weight"]).sum() - pair.rejected.token["kl"].sum()
    entropy = pair.rejected.token["entropy"].mean()
    return -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio) - 0.1 * drift) + 0.01 * entropy


@pair_objective
def three_roles(pair):
    other = pair.response("blind")
    return square(pair.chosen.logp - pair.rejected.logp - 0.5 * other.logp)


@pair_objective
def only_chosen(pair):
    return -pair.chosen.avg_logp


@point_objective
def point_loss(response, *, beta=0.1):
    return 1 - sigmoid(beta * response.logratio * response["sign"])


@group_objective
def group_loss(group):
    return -(group.response.logp.softmax() * group.response["score"]).sum()


@token_objective
def clipped_token(token, *, epsilon=0.2):
    ratio = exponential(token.logp - token.ref_logp)
    advantage = token.response["advantage"]
    return -minimum(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon) * advantage).mean()


@on_the_cpu
def batch(rows=2 * B, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, T, V, generator=generator, dtype=torch.float64).to(dtype)
    reference = 2 * torch.randn(rows, T, V, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, V, (rows, T), generator=generator)
    labels[torch.rand(rows, T, generator=generator) < 0.3] = -100
    labels[0, 1] = 4  # no response is empty
    return logits, reference, labels


def plain_logps(logits, labels):
    inside = labels != -100
    picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(inside, picked, 0.0)


def plain_kl(logits, reference, labels):
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    return torch.where(labels != -100, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)


def plain_entropy(logits, labels):
    log_p = logits.log_softmax(-1)
    return torch.where(labels != -100, -(log_p.exp() * log_p).sum(-1), 0.0)


def expected_dpo(logits, reference, labels, beta=0.1):
    h = (plain_logps(logits, labels) - plain_logps(reference, labels)).sum(-1)
    return -F.logsigmoid(beta * (h[:B] - h[B:]))


def expected_simpo(logits, reference, labels, beta=2.0, gamma=1.0):
    average = plain_logps(logits, labels).sum(-1) / (labels != -100).sum(-1).clamp(min=1)
    return -F.logsigmoid(beta * (average[:B] - average[B:]) - gamma)


def agree(got, expected, leaf, plain_leaf):
    """Loss, losses and the gradient that reaches the logits."""
    torch.testing.assert_close(got.losses, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got.loss, expected.mean(), rtol=1e-12, atol=1e-13)
    (grad,) = torch.autograd.grad(got.loss, leaf)
    (plain_grad,) = torch.autograd.grad(expected.mean(), plain_leaf)
    torch.testing.assert_close(grad, plain_grad, rtol=1e-10, atol=1e-13)
    assert grad.abs().max() > 1e-4


def two_leaves(logits):
    return logits.clone().requires_grad_(), logits.clone().requires_grad_()


def test_dpo_from_reference_logits():
    logits, reference, labels = batch()
    x, y = two_leaves(logits)
    got = preference_loss(plain_dpo, logits=x, labels=labels, reference=reference, beta=0.3)
    agree(got, expected_dpo(y, reference, labels, beta=0.3), x, y)
    h = (plain_logps(logits, labels) - plain_logps(reference, labels)).sum(-1)
    torch.testing.assert_close(got.rewards["chosen"], 0.3 * h[:B])
    torch.testing.assert_close(got.rewards["rejected"], 0.3 * h[B:])


@pytest.mark.parametrize("form", ["tokens", "responses"])
def test_dpo_from_reference_log_probabilities(form):
    logits, reference, labels = batch()
    x, y = two_leaves(logits)
    given = token_logps(reference, labels) if form == "tokens" else sequence_logps(reference, labels)
    agree(
        preference_loss(plain_dpo, logits=x, labels=labels, reference=given), expected_dpo(y, reference, labels), x, y
    )


def test_reference_log_probabilities_count_only_where_tokens_are_scored():
    logits, reference, labels = batch()
    given = token_logps(reference, labels)
    given[labels == -100] = float("nan")
    got = preference_loss(plain_dpo, logits=logits, labels=labels, reference=given)
    torch.testing.assert_close(got.losses, expected_dpo(logits, reference, labels))


def test_reference_columns_by_name():
    logits, reference, labels = batch()
    chosen, rejected = sequence_logps(reference, labels).split(B)
    got = preference_loss(plain_dpo, logits=logits, labels=labels, ref_chosen_logps=chosen, ref_rejected_logps=rejected)
    torch.testing.assert_close(got.losses, expected_dpo(logits, reference, labels))


def test_lengths_are_gathered_where_they_are_read():
    logits, _, labels = batch()
    x, y = two_leaves(logits)
    agree(preference_loss(plain_simpo, logits=x, labels=labels), expected_simpo(y, None, labels), x, y)


def test_mask_and_labels_say_the_same():
    logits, _, labels = batch()
    filled = labels.clamp(min=0)
    by_mask = preference_loss(plain_simpo, logits=logits, labels=filled, mask=labels != -100)
    assert torch.equal(by_mask.losses, preference_loss(plain_simpo, logits=logits, labels=labels).losses)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduction(reduction):
    logits, _, labels = batch()
    got = preference_loss(plain_simpo, logits=logits, labels=labels, reduction=reduction)
    expected = expected_simpo(logits, None, labels)
    torch.testing.assert_close(got.loss, expected if reduction == "none" else getattr(expected, reduction)())


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"softcap": 2.0}, {"scale": 0.5}], ids=str)
def test_transforms_apply_to_policy_and_reference(options):
    logits, reference, labels = batch()
    got = preference_loss(plain_dpo, logits=logits, labels=labels, reference=reference, **options)

    def transformed(x):
        x = x * options.get("scale", 1.0)
        x = options["softcap"] * torch.tanh(x / options["softcap"]) if "softcap" in options else x
        return x / options.get("temperature", 1.0)

    torch.testing.assert_close(got.losses, expected_dpo(transformed(logits), transformed(reference), labels))


def expected_token_kl(logits, reference, labels, weight):
    h = (plain_logps(logits, labels) - plain_logps(reference, labels)).sum(-1)
    kl, scored = plain_kl(logits, reference, labels), labels != -100
    drift = (kl[:B] * torch.where(scored[:B], weight, 0.0)).sum(-1) - kl[B:].sum(-1)
    entropy = plain_entropy(logits, labels)[B:].sum(-1) / scored[B:].sum(-1).clamp(min=1)
    return -F.logsigmoid(0.5 * (h[:B] - h[B:]) - 0.1 * drift) + 0.01 * entropy


def test_token_columns_padded():
    logits, reference, labels = batch()
    weight = torch.rand(B, T, dtype=torch.float64)
    x, y = two_leaves(logits)
    got = preference_loss(with_token_kl, logits=x, labels=labels, reference=reference, chosen_token_weight=weight)
    agree(got, expected_token_kl(y, reference, labels, weight), x, y)


def pack(labels, lengths):
    """The first `lengths` tokens of each row end to end, and where they begin."""
    inside = torch.arange(labels.shape[1]) < torch.tensor(lengths)[:, None]
    return inside, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("batch_of_one", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_packed_equals_padded(shift, batch_of_one):
    """Every form of column, in both layouts, with and without shifted labels; prompts are inside the packed rows."""
    logits, reference, labels = batch()
    lengths = [6, 4, 5, 3, 6, 2]
    inside, cu_seqlens = pack(labels, lengths)
    labels[~inside] = -100
    weight = torch.rand(B, T, dtype=torch.float64)
    x, y = two_leaves(logits)
    options = {"shift": shift, "beta": 0.4}
    padded = preference_loss(
        with_token_kl, logits=x, labels=labels, reference=reference, chosen_token_weight=weight, **options
    )
    lead = (lambda t: t[None]) if batch_of_one else (lambda t: t)
    packed = preference_loss(
        with_token_kl,
        logits=lead(y[inside]),
        labels=lead(labels[inside]),
        reference=lead(reference[inside]),
        cu_seqlens=cu_seqlens,
        chosen_token_weight=weight[inside[:B]],
        **options,
    )
    agree(packed, padded.losses, y, x)


@pytest.mark.parametrize("form", ["logits", "tokens", "responses"])
def test_shift_scores_each_token_with_the_logits_before_it(form):
    logits, reference, labels = batch()
    x, y = two_leaves(logits)
    given = reference
    if form == "tokens":  # at the labels' places
        given = F.pad(token_logps(reference[:, :-1], labels[:, 1:]), (1, 0), value=float("nan"))
    elif form == "responses":
        given = sequence_logps(reference[:, :-1], labels[:, 1:])
    got = preference_loss(plain_dpo, logits=x, labels=labels, reference=given, shift=True)
    agree(got, expected_dpo(y[:, :-1], reference[:, :-1], labels[:, 1:]), x, y)


def test_shift_aligns_token_columns_with_labels():
    logits, reference, labels = batch()
    weight = torch.rand(B, T, dtype=torch.float64)
    got = preference_loss(
        with_token_kl, logits=logits, labels=labels, reference=reference, chosen_token_weight=weight, shift=True
    )
    expected = expected_token_kl(logits[:, :-1], reference[:, :-1], labels[:, 1:], weight[:, 1:])
    torch.testing.assert_close(got.losses, expected)


def test_further_roles_follow():
    logits, _, labels = batch(rows=3 * B)
    x, y = two_leaves(logits)
    sums = plain_logps(y, labels).sum(-1)
    expected = (sums[:B] - sums[B : 2 * B] - 0.5 * sums[2 * B :]).square()
    agree(preference_loss(three_roles, logits=x, labels=labels), expected, x, y)


def test_an_objective_of_chosen_only_still_takes_pairs():
    logits, _, labels = batch()
    got = preference_loss(only_chosen, logits=logits, labels=labels)
    torch.testing.assert_close(got.losses, -sequence_logps(logits, labels, average=True)[:B])


def test_point_objective():
    logits, reference, labels = batch()
    sign = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    x, y = two_leaves(logits)
    h = (plain_logps(y, labels) - plain_logps(reference, labels)).sum(-1)
    got = preference_loss(point_loss, logits=x, labels=labels, reference=reference, sign=sign)
    agree(got, 1 - torch.sigmoid(0.1 * h * sign), x, y)


def test_group_objective():
    logits, _, labels = batch()
    score, groups = torch.rand(6, dtype=torch.float64), torch.tensor([5, 2, 5, 2, 2, 5])
    x, y = two_leaves(logits)
    sums = plain_logps(y, labels).sum(-1)
    expected = torch.stack([-(sums[groups == g].softmax(0) * score[groups == g]).sum() for g in (2, 5)])
    agree(preference_loss(group_loss, logits=x, labels=labels, groups=groups, score=score), expected, x, y)


@pytest.mark.parametrize("packed", [False, True])
def test_token_objective(packed):
    logits, reference, labels = batch()
    labels[:, 0] = 1
    advantage = torch.tensor([1.0, -1, 0.5, 2, -0.5, 1], dtype=torch.float64)
    x, y = two_leaves(logits)
    ratio = (plain_logps(y, labels) - plain_logps(reference, labels)).exp()
    surrogate = -torch.minimum(ratio * advantage[:, None], ratio.clamp(0.8, 1.2) * advantage[:, None])
    scored = labels != -100
    expected = (surrogate * scored).sum(-1) / scored.sum(-1)
    if packed:
        got = preference_loss(
            clipped_token,
            logits=x.flatten(0, 1),
            labels=labels.flatten(),
            reference=token_logps(reference, labels).flatten(),
            cu_seqlens=torch.arange(7) * T,
            advantage=advantage,
        )
    else:
        got = preference_loss(clipped_token, logits=x, labels=labels, reference=reference, advantage=advantage)
    agree(got, expected, x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_step_of_dpo_is_log_two_exactly(dtype):
    """A policy equal to its reference has the same bits, so the margin is exactly 0."""
    logits, _, labels = batch(dtype=dtype)
    got = preference_loss(plain_dpo, logits=logits, labels=labels, reference=logits.clone())
    assert got.losses.tolist() == [torch.tensor(math.log(2)).item()] * B


def test_inplace_gives_the_same_gradient_in_the_logits():
    logits, reference, labels = batch(dtype=torch.float32)
    weight = normal(V, V, seed=1).requires_grad_()
    grads = []
    for inplace in (False, True):
        x = logits @ weight
        got = preference_loss(plain_dpo, logits=x, labels=labels, reference=reference, inplace=inplace)
        before = x.detach().clone()
        grads.append(torch.autograd.grad(got.loss, weight)[0])
        assert torch.equal(before, x.detach()) != inplace
    assert torch.equal(*grads)


def test_all_masked_response_contributes_nothing():
    logits, reference, labels = batch()
    labels[B] = -100
    x = logits.clone().requires_grad_()
    for objective, given in ((plain_dpo, reference), (plain_simpo, None)):
        got = preference_loss(objective, logits=x, labels=labels, reference=given)
        assert got.losses.isfinite().all()
        (grad,) = torch.autograd.grad(got.loss, x)
        assert grad.isfinite().all()
        assert not grad[B].any()
        assert grad[0].any()
    everything = torch.full_like(labels, -100)
    got = preference_loss(plain_dpo, logits=x, labels=everything, reference=reference)
    got.loss.backward()
    assert not x.grad.any()


def test_nan_in_prompt_logits_does_no_harm():
    logits, reference, labels = batch()
    expected = preference_loss(plain_dpo, logits=logits, labels=labels, reference=reference).loss
    logits[labels == -100] = float("nan")
    reference[labels == -100] = float("inf")
    x = logits.requires_grad_()
    got = preference_loss(plain_dpo, logits=x, labels=labels, reference=reference)
    assert got.loss.item() == expected.item()
    got.loss.backward()
    assert x.grad.isfinite().all()


def test_only_what_is_read_is_gathered():
    logits, reference, labels = batch()
    asked = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if str(function).startswith("prefuse.token_stats"):
                asked.append((names_of(args[9]), args[3] is not None))
            return function(*args, **(kwargs or {}))

    with Spy():
        preference_loss(plain_simpo, logits=logits, labels=labels)
        preference_loss(plain_dpo, logits=logits, labels=labels, reference=reference)
        preference_loss(plain_dpo, logits=logits, labels=labels, reference=sequence_logps(reference, labels))
    assert asked[:2] == [(("logp",), False), (("logp", "ref_logp"), True)]
    assert asked[-1] == (("logp",), False)


def test_what_is_gathered_depends_on_the_settings():
    logits, reference, labels = batch()
    given = {"logits": logits, "labels": labels, "reference": reference}
    summed, averaged = (preference_loss("ipo", average=average, **given).loss for average in (False, True))
    assert not torch.isclose(summed, averaged)
    torch.testing.assert_close(summed, preference_loss(objectives.ipo(average=False), **given).loss)


class TestLogProbabilitiesAtHand:
    @pytest.fixture(autouse=True)
    def columns(self, device):
        self.chosen, self.rejected = torch.tensor([-3.5, -3.5]), torch.tensor([-6.5, -3.0])
        self.ref_chosen, self.ref_rejected = torch.tensor([-3.75, -4.5]), torch.tensor([-5.25, -3.0])

    def test_dpo_loss(self):
        chosen = self.chosen.clone().requires_grad_()
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen, self.rejected, self.ref_chosen, self.ref_rejected, beta=0.2, label_smoothing=0.1
        )
        margin = 0.2 * torch.tensor([1.5, 1.0])
        torch.testing.assert_close(losses, -0.9 * F.logsigmoid(margin) - 0.1 * F.logsigmoid(-margin))
        torch.testing.assert_close(chosen_rewards, 0.2 * torch.tensor([0.25, 1.0]))
        torch.testing.assert_close(rejected_rewards, 0.2 * torch.tensor([-1.25, 0.0]))
        assert not chosen_rewards.requires_grad
        losses.sum().backward()
        torch.testing.assert_close(chosen.grad, 0.2 * (torch.sigmoid(margin) - 0.9))

    @pytest.mark.cpu
    def test_dpo_loss_positionally_and_in_numpy(self):
        arrays = [t.numpy() for t in (self.chosen, self.rejected, self.ref_chosen, self.ref_rejected)]
        losses, *_ = dpo_loss(*arrays, 0.1)
        expected = -F.logsigmoid(0.1 * torch.tensor([1.5, 1.0]))
        torch.testing.assert_close(torch.from_numpy(losses), expected)

    def test_pair_loss_without_reference(self):
        lengths = {"chosen_lengths": torch.tensor([3, 4]), "rejected_lengths": torch.tensor([5, 2])}
        losses, chosen_rewards, _ = pair_loss(plain_simpo, self.chosen, self.rejected, gamma=0.5, **lengths)
        average = self.chosen / lengths["chosen_lengths"], self.rejected / lengths["rejected_lengths"]
        torch.testing.assert_close(losses, -F.logsigmoid(2 * (average[0] - average[1]) - 0.5))
        torch.testing.assert_close(chosen_rewards, 2 * average[0])

    @pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "simpo", "orpo", "cpo", "exo", "apo_zero"])
    def test_by_name(self, name):
        given = [self.chosen, self.rejected]
        if name not in ("simpo", "orpo", "cpo"):
            given += [self.ref_chosen, self.ref_rejected]
        lengths = {}
        if name in ("ipo", "simpo", "orpo", "cpo"):
            lengths = {"chosen_lengths": torch.tensor([3, 4]), "rejected_lengths": torch.tensor([5, 2])}
        reads = __import__("prefuse.objectives", fromlist=["get"]).get(name).columns
        losses, *_ = pair_loss(name, *given, **{n: v for n, v in lengths.items() if n in reads})
        assert losses.shape == (2,)
        assert losses.isfinite().all()


class TestRefusals:
    def call(self, objective=plain_dpo, **changes):
        logits, reference, labels = batch()
        return preference_loss(objective, **{"logits": logits, "labels": labels, "reference": reference} | changes)

    def test_missing_reference(self):
        with pytest.raises(ValueError, match=r"reference: missing, and plain_dpo reads ref_chosen_logps"):
            self.call(reference=None)

    def test_reference_nobody_reads(self):
        with pytest.raises(ValueError, match="reference: given, but plain_simpo reads nothing of a reference"):
            self.call(plain_simpo)

    def test_reference_of_another_shape(self):
        with pytest.raises(ValueError, match=r"reference: expected the shape of logits, \(6, 6, 11\), of labels"):
            self.call(reference=torch.zeros(5))

    def test_reference_too_coarse(self):
        weight = torch.ones(B, T, dtype=torch.float64)
        with pytest.raises(
            ValueError, match="reference: expected reference logits, from which chosen_token_kl is made"
        ):
            self.call(with_token_kl, reference=torch.zeros(6), chosen_token_weight=weight)
        with pytest.raises(ValueError, match="reference: expected a value per token, as ref_logps has"):
            self.call(clipped_token, reference=torch.zeros(6), advantage=torch.zeros(6))

    def test_odd_number_of_responses(self):
        logits, reference, labels = batch(rows=5)
        with pytest.raises(ValueError, match="labels: expected as many responses of each role, chosen, then rejected"):
            self.call(logits=logits, labels=labels, reference=reference)

    def test_missing_and_unknown_columns(self):
        with pytest.raises(TypeError, match="sign"):
            self.call(point_loss)
        with pytest.raises(TypeError, match="nonsense"):
            self.call(nonsense=torch.zeros(3))

    def test_what_is_not_an_objective(self):
        with pytest.raises(TypeError, match="objective: expected an Objective or the name of one, got int"):
            self.call(3)
        with pytest.raises(ValueError, match="dpo"):
            self.call("dop")
        with pytest.raises(TypeError, match="objective: by_hand is written in torch"):
            self.call(from_torch(lambda pair: pair.chosen.logp, name="by_hand"))
        with pytest.raises(ValueError, match="objective: expected a pair objective, got point_loss"):
            pair_loss(point_loss, torch.zeros(2), torch.zeros(2))


def test_lengths_of_responses():
    _, _, labels = batch()
    assert response_lengths(labels).tolist() == (labels != -100).sum(-1).tolist()
    assert response_lengths(labels, shift=True).tolist() == (labels[:, 1:] != -100).sum(-1).tolist()
    inside, cu_seqlens = pack(labels, [6, 4, 5, 3, 6, 2])
    packed = response_lengths(labels[inside], cu_seqlens=cu_seqlens, shift=True)
    assert packed.tolist() == ((labels != -100) & inside)[:, 1:].sum(-1).tolist()
    assert response_lengths(labels.cpu().numpy()).tolist() == (labels != -100).sum(-1).tolist()


@pytest.mark.parametrize("source", ["logits", "hidden"])
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("bradley_terry", "chosen_reward"),
        ("diffusion_dpo", "chosen_"),
        ("seppo", "chosen_"),
        ("gpm", "chosen_"),
        ("pf_ppo_weight", ""),
    ],
)
def test_columns_that_nothing_is_gathered_for_are_said_to_be_missing(name, first, source):
    labels = torch.zeros(4, 5, dtype=torch.int64)
    rows = (
        {"logits": normal(4, 5, V, seed=1)}
        if source == "logits"
        else {"hidden": normal(4, 5, 7, seed=1), "weight": normal(V, 7, seed=2)}
    )
    with pytest.raises(TypeError, match=rf"{name}: missing {first}"):
        preference_loss(name, labels=labels, **rows)
