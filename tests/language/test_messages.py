"""What an author, and a caller, are told when something is wrong."""

import math

import numpy as np
import pytest
import torch
from sample_objectives import dpo, listwise, pair_columns, policy_gradient, regression, sft, simpo, tokens

from prefuse.language import (
    LanguageError,
    group_objective,
    log_sigmoid,
    maximum,
    pair_objective,
    point_objective,
    token_objective,
    where,
)


def message(make, function, **options):
    """The error the first use of an objective raises."""
    objective = make(**options)(function)
    with pytest.raises(LanguageError) as caught:
        _ = objective.columns
    assert str(caught.value).startswith(f"{function.__name__}: ")
    return str(caught.value)


def body(expression):
    def objective(pair, *, beta=0.1):
        return expression(pair, beta)

    return objective


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (lambda p, b: p.chosen.token.logp - p.rejected.token.logp, "token of chosen value cannot meet a token of"),
        (lambda p, b: maximum(p.chosen.token.logp, p.rejected.token.logp), "reduce each to the response first"),
        (lambda p, b: p.chosen.token.logp, "expected one per pair or one for the batch: reduce it first"),
        (lambda p, b: 0.0 if p.chosen.logp > 0 else 1.0, "where(condition, a, b) instead of `if`"),
        (lambda p, b: p.chosen.logp and p.rejected.logp, "& | ~ instead of and, or, not"),
        (lambda p, b: math.exp(p.chosen.logp), "use the functions of prefuse.language instead of math's"),
        (lambda p, b: sum(p.chosen.logp), "not iterable"),
        (lambda p, b: len(p.chosen.logp), "response.length"),
        (lambda p, b: None, "the function returned nothing"),
        (lambda p, b: 1.0, "returned float, not an expression of the pair"),
        (lambda p, b: p.chosen, "returned ResponseView, not an expression"),
        (lambda p, b: p.chosen.logp + torch.ones(3), "Tensor cannot be part of the formula; arrays come in as columns"),
        (lambda p, b: p.chosen.logp + "x", "str cannot be part of the formula"),
        (lambda p, b: p.chosen.logp.sum("response"), "does not lie below the level 'response'"),
        (lambda p, b: p.chosen.logp.sum("sentence"), "no level 'sentence'; levels are response, pair, group, batch"),
        (lambda p, b: p.batch["x"].sum(), "nothing left to reduce"),
        (lambda p, b: p["beta"], "'beta' is both a hyper-parameter and a column"),
        (lambda p, b: p["chosen_mask"], "already says how columns lie"),
        (lambda p, b: p["x"] + p.batch["x"], "'x' would be both a pair column and a batch column"),
        (lambda p, b: p.response("not a name").logp, "cannot name a response"),
        (lambda p, b: (p["x"], 1), "the second value returned must be the rewards"),
        (lambda p, b: (p["x"], p["x"]), "{'chosen': …, 'rejected': …}"),
        (lambda p, b: (p["x"], {"chosen": p.chosen.token.logp}), "the reward chosen is a token of chosen value"),
        (lambda p, b: p.chosen.token.logp.suffix_sum(p["x"]).sum(), "discount"),
    ],
)
def test_pair_messages(expression, said):
    assert said in message(pair_objective, body(expression))


def test_pairs_meet_responses_through_a_side():
    def unprojected(group):
        i, _ = group.pairs()
        return (i(group.response.logp) - group.response.logp).sum()

    def unreduced(group):
        i, j = group.pairs()
        return i(group.response.logp) - j(group.response.logp)

    def wrong_side(group):
        i, _ = group.pairs()
        return i(group.response.token.logp).sum()

    assert "only as i(x) or j(x)" in message(group_objective, unprojected)
    assert "expected one per group or one for the batch" in message(group_objective, unreduced)
    assert "i(x) takes a response value, not a token value" in message(group_objective, wrong_side)


