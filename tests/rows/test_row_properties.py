"""Rows of any shape, dtype, layout and content, drawn by hypothesis and compared with the float64 definition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_oracle import GRADIENTS, assert_as_good_as_oracle, assert_gradient, peaked, statistics

from prefuse.functional import STATISTICS, sequence_logps, token_logps, token_stats
from tests.devices import integers, normal, on_the_cpu, uniform

pytestmark = pytest.mark.usefixtures("device")

SETTINGS = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
LEADS = st.lists(st.integers(0, 3), max_size=3).map(tuple)
VOCABULARIES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 129, 255, 1025, 4100]))
CONTENTS = ["plain", "constant", "confident", "extreme", "banned", "tiny"]
LAYOUTS = ["contiguous", "padded rows", "first dimension last", "every other", "expanded"]


@on_the_cpu
def fill(content, shape, dtype, seed):
    x = peaked(shape, seed, torch.float64)
    limit = {torch.float16: 6e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e200}[dtype]
    if content == "constant":
        x = torch.full_like(x, 3.25)
    elif content == "confident" and x.numel():
        x = torch.where(x == x.amax(-1, keepdim=True), x.abs() + 30, x)
    elif content == "extreme":
        x = torch.where(x > 2, limit, torch.where(x < -2, -limit, x))
    elif content == "banned" and shape[-1] > 1:
        x[..., 1:] = torch.where(x[..., 1:] > 0, x[..., 1:], float("-inf"))
    elif content == "tiny":
        x = x * 1e-7
    return x.to(dtype)


def arrange(layout, x):
    """The same values with other strides."""
    if layout == "padded rows":
        return torch.cat([x, torch.full_like(x, float("nan"))], -1)[..., : x.shape[-1]]
    if layout == "first dimension last" and x.ndim > 2:
        return x.movedim(0, -2).contiguous().movedim(-2, 0)
    if layout == "every other" and x.ndim > 1:
        return x.repeat_interleave(2, 0)[::2]
    if layout == "expanded" and x.ndim > 1 and x.shape[0]:
        return x[:1].expand(x.shape)
    return x


@st.composite
def rows(draw, contents=CONTENTS):
    dtype, lead, vocabulary = draw(DTYPES), draw(LEADS), draw(VOCABULARIES)
    seed = draw(st.integers(0, 10_000))
    x = arrange(draw(st.sampled_from(LAYOUTS)), fill(draw(st.sampled_from(contents)), (*lead, vocabulary), dtype, seed))
    reference_dtype = draw(st.sampled_from([dtype, torch.float32]))
    reference = fill(draw(st.sampled_from(["plain", "constant", "confident"])), x.shape, reference_dtype, seed + 1)
    labels = integers(vocabulary, *lead, seed=seed)
    mask = draw(st.sampled_from([None, 0.0, 0.5])) if lead else None
    if mask is not None:
        mask = uniform(*lead, seed=seed + 1) >= mask
    temperature = draw(st.sampled_from([1.0, 0.3, 2.0, "per token"]))
    if temperature == "per token":
        temperature = uniform(*lead, seed=seed + 2, dtype=torch.float64) + 0.5
    transforms = {
        "temperature": temperature,
        "scale": draw(st.sampled_from([1.0, 0.125])),
        "softcap": draw(st.sampled_from([None, 1.0, 30.0])),
    }
    return x, labels, reference, mask, transforms


def magnitude(x, scale, softcap, temperature):
    """The largest finite |z|."""
    z = torch.where(x.double().isfinite(), x.double().abs(), 0.0) * scale
    coolest = temperature.min().item() if isinstance(temperature, torch.Tensor) and temperature.numel() else 1.0
    coolest = temperature if isinstance(temperature, float) else coolest
    return min(z.max().item() if z.numel() else 0.0, softcap or float("inf")) / coolest


@SETTINGS
@given(rows(), st.lists(st.sampled_from(STATISTICS), min_size=1, unique=True), st.integers(1, 64))
def test_values(drawn, names, k):
    x, labels, reference, mask, transforms = drawn
    if magnitude(x, **transforms) > 1e5:  # KL and mean of numbers this large are mostly overflow; the others are not
        names = [name for name in names if name not in ("kl", "rkl", "mean_logit")] or ["logp"]
    got = token_stats(x, labels, names, reference_logits=reference, mask=mask, k=k, **transforms)
    exact = statistics(x, labels, reference, k, **transforms)
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = statistics(x, labels, reference, k, precision, **transforms)
    assert list(got) == names
    for name in names:
        expected, yardstick = exact[name], own[name]
        if mask is not None:
            assert not got[name][~mask].any()
            expected, yardstick = torch.where(mask, expected, 0.0), torch.where(mask, yardstick, 0.0)
        largest = 2 * max(magnitude(x, **transforms), magnitude(reference, **transforms))
        assert_as_good_as_oracle(got[name], expected, yardstick, name, largest=largest)
    assert "logp" not in got or not (got.logp > 0).any()


@SETTINGS
@given(rows(["plain", "constant", "confident", "banned", "tiny"]), st.sets(st.sampled_from(GRADIENTS), min_size=1))
def test_gradients(drawn, names):
    x, labels, reference, mask, transforms = drawn
    leaf = x.detach().requires_grad_()
    got = token_stats(leaf, labels, sorted(names), reference_logits=reference, mask=mask, **transforms)
    upstream = {name: normal(*labels.shape, seed=seed) for seed, name in enumerate(sorted(names))}
    if labels.ndim:
        upstream["logp" if "logp" in names else min(names)][..., :1] = 0
    torch.autograd.backward([got[n] for n in upstream], [upstream[n].to(got[n].dtype) for n in upstream])
    if mask is not None:
        assert not leaf.grad[~mask].any()
        upstream = {name: torch.where(mask, coefficient, 0.0) for name, coefficient in upstream.items()}
    assert_gradient(leaf.grad, x, labels, upstream, reference, **transforms)


@SETTINGS
@given(DTYPES, VOCABULARIES, st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
def test_packed_equals_padded(dtype, vocabulary, lengths, shift, seed):
    """The two layouts of the same responses give the same sums to the bit."""
    count, longest = len(lengths), max(max(lengths), 1)
    x, labels = fill("plain", (count, longest, vocabulary), dtype, seed), torch.full((count, longest), -100)
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    labels[inside] = integers(vocabulary, sum(lengths), seed=seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    for average in (False, True):
        padded = sequence_logps(x, labels, average=average, shift=shift)
        packed = sequence_logps(x[inside], labels[inside], cu_seqlens=cu_seqlens, average=average, shift=shift)
        assert torch.equal(padded, packed)
        batch_of_one = sequence_logps(
            x[inside][None], labels[inside][None], cu_seqlens=cu_seqlens, average=average, shift=shift
        )
        assert torch.equal(padded, batch_of_one)


@pytest.mark.cpu
@SETTINGS
@given(rows())
def test_numpy_has_the_bits_of_torch(drawn):
    x, labels, _, mask, transforms = drawn
    if x.dtype == torch.bfloat16:
        x = x.float()
    if isinstance(transforms["temperature"], torch.Tensor):
        as_numpy = {**transforms, "temperature": transforms["temperature"].numpy()}
    else:
        as_numpy = transforms
    got = token_logps(x.numpy(), labels.numpy(), mask=None if mask is None else mask.numpy(), **as_numpy)
    assert torch.equal(
        torch.as_tensor(got).nan_to_num(7), token_logps(x, labels, mask=mask, **transforms).nan_to_num(7)
    )
