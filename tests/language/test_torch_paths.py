"""torch.compile, the custom operator, and objectives written in torch."""

import pytest
import torch
import torch.nn.functional as F
from sample_objectives import dpo, listwise, margins, packed, pair_columns, policy_gradient, regression, simpo, tokens
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from prefuse.language import from_torch, pair_objective
from prefuse.scoring import operator

close = torch.testing.assert_close


def test_compiles_to_one_graph():
    def step(chosen, rejected, ref_chosen, ref_rejected, smoothing):
        score = dpo(beta=0.3)(
            chosen_logps=chosen * 2,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            label_smoothing=smoothing,
        )
        return score.loss, score.losses, score.rewards["chosen"], score.metrics["rewards/margins"]

    columns = pair_columns()
    smoothing = torch.full((6,), 0.1, dtype=torch.float64, requires_grad=True)
    order = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    inputs = [*(columns[name] for name in order), smoothing]
    wanted = step(*inputs)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    leaves = [inputs[0], inputs[1], smoothing]
    for mine, theirs in zip(got, wanted, strict=True):
        close(mine, torch.as_tensor(theirs, dtype=torch.float64))
    upstream = torch.arange(6.0).double()
    mine, theirs = ((loss * 2 + (losses * upstream).sum()) for loss, losses, *_ in (got, wanted))
    close(torch.autograd.grad(mine, leaves), torch.autograd.grad(theirs, leaves))


def test_compiled_objective_without_hyper_parameters():
    @pair_objective
    def no_hyper_parameters(pair):
        return (pair.chosen.logp - pair.rejected.logp) ** 2

    def gradient(step):
        chosen, rejected = torch.arange(3.0, requires_grad=True), torch.ones(3)
        return torch.autograd.grad(step(chosen_logps=chosen, rejected_logps=rejected).loss, chosen)[0]

    close(
        gradient(torch.compile(no_hyper_parameters, fullgraph=True, backend="aot_eager")), gradient(no_hyper_parameters)
    )


def test_compiled_score_leaves_the_graph():
    bound = dpo(beta=0.5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(columns):
        return bound(**columns, reduction="sum")

    columns = pair_columns()
    score, wanted = step(columns), bound(**columns, reduction="sum")
    close(score.loss, wanted.loss)
    assert score.metrics == pytest.approx(wanted.metrics)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operator_passes_opcheck(reduction):
    columns = pair_columns()
    arguments = (
        list(columns.values()),
        ",".join(columns),
        dpo._definition.handle,
        "beta=#;label_smoothing=#",
        [0.1, 0.2],
    )
    torch.library.opcheck(operator._objective, (*arguments, reduction))


def test_operator_of_tokens_and_groups():
    values, mask = tokens()
    columns = {
        "logps": values,
        "old_logps": torch.where(mask, values.detach() - 0.1, 0),
        "reward": torch.tensor([1.0, 0.5, 2.0, -1.0]).double(),
        "groups": torch.tensor([4, 2, 4, 2]),
        "mask": mask,
    }
    handle = policy_gradient._definition.handle
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (list(columns.values()), ",".join(columns), handle, "clip=#", [0.2], "mean")
    torch.library.opcheck(operator._objective, arguments, test_utils=checks)
    loss, *_ = operator._objective(*arguments)
    wanted = policy_gradient(**columns).loss
    close(loss, wanted)
    close(torch.autograd.grad(loss, values), torch.autograd.grad(wanted, values))


def test_fake_tensors_flow_through():
    with FakeTensorMode(shape_env=ShapeEnv()):
        columns = {name: torch.empty(5, dtype=torch.bfloat16) for name in pair_columns()}
        score = dpo(**columns)
        assert score.losses.shape == (5,)
        assert score.loss.dtype == torch.float32
        groups = torch.empty(5, dtype=torch.long)
        lists = listwise(logps=torch.empty(5), ref_logps=torch.empty(5), score=torch.empty(5), groups=groups)
        assert lists.losses.ndim == 1


# from_torch


def torch_dpo(pair, *, beta=0.1):
    return -F.logsigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio))


