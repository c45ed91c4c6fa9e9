"""Objectives and batches the tests of calling share."""

import torch

from prefuse.language import Paper, group_objective, log_sigmoid, pair_objective, point_objective, token_objective


@pair_objective(
    paper=Paper("2305.18290", "Direct Preference Optimization", "Rafailov et al. 2023"),
    equation="eq. 7",
    identities=("dpo(label_smoothing=0.0) = plain_dpo",),
    bounds={"beta": "(0, inf)", "label_smoothing": "[0, 0.5)"},
)
def dpo(pair, *, beta=0.1, label_smoothing=0.0):
    """DPO."""
    z = beta * (pair.chosen.logratio - pair.rejected.logratio)
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@pair_objective
def plain_dpo(pair, *, beta=0.1):
    return -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio))


@pair_objective(paper="2405.14734", equation="eq. 6")
def simpo(pair, *, beta=2.0, gamma=1.0):
    """SimPO."""
    return -log_sigmoid(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - gamma)


@pair_objective
def sft(pair):
    return -pair.chosen.avg_logp


@point_objective
def regression(response, *, beta=0.1):
    return (beta * response.logratio - response["score"]) ** 2


@group_objective
def listwise(group):
    return -(group.response["score"].softmax() * group.response.logratio.log_softmax()).sum()


@token_objective
def policy_gradient(token, *, clip=0.2):
    ratio = token.logp - token["old_logps"]
    advantage = token.response["reward"] - token.response["reward"].mean("group")
    return -(advantage * ratio.clamp(-clip, clip)).mean()


def pair_columns(n=6, dtype=torch.float64, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    columns = {name: -10 * torch.rand(n, generator=generator, dtype=torch.float64) for name in names}
    return {
        name: value.to(dtype).requires_grad_(grad and not name.startswith("ref")) for name, value in columns.items()
    }


def margins(columns):
    return (columns["chosen_logps"] - columns["ref_chosen_logps"]) - (
        columns["rejected_logps"] - columns["ref_rejected_logps"]
    )


def tokens(seed=0, dtype=torch.float64):
    """Padded token log-probabilities [4, 5] of which some are masked, one response wholly."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    values = -torch.rand(4, 5, generator=generator, dtype=torch.float64).to(dtype)
    return torch.where(mask, values, float("nan")).requires_grad_(), mask


def packed(values, mask):
    """The same tokens in one run, with the offsets of the responses."""
    starts = torch.zeros(len(mask) + 1, dtype=torch.int32)
    starts[1:] = mask.sum(1).cumsum(0)
    return values.detach()[mask].requires_grad_(), starts
