"""The fused head on a device: graphs, streams, as many bytes as it says, gradients through float32 sums."""

from __future__ import annotations

import pytest
import torch

import prefuse
from tests.devices import integers, normal
from tests.linear.gathering import gathering_columns

pytestmark = pytest.mark.needs_cuda

N, H, V = 96, 64, 5003


def given(dtype=torch.bfloat16, seed=0):
    labels = integers(V, N, seed=seed)
    labels[::3] = -100
    hidden, weight = normal(N, H, seed=seed + 1).to(dtype), normal(V, H, seed=seed + 2).to(dtype)
    return hidden.cuda(), weight.cuda(), labels.cuda()


def step(hidden, weight, labels, trainable=False):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_(trainable)
    logps = prefuse.linear_token_logps(hidden, weight, labels, workspace_bytes=1 << 22)
    leaves = [hidden, weight] if trainable else [hidden]
    return (logps.detach(), *torch.autograd.grad((logps * 0.3).sum(), leaves))


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_capture_and_replay(trainable):
    """While capturing nothing can be looked at: rows that are not scored are computed and left out."""
    tensors = given()
    step(*tensors, trainable)  # compiled and loaded from here on
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*tensors, trainable)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*tensors, trainable)
    fresh = given(seed=9)
    for old, new in zip(tensors, fresh, strict=True):
        old.copy_(new)
    graph.replay()
    for mine, theirs in zip(captured, step(*fresh, trainable), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-3)


def test_a_stream_of_ones_own():
    tensors = given()
    expected = step(*tensors)
    stream, late = torch.cuda.Stream(), torch.zeros_like(tensors[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(tensors[0])
        got = step(late, *tensors[1:])
    stream.synchronize()
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_the_same_input_the_same_bits():
    tensors = given()
    for mine, theirs in zip(step(*tensors, True), step(*tensors, True), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_unscaled_gradients_are_kept_in_float32(dtype):
    hidden, weight, labels = given(dtype)
    hidden.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        prefuse.linear_token_logps(hidden, weight, labels)
    assert any(tensor.shape == (N, H) and tensor.dtype == torch.float32 for tensor in saved)


def test_memory_is_what_the_plan_says():
    hidden, weight, labels = given()
    hidden = hidden.repeat(64, 1).requires_grad_()
    labels = labels.repeat(64)
    step(hidden, weight, labels)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stats = prefuse.linear_token_stats(hidden, weight, labels, workspace_bytes=1 << 22)
    peak = torch.cuda.max_memory_allocated() - before
    assert stats.plan.tiles > 1
    # Per token, statistics and indices: some tens of bytes.
    assert peak <= (1 << 22) + stats.plan.kept_bytes + hidden.shape[0] * (H * 2 + 128)


def test_debugging_looks_at_labels(monkeypatch):
    hidden, weight, labels = given()
    labels[4] = V
    assert prefuse.linear_token_logps(hidden, weight, labels)[4].isnan()
    monkeypatch.setenv("PREFUSE_DEBUG", "1")
    with pytest.raises(ValueError, match=rf"labels: {V} at \[4\]"):
        prefuse.linear_token_logps(hidden, weight, labels)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_labels_on_the_host_spare_the_look(trainable):
    hidden, weight, labels = given()
    hidden, labels = hidden[:24].reshape(4, 6, -1).requires_grad_(), labels[:24].reshape(4, 6)
    options = {"weight": weight.requires_grad_(trainable), "reference": torch.zeros(4, device="cuda")}
    wanted = prefuse.preference_loss("dpo", hidden=hidden, labels=labels, **options)
    host = labels.cpu()
    torch.cuda.set_sync_debug_mode("error")
    try:
        score = prefuse.preference_loss("dpo", hidden=hidden, labels=host, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(score.loss, wanted.loss)
    with pytest.raises(ValueError, match=f"labels: {V} at"):
        prefuse.linear_token_logps(hidden, weight, torch.full_like(host, V))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [2.0**-40, 2.0**-7])
def test_sparse_gradients_are_those_of_the_emulator(dtype, eps):
    """Columns found, gathered and added up on the device, and by the same sources on the CPU."""
    hidden, weight, labels = given(dtype)
    upstream = normal(N, seed=7).to(torch.float64 if dtype == torch.float64 else torch.float32)

    def gradients(device):
        leaves = [hidden.to(device).requires_grad_(), weight.to(device).requires_grad_()]
        logps = prefuse.linear_token_logps(*leaves, labels.to(device), sparse=eps)
        return torch.autograd.grad(logps, leaves, upstream.to(device))

    found = gradients("cuda")
    assert all(torch.equal(one, two) for one, two in zip(found, gradients("cuda"), strict=True))
    with gathering_columns():
        expected = gradients("cpu")
    for one, other in zip(found, expected, strict=True):
        off = (one.cpu().double() - other.double()).norm() / other.double().norm()
        assert off <= 4 * torch.finfo(dtype).eps + 1e-6


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_logits_of_16_bit_matrices(dtype, trainable):
    """Written by the GEMM: as exact as with matrices that were converted, and these stay as they are."""
    hidden, weight, labels = given(dtype)
    results = []
    for of, options in (((hidden, weight), {"logits_dtype": torch.float32}), ((hidden.double(), weight.double()), {})):
        leaves = [of[0].requires_grad_(), of[1].requires_grad_(trainable)]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        logps = prefuse.linear_token_logps(*leaves, labels, workspace_bytes=1 << 18, **options)
        peak = torch.cuda.max_memory_allocated() - before
        results.append((logps.detach(), peak, torch.autograd.grad(logps.sum(), leaves[: 1 + trainable])))
    (logps, peak, found), (exact, _, expected) = results
    torch.testing.assert_close(logps.double(), exact, rtol=1e-5, atol=1e-4)
    if not trainable:
        assert peak < 1 << 20 < 4 * V * H  # no float32 copy of the weight
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < 4 * torch.finfo(dtype).eps * other.norm()
