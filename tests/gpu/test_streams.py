"""Streams, CUDA graphs, torch.compile, several devices and threads: what PyTorch does with kernels, ours can bear."""

import threading

import pytest
import torch

from prefuse.functional import sequence_logps, token_logps, token_stats
from prefuse.losses.preference import preference_loss
from tests.gpu.making import batch, gradient, in_a_new_process, statistics

pytestmark = pytest.mark.needs_cuda

ABOUT_A_SECOND = 2_000_000_000  # cycles


def step(logits, labels):
    """Loss and gradient of something with rows, segments and an objective in it."""
    leaf = logits.detach().requires_grad_()
    stats = token_stats(leaf, labels, ("logp", "entropy"))
    score = preference_loss("simpo", logits=leaf, labels=labels)
    loss = score.loss + 0.1 * stats.entropy.mean() + sequence_logps(leaf, labels, shift=True).mean()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.fixture
def given():
    rows = batch(4, 6, vocabulary=5003, dtype=torch.bfloat16).to("cuda")
    step(rows.logits, rows.labels)  # compiled and loaded from here on
    return rows.logits, rows.labels


def test_a_stream_of_ones_own(given):
    """The kernels wait for what their stream waits for, and are done when it is."""
    logits, labels = given
    expected = step(logits, labels)
    stream, late = torch.cuda.Stream(), torch.zeros_like(logits)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(ABOUT_A_SECOND // 10)
        late.copy_(logits)
        got = step(late, labels)
    stream.synchronize()
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_synchronises(given):
    logits, labels = given
    offsets = torch.tensor([0, 5, 24], device="cuda")
    flat = (logits.view(24, -1), labels.view(24))

    def everything():
        step(logits, labels)
        sequence_logps(*flat, cu_seqlens=offsets, shift=True, average=True)
        token_logps(logits, labels, mask=labels > 7, temperature=torch.ones(4, 6, device="cuda"))

    everything()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_host_does_not_wait(given):
    """What PyTorch's debug mode cannot see: calls return while the device is still busy with what came before."""
    leaf = given[0].detach().requires_grad_()
    torch.autograd.grad(token_logps(leaf, given[1]).sum(), leaf)  # PyTorch loads its kernels when they are first used
    sequence_logps(leaf, given[1])
    done = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(ABOUT_A_SECOND)
    done.record()
    torch.autograd.grad(token_logps(leaf, given[1]).sum(), leaf)
    sequence_logps(leaf, given[1])
    assert not done.query()
    torch.cuda.synchronize()


class TestGraphs:
    def test_capture_and_replay(self, given):
        logits, labels = (tensor.clone() for tensor in given)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(logits, labels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(logits, labels)
        for seed in (5, 6):
            fresh = batch(4, 6, vocabulary=5003, dtype=torch.bfloat16, seed=seed).to("cuda")
            logits.copy_(fresh.logits)
            labels.copy_(fresh.labels)
            graph.replay()
            for mine, theirs in zip(captured, step(fresh.logits, fresh.labels), strict=True):
                assert torch.equal(mine, theirs)

    def test_capture_before_the_first_use_says_what_to_do(self, tmp_path):
        program = (
            "import torch\n"
            "from prefuse.functional import token_logps\n"
            "x, y = torch.zeros(3, 70, device='cuda'), torch.zeros(3, dtype=torch.int64, device='cuda')\n"
            "graph, kept = torch.cuda.CUDAGraph(), torch.zeros(1, device='cuda')\n"
            "with torch.cuda.graph(graph):\n"
            "    kept += 1\n"
            "    try: token_logps(x, y)\n"
            "    except RuntimeError as error: print(error)\n"
            "token_logps(x, y)\n"
            "with torch.cuda.graph(torch.cuda.CUDAGraph()): token_logps(x, y)\n"
        )
        said = in_a_new_process(program, PREFUSE_CACHE_DIR=str(tmp_path / "kernels"))
        assert "was first needed while a CUDA graph was being captured" in said
        assert "run the same call once before the capture" in said


class TestCompile:
    @pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
    def test_fullgraph(self, given, mode):
        torch.compiler.reset()
        logits, labels = given

        def function(x, y):
            stats = token_stats(2.0 * x, y, ("logp", "entropy"))
            return stats.logp.sum() + stats.entropy.square().sum() + sequence_logps(x, y, shift=True).sum()

        compiled = torch.compile(function, fullgraph=True, mode=mode)
        for _ in range(3):  # the third replays the graph that the second captured
            results = []
            for way in (function, compiled):
                leaf = logits.float().requires_grad_()
                loss = way(leaf, labels)
                loss.backward()
                results.append((loss.detach().clone(), leaf.grad.clone()))
            for mine, theirs in zip(*results, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    rows = batch(7, vocabulary=4099)
    expected, pulled = statistics(rows.to("cuda:0")), gradient(rows.to("cuda:0"))
    with torch.cuda.device(0):
        elsewhere = rows.to("cuda:1")
        got, got_pulled = statistics(elsewhere), gradient(elsewhere)
        assert torch.cuda.current_device() == 0
    assert got.device == got_pulled.device == torch.device("cuda:1")
    torch.testing.assert_close(got.cpu(), expected.cpu())
    torch.testing.assert_close(got_pulled.cpu(), pulled.cpu())


def test_threads_with_streams_of_their_own(given):
    """Forward and backward from several threads at once; the backward pass runs on autograd's own thread besides."""
    expected, results, errors = step(*given), {}, []
    torch.cuda.synchronize()

    def work(number):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(5):
                    results[number] = step(*given)
                torch.cuda.current_stream().synchronize()
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(results) == 4
    for got in results.values():
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine, theirs)


def test_first_use_from_several_threads_at_once(tmp_path):
    """They compile the same kernel at the same time, and all get it."""
    program = (
        "import threading, torch\n"
        "from prefuse.functional import token_logps\n"
        "x, y = torch.randn(3, 70, device='cuda'), torch.zeros(3, dtype=torch.int64, device='cuda')\n"
        "found = []\n"
        "def work():\n"
        "    leaf = x.clone().requires_grad_()\n"
        "    token_logps(leaf, y).sum().backward()\n"
        "    torch.cuda.synchronize()\n"
        "    found.append(leaf.grad)\n"
        "workers = [threading.Thread(target=work) for _ in range(4)]\n"
        "[worker.start() for worker in workers]\n"
        "[worker.join() for worker in workers]\n"
        "print(len(found), all(torch.equal(found[0], other) for other in found))\n"
    )
    assert in_a_new_process(program, PREFUSE_CACHE_DIR=str(tmp_path / "kernels")) == "4 True\n"