def test_group_loss_of_a_point_objective():
    def objective(response):
        return response.group["x"]

    assert 'finish with .mean("batch")' in message(point_objective, objective)


def test_token_and_response_share_no_name():
    def objective(token):
        return (token["x"] * token.response["x"]).sum()

    assert "'x' would be both a token column and a response column" in message(token_objective, objective)


def test_expressions_of_two_objectives_do_not_mix():
    kept = []

    @pair_objective
    def first(pair):
        kept.append(pair.chosen.logp)
        return kept[0]

    def second(pair):
        return pair.chosen.logp + kept[0]

    _ = first.columns
    assert "an expression of first was used here" in message(pair_objective, second)


def test_functions_need_an_expression():
    with pytest.raises(LanguageError, match="log_sigmoid needs an expression"):
        log_sigmoid(1.0)
    with pytest.raises(LanguageError, match="where needs an expression"):
        where(True, 1.0, 2.0)


@pytest.mark.parametrize(
    "function",
    [lambda: 0, lambda pair, beta: 0, lambda pair, beta=1: 0, lambda pair, *rest: 0, lambda pair, *, beta: 0],
)
def test_signature_is_checked_at_decoration(function):
    with pytest.raises(LanguageError, match=r"first argument|keyword-only"):
        pair_objective(function)


def test_bounds():
    with pytest.raises(ValueError, match=r"label_smoothing: expected a value in \[0, 0.5\), got 0.5"):
        dpo(label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"beta: expected a value in \(0, inf\), got 0.0"):
        dpo(beta=np.array([0.1, 0.0]))
    with pytest.raises(LanguageError, match="bounds are given for gamma"):
        pair_objective(bounds={"gamma": "(0, 1)"})(lambda pair: pair["x"])
    with pytest.raises(LanguageError, match="expected an interval"):
        pair_objective(bounds={"x": "0..1"})(lambda pair, *, x=1.0: pair["y"] * x)


def test_unknown_and_missing_arguments():
    columns = pair_columns()
    with pytest.raises(TypeError, match="dpo does not read 'betta'; did you mean 'beta'"):
        dpo(betta=0.1)
    with pytest.raises(TypeError, match="simpo does not read 'ref_chosen_logps'"):
        simpo(**columns, chosen_lengths=torch.ones(6), rejected_lengths=torch.ones(6))
    del columns["ref_rejected_logps"]
    with pytest.raises(TypeError, match="dpo: missing ref_rejected_logps") as caught:
        dpo(**columns)
    assert "ref_rejected_token_logps with rejected_mask or rejected_cu_seqlens" in str(caught.value)
    with pytest.raises(TypeError, match="missing chosen_lengths"):
        sft(chosen_logps=columns["chosen_logps"])
    with pytest.raises(TypeError, match="value_and_grad needs columns"):
        dpo.value_and_grad()
    with pytest.raises(TypeError, match="regression does not read 'groups'"):
        x = torch.ones(2)
        regression(logps=x, ref_logps=x, score=x, groups=torch.tensor([0, 0]))


