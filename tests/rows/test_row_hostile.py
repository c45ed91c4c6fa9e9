"""Logits nobody wants: infinities, NaN, extremes of each dtype, banned tokens, and labels in awkward places."""

import pytest
import torch
from row_oracle import (
    EPS,
    GRADIENTS,
    STATISTICS_OF,
    assert_as_good_as_oracle,
    assert_gradient,
    gradient,
    peaked,
    some_labels,
    statistics,
)

from prefuse.functional import token_logps, token_stats

INF = float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PLAIN = ("logp", "lse", "entropy", "log_sum_sq", "top1", "topk_mass", "topk_entropy")


def pulled(x, labels, upstream, reference=None):
    x = x.clone().requires_grad_()
    got = token_stats(x, labels, tuple(upstream), reference_logits=reference)
    torch.autograd.backward([got[name] for name in upstream], [upstream[name].to(got[name].dtype) for name in upstream])
    return x.grad


@pytest.mark.parametrize("vocabulary", [3, 40, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_banned_tokens(dtype, vocabulary):
    """−inf logits are legal: probability 0, no NaN anywhere, gradient exactly 0 at the banned token."""
    x = peaked((4, vocabulary), 1, dtype, sharpness=1.0)
    x[0, 0] = x[1, vocabulary - 1] = x[2, vocabulary // 2] = -INF
    x[3, : vocabulary - 1] = -INF
    labels = torch.full((4,), 1)
    labels[3] = vocabulary - 1
    if vocabulary == 3:
        labels[2] = 0
    got = token_stats(x, labels, PLAIN)
    exact = statistics(x, labels)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    own = statistics(x, labels, precision=precision)
    for name in PLAIN:
        assert_as_good_as_oracle(got[name], exact[name], own[name], name, largest=100)
    assert (got.logp[3], got.entropy[3], got.top1[3]) == (0, 0, 1)
    upstream = {name: torch.ones(4) for name in ("logp", "lse", "entropy")}
    grad = pulled(x, labels, upstream)
    assert grad.isfinite().all()
    assert not grad[x == -INF].any()
    assert_gradient(grad, x, labels, upstream)


def test_banned_label():
    """A label that is itself −inf has log-probability −inf; the gradient through the others stays finite."""
    x = torch.tensor([[0.0, -INF, 1.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([1, 1])
    got = token_stats(x, labels, ("logp", "entropy"))
    assert got.logp[0] == -INF
    assert got.entropy.isfinite().all()
    grad = pulled(x, labels, {"logp": torch.tensor([0.0, 1.0])})
    assert not grad[0].any()
    assert grad.isfinite().all()
    grad = pulled(x, labels, {"logp": torch.tensor([1.0, 1.0])})
    assert torch.equal(grad.isfinite(), torch.ones_like(grad, dtype=torch.bool))


def test_nothing_but_banned_tokens_concerns_that_row_only():
    x, labels = torch.tensor([[-INF] * 20, [0.0] * 20]), torch.tensor([0, 0])
    got = token_stats(x, labels, ("logp", "lse", "entropy"))
    assert (got.logp[0], got.lse[0]) == (-INF, -INF)
    for value in got.values():
        assert value[1].isfinite()
    assert pulled(x, labels, {"logp": torch.ones(2)})[1].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), INF])
@pytest.mark.parametrize("position", [0, 17, 4999])
def test_nan_and_inf_stay_in_their_row(bad, position):
    """One poisoned logit makes every statistic and gradient of that row NaN, and leaves the next row's bits alone."""
    x = peaked((3, 5000), 2)
    labels, upstream = some_labels((3,), 5000, 2), {name: torch.ones(3) for name in GRADIENTS}
    reference = peaked((3, 5000), 3)
    clean = token_stats(x, labels, GRADIENTS, reference_logits=reference)
    clean_grad = pulled(x, labels, upstream, reference)
    x[1, position] = bad
    got = token_stats(x, labels, GRADIENTS, reference_logits=reference)
    grad = pulled(x, labels, upstream, reference)
    for name in GRADIENTS:
        assert torch.equal(got[name][[0, 2]], clean[name][[0, 2]])
        assert not got[name][1].isfinite()
    assert torch.equal(grad[[0, 2]], clean_grad[[0, 2]])
    assert grad[1].isnan().any()


@pytest.mark.parametrize("dtype,largest", [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38)])
def test_largest_numbers_of_the_dtype(dtype, largest):
    x = torch.zeros(4, 1000, dtype=dtype)
    x[0, 10], x[1, 10], x[2, 10] = largest, -largest, largest
    x[2, 500] = largest
    x[3] = -largest
    got = token_stats(x, torch.tensor([10, 10, 500, 10]), ("logp", "entropy", "lse", "top1"))
    log = torch.log(torch.tensor([1.0, 999.0, 2.0, 1000.0])).tolist()
    assert got.logp.tolist() == pytest.approx([0.0, -float(x[0, 10]) - log[1], -log[2], -log[3]], rel=4 * EPS)
    assert got.entropy.tolist() == pytest.approx(log, rel=4 * EPS)
    assert got.top1.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("magnitude", [1e4, 6e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_huge_logits(dtype, magnitude):
    x = (peaked((4, 300), 4, torch.float64).clamp(-10, 10) * (magnitude / 10)).to(dtype)
    labels, upstream = some_labels((4,), 300, 4), {"logp": torch.ones(4), "entropy": torch.ones(4)}
    got = token_stats(x, labels, STATISTICS_OF[False])
    exact, own = (statistics(x, labels, precision=precision) for precision in (torch.float64, torch.float32))
    for name in STATISTICS_OF[False]:
        largest = magnitude if name == "mean_logit" else 0.0
        assert_as_good_as_oracle(got[name], exact[name], own[name], name, largest=largest)
    grad, exact_grad = pulled(x, labels, upstream).double(), gradient(x, labels, upstream)
    # One rounding of lse, at this magnitude, is the relative error of p.
    assert (grad - exact_grad).abs().max() <= 4 * EPS * magnitude + torch.finfo(dtype).eps


@pytest.mark.parametrize("place", ["first", "last", "largest", "smallest"])
@pytest.mark.parametrize("vocabulary", [2, 33, 8193])
def test_labels_in_awkward_places(place, vocabulary):
    x = peaked((5, vocabulary), 5)
    labels = {
        "first": torch.zeros(5, dtype=torch.int64),
        "last": torch.full((5,), vocabulary - 1),
        "largest": x.argmax(-1),
        "smallest": x.argmin(-1),
    }[place]
    got = token_stats(x, labels, ("logp", "top1"))
    exact, own = (statistics(x, labels, precision=precision) for precision in (torch.float64, torch.float32))
    assert_as_good_as_oracle(got.logp, exact["logp"], own["logp"], "logp")
    assert torch.equal(got.top1, (labels == x.argmax(-1)).float())


def test_one_class_is_certain():
    x = torch.tensor([[3.0], [-7.0]], requires_grad=True)
    got = token_stats(x, torch.tensor([0, 0]), ("logp", "lse", "entropy", "log_sum_sq", "top1", "topk_mass"), k=1)
    assert [value.tolist() for value in got.values()] == [[0, 0], [3, -7], [0, 0], [0, 0], [1, 1], [1, 1]]
    (got.logp.sum() + got.entropy.sum()).backward()
    assert not x.grad.any()


def test_reference_bans_what_the_policy_allows():
    """KL(π‖ref) is +inf there; KL(ref‖π) is finite and so is its gradient."""
    x, reference = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, -INF, 2.0]])
    got = token_stats(x, torch.tensor([0]), ("kl", "rkl", "ref_logp"), reference_logits=reference)
    assert got.kl.item() == INF
    assert got.rkl.isfinite().all()
    exact = gradient(x, torch.tensor([0]), {"rkl": torch.ones(1)}, reference)
    assert torch.allclose(pulled(x, torch.tensor([0]), {"rkl": torch.ones(1)}, reference).double(), exact, rtol=8 * EPS)


def test_both_ban_the_same_token():
    x, reference = torch.tensor([[0.0, -INF, 2.0]]), torch.tensor([[1.0, -INF, 2.0]])
    got = token_stats(x, torch.tensor([0]), ("kl", "rkl"), reference_logits=reference)
    exact = statistics(x[:, [0, 2]], torch.tensor([0]), reference[:, [0, 2]])
    assert got.kl.item() == pytest.approx(exact["kl"].item(), rel=8 * EPS)
    assert got.rkl.item() == pytest.approx(exact["rkl"].item(), rel=8 * EPS)
    upstream = {"kl": torch.ones(1), "rkl": torch.ones(1)}
    grad = pulled(x, torch.tensor([0]), upstream, reference)
    exact = gradient(x[:, [0, 2]], torch.tensor([0]), upstream, reference[:, [0, 2]])
    assert grad[0, 1] == 0
    assert torch.allclose(grad[:, [0, 2]].double(), exact, rtol=16 * EPS)


def test_softcap_turns_infinite_logits_into_the_cap():
    x = torch.tensor([[0.0, INF, -INF, 1.0]], requires_grad=True)
    got = token_stats(x, torch.tensor([1]), ("logp", "entropy"), softcap=5.0)
    exact = statistics(torch.tensor([[0.0, 1e9, -1e9, 1.0]]), torch.tensor([1]), softcap=5.0)
    assert got.logp.item() == pytest.approx(exact["logp"].item(), rel=8 * EPS)
    got.logp.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, 1:3].abs().max() < 1e-12


def test_infinite_log_probability_only_where_it_should_be():
    """An improbable token keeps its log-probability, where log(p) would have underflowed to −inf."""
    x = torch.tensor([[0.0, 500.0]])
    assert token_logps(x, torch.tensor([0])).item() == -500.0
