"""What processes share and what they cannot: the kernel cache on disk, a forked parent's device."""

import hashlib
import os

import pytest

from tests.gpu.making import in_a_new_process

pytestmark = pytest.mark.needs_cuda

COMPUTE = (
    "import torch\n"
    "from prefuse.functional import token_stats\n"
    "torch.manual_seed(0)\n"
    "x, y = torch.randn(5, 3000).cuda().requires_grad_(), torch.arange(5).cuda()\n"
    "stats = token_stats(x, y, ('logp', 'entropy'))\n"
    "(stats.logp.sum() + stats.entropy.sum()).backward()\n"
    "print(stats.logp.tolist(), x.grad.sum(-1).tolist(), x.grad[0, :5].tolist())\n"
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

IN_A_CHILD = (
    "import os\n"
    "child = os.fork()\n"
    "if child == 0:\n"
    "    try:\n"
    "        {}\n"
    "    except RuntimeError as error:\n"
    "        print('refused:', error, flush=True)\n"
    "    finally:\n"
    "        os._exit(0)\n"
    "assert os.waitpid(child, 0)[1] == 0\n"
)


def files(folder):
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    }


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    cache = tmp_path / "kernels"
    first = in_a_new_process(COMPUTE, PREFUSE_CACHE_DIR=str(cache))
    compiled = files(cache)
    assert compiled
    assert all(name.endswith(".cubin") for name in compiled)
    assert in_a_new_process(COMPUTE, PREFUSE_CACHE_DIR=str(cache)) == first
    assert files(cache) == compiled


def test_a_damaged_cache_costs_a_compilation_and_nothing_else(tmp_path):
    cache = tmp_path / "kernels"
    first = in_a_new_process(COMPUTE, PREFUSE_CACHE_DIR=str(cache))
    whole = files(cache)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert in_a_new_process(COMPUTE, PREFUSE_CACHE_DIR=str(cache)) == first
    assert {name: content for name, (_, content) in files(cache).items()} == {
        name: content for name, (_, content) in whole.items()
    }


@needs_fork
def test_a_child_of_a_process_that_used_cuda_is_told():
    ask = "from prefuse import _prefuse; _prefuse.cuda_devices()"
    said = in_a_new_process(COMPUTE + IN_A_CHILD.format(ask))
    assert "refused: CUDA was used before this process was forked" in said


@needs_fork
def test_a_child_of_a_process_that_used_cuda_computes_on_the_cpu():
    compute = "print(token_stats(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)).logp.shape, flush=True)"
    assert "torch.Size([3])" in in_a_new_process(COMPUTE + IN_A_CHILD.format(compute))


@needs_fork
def test_a_child_uses_cuda_where_its_parent_has_not():
    """As DataLoader workers do: importing prefuse and computing on the CPU starts no driver."""
    before = (
        "import torch\n"
        "from prefuse.functional import token_logps\n"
        "token_logps(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))\n"
    )
    compute = "print(token_logps(torch.zeros(3, 5).cuda(), torch.zeros(3).long().cuda()).tolist(), flush=True)"
    said = in_a_new_process(before + IN_A_CHILD.format(compute))
    assert said.startswith("[-1.6094")