def test_types_of_arguments():
    columns = pair_columns()
    with pytest.raises(TypeError, match=r"beta: expected a number or an array .*, got str"):
        dpo(beta="0.1")
    with pytest.raises(TypeError, match=r"beta: expected a number .*, got bool"):
        dpo(beta=True)
    with pytest.raises(TypeError, match=r"chosen_logps: expected a torch.Tensor or a numpy.ndarray, got str"):
        dpo(**{**columns, "chosen_logps": "-1.0"})
    for hostile in ([1.0, "two"], [[1.0], [2.0, 3.0]], [None] * 6, [torch.ones(1, requires_grad=True)]):
        with pytest.raises(TypeError, match=r"chosen_logps: expected a list of numbers, or of rows of one length"):
            dpo(**{**columns, "chosen_logps": hostile})
    for call in (dpo, dpo.value_and_grad):
        with pytest.raises(
            TypeError, match=r"dpo: expected columns and hyper-parameters by name, such as chosen_logps=…, got 1"
        ):
            call(0.2)
    with pytest.raises(TypeError, match=r"give all columns as torch tensors or all as NumPy arrays"):
        dpo(**{**columns, "chosen_logps": np.ones(6)})
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum', 'none', got 'average'"):
        dpo(**columns, reduction="average")
    with pytest.raises(ValueError, match="meta tensor"):
        dpo(**{name: value.detach().to("meta") for name, value in columns.items()})


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_shapes(make):
    columns = {name: make(value.tolist()) for name, value in pair_columns().items()}
    with pytest.raises(ValueError, match=r"rejected_logps: expected one value per pair, shape \[6\], got shape \[5\]"):
        dpo(**{**columns, "rejected_logps": columns["rejected_logps"][:5]})
    with pytest.raises(ValueError, match=r"chosen_logps: expected one value per pair, .*got shape \[6, 1\]"):
        dpo(**{**columns, "chosen_logps": columns["chosen_logps"][:, None]})
    with pytest.raises(ValueError, match=r"beta: expected one value per pair, shape \[6\], got shape \[2\]"):
        dpo(**columns, beta=make([0.1, 0.2]))


def test_token_layouts():
    values, mask = tokens()
    gradient = {"logps": values, "old_logps": values.detach(), "reward": torch.ones(4), "groups": torch.zeros(4).long()}
    with pytest.raises(ValueError, match=r"mask: token columns need either mask \[R, T\]"):
        policy_gradient(**gradient)
    with pytest.raises(ValueError, match="not both"):
        policy_gradient(**gradient, mask=mask, cu_seqlens=torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask: expected shape \[4, T\], got \[3, 5\]"):
        policy_gradient(**gradient, mask=mask[:3])
    with pytest.raises(ValueError, match=r"logps: expected one value per token, shape \[4, 4\], got shape \[4, 5\]"):
        policy_gradient(**gradient, mask=mask[:, :4])
    run = {**gradient, "logps": values[mask], "old_logps": values[mask].detach()}
    with pytest.raises(ValueError, match=r"cu_seqlens: expected integers of shape \[5\]"):
        policy_gradient(**run, cu_seqlens=torch.tensor([0, 3, 11]))
    with pytest.raises(ValueError, match="begin at 0 and never decrease"):
        policy_gradient(**run, cu_seqlens=torch.tensor([0, 4, 3, 8, 11]))
    with pytest.raises(ValueError, match=r"logps: expected one value per token, shape \[9\], got shape \[10\]"):
        policy_gradient(**run, cu_seqlens=torch.tensor([0, 3, 7, 7, 9]))


def test_groups():
    columns = {name: torch.ones(4) for name in ("logps", "ref_logps", "score")}
    with pytest.raises(ValueError, match="groups: missing"):
        listwise(**columns)
    with pytest.raises(ValueError, match="groups: expected one integer id per response"):
        listwise(**columns, groups=torch.ones(4))
    with pytest.raises(ValueError, match=r"score: expected one value per response, shape \[3\], got shape \[4\]"):
        listwise(**columns, groups=torch.tensor([0, 0, 1]))


def test_composition_messages():
    with pytest.raises(LanguageError, match="dpo is a pair objective and regression a point objective"):
        dpo + regression
    with pytest.raises(LanguageError, match="only objectives of one kind combine"):
        dpo.weighted_by(regression)
    with pytest.raises(TypeError, match="weight: expected an objective"):
        dpo.weighted_by(2.0)
    with pytest.raises(TypeError, match="factor: expected a number"):
        "x" * dpo
    with pytest.raises(TypeError, match="expected another objective"):
        dpo + 1.0
    with pytest.raises(ValueError, match="column: simpo reads"):
        simpo.latex("ref_chosen_logps")