@pytest.mark.parametrize("call", [dpo, dpo.value_and_grad, lambda **columns: dpo(beta=0.3)(**columns, reduction="sum")])
def test_transforms_are_a_clear_error(call):
    columns = {name: column.detach() for name, column in pair_columns().items()}

    def loss(chosen):
        return call(**columns | {"chosen_logps": chosen}).loss

    given = columns["chosen_logps"]
    for transform in (torch.vmap(loss), torch.func.grad(loss), lambda x: torch.func.jvp(loss, (x,), (x,))):
        with pytest.raises(NotImplementedError, match=r"prefuse has no rules for torch\.func"):
            transform(given)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward-mode"),
    ):
        loss(torch.autograd.forward_ad.make_dual(given, given))


def test_from_torch_is_called_alike():
    objective, columns = from_torch(torch_dpo), pair_columns()
    score, wanted = objective(beta=0.3)(**columns), dpo(beta=0.3)(**columns)
    close(score.losses, wanted.losses)
    close(score.loss, wanted.loss)
    close(score.rewards, wanted.rewards)
    assert score.metrics == pytest.approx(wanted.metrics)
    leaves = [columns["chosen_logps"], columns["rejected_logps"]]
    close(torch.autograd.grad(score.loss, leaves), torch.autograd.grad(wanted.loss, leaves))
    mine, theirs = objective.value_and_grad(**columns), dpo.value_and_grad(**columns)
    close(mine.gradients, theirs.gradients)
    assert repr(objective) == "torch_dpo(beta=0.1)"
    close(objective(**columns, reduction="sum").loss, dpo(**columns).losses.sum())


def test_from_torch_differentiates_twice():
    columns = pair_columns(3)
    objective = from_torch(torch_dpo)
    (gradient,) = torch.autograd.grad(objective(**columns).loss, columns["chosen_logps"], create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), columns["chosen_logps"])
    z = 0.1 * margins(columns)
    close(second, (0.01 * torch.sigmoid(z) * torch.sigmoid(-z) / 3).detach())


def test_from_torch_tokens():
    def average(pair, *, beta=2.0, gamma=1.0):
        return -F.logsigmoid(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - gamma)

    values, mask = tokens()
    run, starts = packed(values, mask)
    rejected = {"rejected_logps": torch.full((4,), -3.0).double(), "rejected_lengths": torch.full((4,), 2)}
    objective = from_torch(average, name="simpo")
    wanted = simpo(chosen_token_logps=values, chosen_mask=mask, **rejected)
    close(objective(chosen_token_logps=values, chosen_mask=mask, **rejected).losses, wanted.losses)
    close(objective(chosen_token_logps=run, chosen_cu_seqlens=starts, **rejected).losses, wanted.losses)


def test_from_torch_groups_and_points():
    def centred(group):
        total = torch.zeros(2, dtype=torch.float64).index_add(0, group.index, group.response["score"])
        return total

    groups = torch.tensor([9, 5, 9])
    close(from_torch(centred, "group")(score=torch.tensor([1.0, 2.0, 3.0]).double(), groups=groups).losses,
          torch.tensor([2.0, 4.0]).double())  # fmt: skip

    def squares(response, *, beta=0.1):
        return (beta * response.logratio - response["score"]) ** 2

    x = torch.tensor([1.0, 2.0])
    close(from_torch(squares, "point")(logps=x, ref_logps=x * 0, score=x).losses,
          regression(logps=x, ref_logps=x * 0, score=x).losses)  # fmt: skip


def test_from_torch_messages():
    columns = pair_columns()
    objective = from_torch(torch_dpo)
    with pytest.raises(ValueError, match="kind: expected 'pair', 'point', 'group', 'token', got 'list'"):
        from_torch(torch_dpo, "list")
    with pytest.raises(TypeError, match="torch_dpo does not read 'margin'"):
        objective(**columns, margin=torch.ones(6))
    del columns["rejected_logps"]
    with pytest.raises(TypeError, match="torch_dpo: missing rejected_logps"):
        objective(**columns)
    with pytest.raises(TypeError, match=r"expected a torch.Tensor, got ndarray"):
        objective(**{name: value.detach().numpy() for name, value in columns.items()})
