"""Statistics over a sampler's support, beside its definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse import Support
from tests.devices import integers, normal

STATS = ("logp", "lse", "entropy", "log_sum_sq")
SUPPORTS = {
    "top-k": Support(top_k=5),
    "top-1": Support(top_k=1),
    "top-p": Support(top_p=0.8),
    "least top-p": Support(top_p=1e-9),
    "min-p": Support(min_p=0.1),
    "all three": Support(top_k=9, top_p=0.9, min_p=0.02),
    "nothing": Support(),
    "more than there are": Support(top_k=10**6, top_p=1.0, min_p=0.0),
}


def kept(row: list[float], support: Support, label: int) -> set[int]:
    """Which classes of a row of z may be drawn, one rule after the other, and the label."""
    classes = set(range(len(row)))
    highest = max(row)
    if support.min_p:
        classes = {j for j in classes if math.exp(row[j] - highest) >= support.min_p}
    if support.top_k is not None:
        by_size = sorted(classes, key=lambda j: -row[j])
        classes = {j for j in classes if row[j] >= row[by_size[: support.top_k][-1]]}
    if support.top_p < 1:
        total, reached, last = sum(math.exp(row[j] - highest) for j in classes), 0.0, highest
        for j in sorted(classes, key=lambda j: -row[j]):
            if reached >= support.top_p:
                break
            reached, last = reached + math.exp(row[j] - highest) / total, row[j]
        classes = {j for j in classes if row[j] >= last}
    return classes | {label}


def exact(z: Tensor, labels: Tensor, support: Support) -> list[Tensor]:
    """The statistics in float64 of z [N, V], differentiable."""
    mask = torch.ones_like(z, dtype=torch.bool)
    for n, (row, label) in enumerate(zip(z.detach().double().tolist(), labels.tolist(), strict=True)):
        mask[n, list(kept(row, support, label))] = False
    log_p = z.masked_fill(mask, -math.inf).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(mask, 0.0)).sum(-1)
    own = log_p.gather(-1, labels[:, None])[:, 0]
    return [own, z.masked_fill(mask, -math.inf).logsumexp(-1), entropy, (2 * log_p).logsumexp(-1)]


def transformed(x: Tensor, temperature: Any, softcap: float | None, scale: float) -> Tensor:
    z = x * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return z / (temperature[:, None].to(z.dtype) if isinstance(temperature, Tensor) else temperature)


TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "by token": {"temperature": torch.linspace(0.4, 2.0, 24)},
    "soft cap": {"softcap": 4.0, "scale": 1.5},
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", SUPPORTS)
def test_logits_as_in_float64(name: str, transform: str) -> None:
    options, support = TRANSFORMS[transform], SUPPORTS[name]
    logits, labels = (3 * normal(24, 31, seed=0)).requires_grad_(), integers(31, 24, seed=1)
    found = prefuse.token_stats(logits, labels, STATS, support=support, **options)
    up = [normal(24, seed=seed).double() for seed in range(3)]
    right = logits.detach().double().requires_grad_()
    z = transformed(right, options.get("temperature", 1.0), options.get("softcap"), options.get("scale", 1.0))
    expected = exact(z, labels, support)
    for statistic, value in zip(STATS, expected, strict=True):
        torch.testing.assert_close(found[statistic].double(), value, rtol=2e-6, atol=4e-6, msg=statistic)
    sums = [
        sum((a.double() * b).sum() for a, b in zip(each, up, strict=False)) for each in (list(found.values()), expected)
    ]
    (gradient,), (exact_gradient,) = torch.autograd.grad(sums[0], logits), torch.autograd.grad(sums[1], right)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("workspace", [1, 20_000, 1 << 28])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["top-k", "top-p", "all three"])
def test_hidden_states_as_their_logits(name: str, dtype: torch.dtype, workspace: int) -> None:
    """To the bit in value where the tiles are the same, and close in the gradients."""
    hidden, weight = normal(2, 12, 16, seed=0).to(dtype), normal(31, 16, seed=1).to(dtype)
    bias, labels = normal(31, seed=2).to(dtype), integers(31, 2, 12, seed=3)
    labels[0, :4] = -100
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5] = False
    hidden[0, 0] = hidden[1, 5] = torch.nan  # never read
    leaves = [each.clone().requires_grad_() for each in (hidden, weight, bias)]
    options: dict[str, Any] = {"mask": mask, "temperature": 0.7, "support": SUPPORTS[name]}
    found = prefuse.linear_token_stats(
        leaves[0], leaves[1], labels, STATS, bias=leaves[2], workspace_bytes=workspace, **options
    )
    others = [each.nan_to_num().clone().requires_grad_() for each in (hidden, weight, bias)]
    logits = torch.nn.functional.linear(*others)
    expected = prefuse.token_stats(logits, labels, STATS, **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for statistic in STATS:
        assert found[statistic].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not found[statistic][0, :4].any() and found[statistic][1, 5] == 0
        torch.testing.assert_close(found[statistic], expected[statistic], rtol=tolerance, atol=tolerance)
    sums = [(each.logp * normal(2, 12, seed=4)).sum() + each.entropy.sum() for each in (found, expected)]
    for a, b in zip(torch.autograd.grad(sums[0], leaves), torch.autograd.grad(sums[1], others), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("workspace", [1, 1 << 28])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["top-k", "top-p", "all three"])
def test_an_adapter_on_the_head(name: str, frozen: bool, workspace: int) -> None:
    """Beside float64 of the weight that the adapter makes."""
    hidden, weight = normal(2, 12, 16, seed=0).double(), normal(31, 16, seed=1).double()
    a, b, labels = normal(3, 16, seed=2).double(), normal(31, 3, seed=3).double(), integers(31, 2, 12, seed=4)
    labels[0, :4] = -100
    leaves = [each.requires_grad_() for each in (hidden, a, b, *(() if frozen else (weight,)))]
    found = prefuse.linear_token_stats(
        hidden, weight, labels, STATS, lora=(a, b, 0.5), support=SUPPORTS[name], workspace_bytes=workspace
    )
    scored = labels != -100
    logits = hidden[scored] @ (weight + 0.5 * b @ a).T
    expected = exact(logits, labels[scored], SUPPORTS[name])
    for statistic, value in zip(STATS, expected, strict=True):
        torch.testing.assert_close(found[statistic][scored], value, rtol=1e-12, atol=1e-12)
    up = normal(20, seed=5).double()
    sums = [(each * up).sum() for each in (found.logp[scored] + found.entropy[scored], expected[0] + expected[2])]
    for ours, right in zip(*(torch.autograd.grad(total, leaves) for total in sums), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-11)


def test_only_what_wants_a_gradient_gets_one() -> None:
    hidden, weight = normal(12, 16, seed=0).requires_grad_(), normal(31, 16, seed=1)
    labels = integers(31, 12, seed=3)
    found = prefuse.linear_token_stats(
        hidden, weight, labels, ("logp", "entropy", "top1"), support=Support(top_k=3), differentiable=("logp",)
    )
    assert found.logp.requires_grad and not found.entropy.requires_grad and not found.top1.requires_grad
    found.logp.sum().backward()
    assert found.plan is None and hidden.grad is not None


def test_the_label_and_ties_are_kept() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0, 1.0, -5.0]] * 2)
    found = prefuse.token_logps(logits, torch.tensor([2, 4]), support=Support(top_k=2))
    of_three, and_label = torch.tensor([3.0, 2, 2]), torch.tensor([3.0, 2, 2, -5])
    torch.testing.assert_close(found, torch.stack([2 - of_three.logsumexp(0), -5 - and_label.logsumexp(0)]))


def test_odd_rows() -> None:
    logits = torch.full((4, 5), -math.inf)
    logits[1, 2] = 1.0
    logits[2] = torch.tensor([1.0, math.nan, 0.0, 0.0, 0.0])
    found = prefuse.token_stats(logits, torch.tensor([0, 2, 0, -100]), ("logp",), support=Support(top_k=2, top_p=0.5))
    assert found.logp[0] == -math.inf and found.logp[1] == 0 and found.logp[2].isnan() and found.logp[3] == 0


def test_nothing_is_scored() -> None:
    hidden, weight = normal(3, 4, seed=0).requires_grad_(), normal(7, 4, seed=1).requires_grad_()
    found = prefuse.linear_token_logps(hidden, weight, torch.full((3,), -100), support=Support(top_k=2))
    found.sum().backward()
    assert not found.any() and hidden.grad is not None and not hidden.grad.any()


def test_numpy() -> None:
    logits, labels = normal(6, 11, seed=0), integers(11, 6, seed=1)
    found = prefuse.token_stats(logits.numpy(), labels.numpy(), "logp", support=Support(top_p=0.5)).logp
    torch.testing.assert_close(
        torch.from_numpy(found), prefuse.token_stats(logits, labels, support=Support(top_p=0.5)).logp
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k: expected at least 1, or None for all, got 0"),
        ({"top_p": 0.0}, r"top_p: expected 0 < p <= 1, got 0\.0"),
        ({"top_p": 1.5}, r"top_p: expected 0 < p <= 1, got 1\.5"),
        ({"min_p": -0.1}, r"min_p: expected 0 <= p <= 1, got -0\.1"),
        ({"min_p": math.nan}, "min_p: expected 0 <= p <= 1, got nan"),
    ],
)
def test_wrong_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Support(**options)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="top_k"):
        Support(top_k=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="top_p: expected a number, got str"):
        Support(top_p="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"support: expected a prefuse.Support, got int"):
        prefuse.token_stats(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), support=5)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing: cannot go with a support"),
        ({"plan": "keep"}, "plan: cannot go with a support"),
        ({"sparse": 0.01}, "sparse: cannot go with a support"),
        ({"stats": ("logp", "mean_logit")}, "stats: mean_logit cannot be had over a part of the classes"),
    ],
)
def test_what_cannot_go_with_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prefuse.linear_token_stats(
            torch.zeros(2, 4), torch.zeros(7, 4), torch.tensor([0, 1]), support=Support(top_k=2), **options
        )


def test_not_in_place() -> None:
    with pytest.raises(ValueError, match="inplace: with a support"):
        prefuse.token_stats(torch.zeros(2, 3), torch.tensor([0, 1]), inplace=True, support=Support(top_k=2))


def test_through_a_model() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=41, num_key_value_heads=1, **sizes))
    tokens, support = integers(41, 2, 7, seed=0), Support(top_k=5, top_p=0.9)
    logits = model(tokens).logits[:, :-1]
    expected = prefuse.token_logps(logits, tokens[:, 1:], support=support)
    head = prefuse.head(model)
    torch.testing.assert_close(head.token_logps(tokens, inputs={"input_ids": tokens}, support=support)[:, 1:], expected)
    sums = head.sequence_logps(tokens, inputs={"input_ids": tokens}, support=support)
    torch.testing.assert_close(sums, expected.sum(1))
    sums.sum().backward()
    assert model.lm_head.weight.grad is not None
