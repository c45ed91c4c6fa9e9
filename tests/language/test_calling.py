"""Calling objectives: arrays, dtypes, gradients, layouts, metrics."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import as_numpy

from examples import (
    dpo,
    listwise,
    margins,
    packed,
    pair_columns,
    plain_dpo,
    policy_gradient,
    regression,
    sft,
    simpo,
    tokens,
)
from prefuse.language import exp, group_objective, pair_objective, point_objective, record, where

close = torch.testing.assert_close


def test_value_and_gradient_against_torch():
    columns = pair_columns()
    score = dpo(**columns, beta=0.3, label_smoothing=0.1)
    z = 0.3 * margins(columns)
    losses = -0.9 * F.logsigmoid(z) - 0.1 * F.logsigmoid(-z)
    close(score.losses, losses)
    close(score.loss, losses.mean())
    leaves = [columns["chosen_logps"], columns["rejected_logps"]]
    close(torch.autograd.grad(score.loss, leaves), torch.autograd.grad(losses.mean(), leaves))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_upstream_on_loss_and_losses_together(reduction):
    columns = pair_columns()
    leaves = [columns["chosen_logps"], columns["rejected_logps"]]
    score = plain_dpo(**columns, reduction=reduction)
    losses = -F.logsigmoid(0.1 * margins(columns))
    loss = losses if reduction == "none" else getattr(losses, reduction)()
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
    mine = (score.loss * 3).sum() + (score.losses * weights).sum() + score.losses[2] ** 2
    theirs = (loss * 3).sum() + (losses * weights).sum() + losses[2] ** 2
    close(torch.autograd.grad(mine, leaves), torch.autograd.grad(theirs, leaves))


def test_second_backward_with_retained_graph():
    columns = pair_columns()
    leaf = columns["chosen_logps"]
    score = dpo(**columns)
    once = torch.autograd.grad(score.loss, leaf, retain_graph=True)[0].clone()
    (torch.autograd.grad(score.loss * 2, leaf, retain_graph=True)[0]).mul_(100)
    close(torch.autograd.grad(score.loss, leaf, retain_graph=True)[0], once)
    close(torch.autograd.grad(score.losses.mean(), leaf)[0], once)


def test_double_backward_is_refused():
    columns = pair_columns()
    score = dpo(**columns)
    (gradient,) = torch.autograd.grad(score.loss, columns["chosen_logps"], create_graph=True)
    close(gradient.detach(), torch.autograd.grad(dpo(**columns).loss, columns["chosen_logps"])[0])
    with pytest.raises(RuntimeError, match="dpo: prefuse objectives give first derivatives only"):
        gradient.sum().backward()


def test_gradcheck():
    columns = pair_columns(3)
    smoothing = torch.full((3,), 0.2, dtype=torch.float64, requires_grad=True)

    def function(chosen, rejected, smoothing):
        score = dpo(**{**columns, "chosen_logps": chosen, "rejected_logps": rejected}, label_smoothing=smoothing)
        return score.loss, score.losses

    assert torch.autograd.gradcheck(function, (columns["chosen_logps"], columns["rejected_logps"], smoothing))


def test_every_float_column_can_require_grad():
    columns = {name: value.detach().requires_grad_() for name, value in pair_columns().items()}
    beta = torch.linspace(0.1, 0.4, 6, dtype=torch.float64, requires_grad=True)
    smoothing = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    z = beta * margins(columns)
    loss = (-(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)).mean()
    leaves = [*columns.values(), beta, smoothing]
    for score in (
        dpo(**columns, beta=beta, label_smoothing=smoothing),
        dpo(beta=beta)(label_smoothing=smoothing)(**columns),
    ):
        close(score.loss, loss)
        close(torch.autograd.grad(score.loss, leaves), torch.autograd.grad(loss, leaves, retain_graph=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    columns = pair_columns(dtype=dtype)
    exact = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in columns.items()}
    score, wanted = dpo(**columns), dpo(**exact)
    assert score.loss.dtype == score.losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(score.losses.double(), wanted.losses, rtol=1e-6, atol=0)
    (score.loss * 65536).backward()
    (wanted.loss * 65536).backward()
    gradient = columns["chosen_logps"].grad
    assert gradient.dtype == dtype
    close(gradient.double(), exact["chosen_logps"].grad, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_mixed_dtypes_and_integers():
    columns = pair_columns(dtype=torch.float32)
    columns["ref_chosen_logps"] = columns["ref_chosen_logps"].bfloat16()
    assert dpo(**columns).loss.dtype == torch.float32
    columns["ref_rejected_logps"] = columns["ref_rejected_logps"].double()
    assert dpo(**columns).loss.dtype == torch.float64
    lengths = {"chosen_lengths": torch.tensor([1, 2, 3, 4, 5, 0]), "rejected_lengths": torch.arange(6).int()}
    policy = {name: value for name, value in pair_columns().items() if not name.startswith("ref")}
    averages = [policy[f"{role}_logps"] / lengths[f"{role}_lengths"].clamp(min=1) for role in ("chosen", "rejected")]
    close(simpo(**policy, **lengths).losses, -F.logsigmoid(2 * (averages[0] - averages[1]) - 1))


def test_strides():
    columns = pair_columns()
    wide = {name: torch.stack([value.detach(), value.detach() + 1], 1) for name, value in columns.items()}
    wide["ref_chosen_logps"] = torch.tensor([[-3.0]]).double().expand(6, 1)
    got = dpo(**{name: value[:, 0] for name, value in wide.items()}).losses
    close(got, dpo(**{name: value[:, 0].clone() for name, value in wide.items()}).losses)
    backwards = {name: value[::-1] for name, value in as_numpy(columns).items()}
    np.testing.assert_array_equal(dpo(**backwards).losses, dpo(**as_numpy(columns)).losses[::-1])


def test_numpy():
    columns = pair_columns()
    score = dpo(**as_numpy(columns))
    wanted = dpo(**columns)
    assert isinstance(score.losses, np.ndarray)
    np.testing.assert_array_equal(score.losses, wanted.losses.detach().numpy())
    wanted.loss.backward()
    np.testing.assert_allclose(score.gradients["chosen_logps"], columns["chosen_logps"].grad.numpy(), rtol=1e-14)
    assert set(score.gradients) == set(columns)
    single = dpo(**{name: value.astype(np.float32) for name, value in as_numpy(columns).items()})
    assert single.losses.dtype == single.gradients["chosen_logps"].dtype == np.float32
    assert single.metrics.keys() == wanted.metrics.keys()


def test_value_and_grad():
    columns = pair_columns()
    score, wanted = dpo.value_and_grad(**columns, beta=0.2), dpo(beta=0.2)(**columns)
    wanted.loss.backward()
    assert not score.loss.requires_grad
    assert set(score.gradients) == {"chosen_logps", "rejected_logps"}
    close(score.gradients["chosen_logps"], columns["chosen_logps"].grad)
    constant = {name: value.detach() for name, value in columns.items()}
    assert set(dpo.value_and_grad(**constant).gradients) == set(columns)
    close(dpo.value_and_grad(**constant, reduction="sum").loss, 6 * dpo(**constant).loss)
    with pytest.raises(AttributeError, match="value_and_grad"):
        _ = wanted.gradients


def test_no_graph_without_need():
    columns = pair_columns()
    with torch.no_grad():
        assert not dpo(**columns).loss.requires_grad
    assert not dpo(**{name: value.detach() for name, value in columns.items()}).loss.requires_grad


@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_empty_batch(make):
    score = dpo(**{name: make(0) for name in pair_columns()})
    assert score.losses.shape == (0,)
    assert float(score.loss) == 0
    empty = {name: torch.zeros(0, requires_grad=True) for name in pair_columns()}
    dpo(**empty).loss.backward()
    assert empty["chosen_logps"].grad.shape == (0,)


def test_inputs_may_change_before_a_plain_backward():
    columns = pair_columns()
    leaf = columns["chosen_logps"]
    wanted = torch.autograd.grad(dpo(**columns).loss, leaf)[0]
    work = {**columns, "chosen_logps": leaf * 1.0}
    score = dpo(**work)
    with torch.no_grad():
        columns["ref_chosen_logps"].add_(5)
    close(torch.autograd.grad(score.loss, leaf)[0], wanted)


# Tokens


def test_padded_and_packed_agree():
    values, mask = tokens()
    run, starts = packed(values, mask)
    old = torch.where(mask, values.detach() - 0.1, 0)
    common = {"reward": torch.tensor([1.0, 0.5, 2.0, -1.0]).double(), "groups": torch.tensor([4, 2, 4, 2])}
    padded = policy_gradient(logps=values, old_logps=old, mask=mask, **common)
    flat = policy_gradient(logps=run, old_logps=old[mask], cu_seqlens=starts, **common)
    assert torch.equal(padded.losses, flat.losses)
    padded.loss.backward()
    flat.loss.backward()
    assert torch.equal(values.grad[mask], run.grad)
    assert not values.grad[~mask].any()


def test_all_masked_response():
    values, mask = tokens()
    score = sft(chosen_token_logps=values, chosen_mask=mask)
    assert score.losses[2] == 0
    score.loss.backward()
    assert values.grad.isfinite().all()
    assert not values.grad[2].any()
    close(score.losses[0], -values.detach()[0, :3].mean())


def test_response_values_from_tokens():
    values, mask = tokens()
    other = torch.where(mask, values.detach() * 0.5, 0)
    summed = torch.where(mask, values, 0).sum(1)
    lengths = mask.sum(1)
    given = {
        "chosen_token_logps": values,
        "chosen_mask": mask,
        "rejected_logps": other.sum(1),
        "rejected_lengths": lengths + 2,
    }
    score = simpo(**given)
    wanted = simpo(
        chosen_logps=summed, chosen_lengths=lengths, rejected_logps=other.sum(1), rejected_lengths=lengths + 2
    )
    close(score.losses, wanted.losses)
    close(torch.autograd.grad(score.loss, values)[0], torch.autograd.grad(wanted.loss, values)[0])
    close(score.metrics["logps/chosen"], summed.mean().item())


def test_length_of_a_mask_alone():
    _, mask = tokens()
    logps = torch.tensor([-3.0, -4.0, 0.0, -3.0])
    close(sft(chosen_logps=logps, chosen_mask=mask).losses, torch.tensor([1.0, 1.0, 0.0, 1.0]))


# Groups


def listwise_columns(order):
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]).double()
    score = torch.tensor([0.3, 0.1, 0.7, 0.2, 0.5]).double()
    groups = torch.tensor([3, 3, 3, 8, 8])
    return {
        "logps": logps[order].requires_grad_(),
        "ref_logps": (logps * 0.8)[order],
        "score": score[order],
        "groups": groups[order],
    }


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
def test_groups_in_any_order(order):
    columns = listwise_columns(order)
    score = listwise(**columns)
    h = (columns["logps"] - columns["ref_logps"])[torch.argsort(torch.tensor(order))]
    s = columns["score"][torch.argsort(torch.tensor(order))]
    wanted = torch.stack([-(s[a:b].softmax(0) * h[a:b].log_softmax(0)).sum() for a, b in ((0, 3), (3, 5))])
    close(score.losses, wanted)
    close(score.rewards, columns["logps"].detach() - columns["ref_logps"])
    close(torch.autograd.grad(score.loss, columns["logps"]), torch.autograd.grad(wanted.mean(), columns["logps"]))
    numpy = listwise(**as_numpy(columns))
    np.testing.assert_allclose(numpy.losses, wanted.detach())
    assert numpy.rewards.shape == (5,)


def test_rectangular_lists():
    generator = torch.Generator().manual_seed(1)
    columns = {name: torch.randn(2, 3, generator=generator) for name in ("logps", "ref_logps", "score")}
    flat = {name: value.reshape(-1) for name, value in columns.items()}
    score = listwise.value_and_grad(**columns)
    wanted = listwise.value_and_grad(**flat, groups=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(score.losses, wanted.losses)
    assert score.rewards.shape == score.gradients["logps"].shape == (2, 3)
    assert torch.equal(score.gradients["logps"].reshape(-1), wanted.gradients["logps"])


def test_pair_columns_of_lists():
    @group_objective
    def online_ipo(group):
        pairs = group.pairs()
        i, j = pairs
        return ((i(group.response.logratio) - j(group.response.logratio) - pairs["target"]) ** 2).mean()

    h, target = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    wanted = ((h[:, :, None] - h[:, None, :] - target) ** 2).mean((1, 2))
    close(online_ipo(logps=h, ref_logps=torch.zeros_like(h), target=target).losses, wanted)
    with pytest.raises(ValueError, match=r"target: expected one value per pair \(i, j\)"):
        online_ipo(logps=h, ref_logps=h, target=target[:, :2])


# Rewards and metrics


def test_metrics_bear_trl_names():
    columns = pair_columns()
    score = dpo(**columns, beta=0.5)
    chosen, rejected = (
        0.5 * (columns[f"{role}_logps"] - columns[f"ref_{role}_logps"]).detach() for role in ("chosen", "rejected")
    )
    wanted = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).double().mean(),
        "logps/chosen": columns["chosen_logps"].mean(),
        "logps/rejected": columns["rejected_logps"].mean(),
    }
    assert list(score.metrics) == list(wanted)
    for name, value in wanted.items():
        assert score.metrics[name] == pytest.approx(value.item(), rel=1e-12)
    close(score.rewards, {"chosen": chosen, "rejected": rejected})
    assert not score.rewards["chosen"].requires_grad


def test_reference_free_rewards():
    policy = {name: value for name, value in pair_columns().items() if not name.startswith("ref")}
    lengths = {"chosen_lengths": torch.full((6,), 2), "rejected_lengths": torch.full((6,), 4)}
    close(simpo(**policy, **lengths).rewards["rejected"], 2.0 * policy["rejected_logps"].detach() / 4)

    @pair_objective
    def cpo(pair):
        return pair.rejected.logp - pair.chosen.logp

    close(cpo(**policy).rewards["chosen"], policy["chosen_logps"].detach())


def test_own_rewards_and_records():
    @pair_objective
    def custom(pair):
        record("odds", pair.chosen.logp - pair.rejected.logp)
        record("delta", pair.batch["delta"])
        return pair.chosen.logp, (pair.chosen.logp * 2, pair["margin"])

    columns = {"chosen_logps": torch.tensor([1.0, 2.0]), "rejected_logps": torch.tensor([0.0, 1.5])}
    score = custom(**columns, margin=torch.tensor([3.0, 4.0]), delta=0.25)
    close(score.rewards, {"chosen": torch.tensor([2.0, 4.0]), "rejected": torch.tensor([3.0, 4.0])})
    assert score.metrics["odds"] == 0.75
    assert score.metrics["delta"] == 0.25
    assert score.metrics["rewards/accuracies"] == 0


def test_labels_split_point_metrics():
    @point_objective
    def kto(response, *, beta=0.1):
        r = beta * response.logratio
        return where(response["label"], -r, r)

    columns = {"logps": torch.tensor([1.0, 2.0, 6.0]), "ref_logps": torch.zeros(3)}
    score = kto(**columns, label=torch.tensor([True, True, False]))
    assert score.metrics["rewards/chosen"] == pytest.approx(0.15)
    assert score.metrics["rewards/rejected"] == pytest.approx(0.6)
    assert score.metrics["logps/rejected"] == 6
    assert score.rewards.shape == (3,)


def test_batch_loss():
    @pair_objective
    def token_mean(pair):
        return -pair.chosen.logp.sum("batch") / pair.chosen.length.sum("batch")

    logps, lengths = torch.tensor([-1.0, -5.0], requires_grad=True), torch.tensor([1, 3])
    score = token_mean(chosen_logps=logps, chosen_lengths=lengths)
    close(score.loss.detach(), torch.tensor(1.5))
    close(score.losses.detach(), torch.tensor([1.5, 1.5]))
    (score.loss + score.losses.sum()).backward()
    close(logps.grad, torch.full((2,), -3 / 4))


# Composition


def test_sum_and_multiple():
    columns = pair_columns()
    lengths = torch.tensor([2, 3, 4, 5, 6, 7])
    mix = 0.8 * dpo(beta=0.3) + sft * 0.5
    assert repr(mix) == "0.8 * dpo(beta=0.3, label_smoothing=0.0) + 0.5 * sft()"
    score = mix(**columns, chosen_lengths=lengths)
    wanted = 0.8 * -F.logsigmoid(0.3 * margins(columns)) - 0.5 * columns["chosen_logps"] / lengths
    close(score.losses, wanted)
    close(
        torch.autograd.grad(score.loss, columns["chosen_logps"]),
        torch.autograd.grad(wanted.mean(), columns["chosen_logps"]),
    )
    close(score.rewards["chosen"], 0.3 * (columns["chosen_logps"] - columns["ref_chosen_logps"]).detach())
    assert (mix + dpo).parameters["dpo_2.beta"] == 0.1
    changed = mix(**{"dpo.beta": 0.7, "sft*": 0.0})(**columns, chosen_lengths=lengths)
    close(changed.losses, 0.8 * dpo(**columns, beta=0.7).losses)


@pytest.mark.parametrize("detach", [True, False])
def test_weighted_by(detach):
    @pair_objective
    def confidence(pair, *, power=1.0):
        return exp(power * (pair.chosen.avg_logp + pair.rejected.avg_logp))

    columns = pair_columns()
    lengths = {f"{role}_lengths": torch.full((6,), 5) for role in ("chosen", "rejected")}
    score = dpo.weighted_by(confidence(power=0.5), detach=detach)(**columns, **lengths)
    weight = torch.exp(0.5 * (columns["chosen_logps"] + columns["rejected_logps"]) / 5)
    wanted = -F.logsigmoid(0.1 * margins(columns)) * (weight.detach() if detach else weight)
    close(score.losses, wanted)
    leaf = columns["chosen_logps"]
    close(torch.autograd.grad(score.loss, leaf), torch.autograd.grad(wanted.mean(), leaf))


def test_weights_as_column_and_array():
    columns = pair_columns()
    weights = torch.linspace(0, 1, 6, dtype=torch.float64)
    wanted = dpo(**columns).losses * weights
    close(dpo.weighted_by("importance")(**columns, importance=weights).losses, wanted)
    close(dpo.weighted_by(weights)(**columns).losses, wanted)


# Caches and threads


def test_hyper_parameters_are_run_time_values():
    definition = plain_dpo._definition
    columns = pair_columns()
    plain_dpo(**columns)
    traces = len(definition._traces)
    for beta in (0.1, 0.2, 5, np.float32(0.5)):
        close(plain_dpo(**columns, beta=beta).losses, -F.logsigmoid(float(beta) * margins(columns)))
    assert len(definition._traces) == traces


def test_structural_hyper_parameters():
    @pair_objective
    def either(pair, *, squared=False, target=None):
        margin = pair.chosen.logp - pair.rejected.logp
        margin = margin if target is None else margin - target
        return margin**2 if squared else margin

    columns = {"chosen_logps": torch.tensor([3.0]), "rejected_logps": torch.tensor([1.0])}
    assert either(**columns).loss == 2
    assert either(squared=True)(**columns).loss == 4
    assert either(squared=True, target=1.5)(**columns).loss == 0.25
    with pytest.raises(TypeError, match="squared: expected a bool, got int"):
        either(squared=1)


def test_threads_share_one_trace():
    @pair_objective
    def fresh(pair, *, beta=0.1):
        return -((beta * pair.chosen.logratio) ** 2)

    columns = {name: value for name, value in pair_columns().items() if "chosen" in name}
    losses, errors = [], []

    def work():
        try:
            losses.append(fresh(**columns).loss.item())
        except Exception as error:  # reported below, in the main thread
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(set(losses)) == 1
    assert len(fresh._definition._traces) == 1


def test_point_objective_needs_no_groups():
    x = torch.tensor([1.0, 2.0])
    close(regression(logps=x, ref_logps=x * 0, score=x).losses, (0.1 * x - x) ** 2)
