"""The emulator reports what it promises to: each kernel here does one thing that no kernel may do."""

from __future__ import annotations

import struct

import pytest
import torch

from tests.emulator import emulator

pytestmark = pytest.mark.needs("compiler")

SOURCE = """
struct Args { float* out; const float* in; };
extern "C" __global__ void kernel(const Args a) {
    __shared__ float shared[64];
    int i = threadIdx.x;
    %s
}
"""
SUM = "for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);"


def run(body: str, order: int = emulator.ASCENDING, cluster: int = 1, shared: int = 0) -> list[float]:
    """Runs `body` on `cluster` blocks, 64 threads in all, with `in` = 0, 1, …, 63; returns `out`."""
    out, given = torch.full((64,), -1.0), torch.arange(64.0)
    launch = {
        "kernel": "kernel",
        "sources": [("test.cu", SOURCE % body)],
        "defines": [],
        "grid": cluster,
        "block": 64 // cluster,
        "cluster": cluster,
        "shared": shared,
        "argument": struct.pack("QQ", out.data_ptr(), given.data_ptr()),
    }
    emulator.run([launch], [emulator.buffer(out, True), emulator.buffer(given, False)], order)
    return out.tolist()


def test_threads_meet() -> None:
    through_shared = "shared[i] = __ldcs(a.in + i); __syncthreads(); __stcs(a.out + i, shared[63 - i]);"
    assert run(through_shared) == [63.0 - i for i in range(64)]
    through_shuffles = f"float x = __ldcs(a.in + i); {SUM} __stcs(a.out + i, x);"
    assert run(through_shuffles, emulator.SHUFFLED) == [496.0] * 32 + [1520.0] * 32
    votes = "__stcs(a.out + i, float(__popc(__ballot_sync(0xffffffffu, i % 4 == 0))));"
    assert run(votes, emulator.DESCENDING) == [8.0] * 64


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("__stcs(a.out + i + 1, 0.0f);", "thread 63: write outside every buffer"),
        ("__stcs(a.out + i, __ldcs(a.in + i - 1));", "thread 0: read outside every buffer"),
        ("__stcs((float*)a.in + i, 0.0f);", "write to a read-only buffer"),
        ("__stcs(a.out + i, __ldcs((const float*)((const char*)a.in + 2)));", "misaligned access"),
        ("__stcs(a.out + i / 2, 0.0f);", "thread 1: writes what another thread wrote"),
        ("__stcs(a.out + i, 0.0f); if (i == 9) __ldcs(a.out + 3);", "thread 9: reads what another thread wrote"),
        ("if (i < 40) __syncthreads();", "threads that never come"),
        (
            "if (i < 32) __syncthreads();\n else __syncthreads();",
            r"comes to test.cu:7 while .* at test.cu:6, a different barrier",
        ),
        (
            '\n#line 7 "other.cuh"\nif (i < 32) __syncthreads();\n#line 7 "test.cu"\n else __syncthreads();',
            "a different",
        ),
        (f"if (i != 5) {{ float x = i; {SUM} __stcs(a.out + i, x); }}", "threads that never come"),
        ("__shfl_xor_sync(0xffffu, 1.0f, 1);", "collective of a part of a warp"),
    ],
)
def test_complaints(body: str, complaint: str) -> None:
    with pytest.raises(emulator.EmulationError, match=complaint):
        run(body)


def test_a_race_shows_in_the_order_of_threads() -> None:
    race = "shared[i] = __ldcs(a.in + i); __stcs(a.out + i, shared[(i + 1) % 64]);"
    assert str(run(race)) != str(run(race, emulator.DESCENDING))


def test_what_was_not_written_is_nan() -> None:
    assert all(x != x for x in run("__stcs(a.out + i, shared[i]);"))


EXCHANGE = """
    int at = blockIdx.x * blockDim.x + i;
    cluster_arrive(); cluster_wait();
    cluster_store(shared + i, 1 - blockIdx.x, __ldcs(a.in + at));
    cluster_arrive(); cluster_wait();
    __stcs(a.out + at, shared[i]);
"""


@pytest.mark.parametrize("order", [emulator.ASCENDING, emulator.DESCENDING, emulator.SHUFFLED])
def test_blocks_of_a_cluster_write_each_other_s_shared_memory(order: int) -> None:
    assert run(EXCHANGE, order, cluster=2) == [*range(32, 64), *range(32)]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("if (blockIdx.x == 0) { cluster_arrive(); cluster_wait(); }", "threads that never come"),
        ("cluster_arrive(); cluster_arrive();", "arrives twice"),
        ("cluster_wait();", "without having arrived"),
        ("if (blockIdx.x == 1) cluster_store(shared, 0, 1.0f);", "a block that has ended"),
        ("if (blockIdx.x == 0) cluster_store(shared, 1, 1.0f);", "a block that has not begun"),
        ("cluster_store(shared, 2, 1.0f);", "a block outside its cluster"),
        ("float x = 0; cluster_store(&x, 0, 1.0f);", "which is not shared"),
        ("dynamic_shared()[i] = make_uint4(0, 0, 0, 0);", "behind dynamic shared memory"),
    ],
)
def test_complaints_about_clusters(body: str, complaint: str) -> None:
    with pytest.raises(emulator.EmulationError, match=complaint):
        run(body, cluster=2, shared=16 * 31)


def test_dynamic_shared_memory_is_a_block_s_own() -> None:
    body = """
    dynamic_shared()[i].x = 100 * blockIdx.x + i;
    cluster_arrive(); cluster_wait();
    __stcs(a.out + blockIdx.x * 32 + i, float(dynamic_shared()[31 - i].x));
    """
    assert run(body, cluster=2, shared=16 * 32) == [*range(31, -1, -1), *range(131, 99, -1)]


def test_a_missing_barrier_of_a_cluster_shows() -> None:
    missing = "".join(EXCHANGE.rsplit("cluster_arrive(); cluster_wait();", 1))
    with pytest.raises(emulator.EmulationError, match="a block that has ended"):
        run(missing, cluster=2)


COPIED = """
    uint4* memory = dynamic_shared();
    copy_later(shared_address(memory + i), a.in + 4 * (i %% 16), i < 16);
    copies_end();
    %s
    __stcs(a.out + i, __uint_as_float(memory[i].y));
"""
WAIT = "copies_wait<0>();"


def test_what_is_copied_is_there_when_it_was_waited_for() -> None:
    found = run(COPIED % WAIT, shared=16 * 64)
    assert found == [*(4.0 * i + 1 for i in range(16)), *[0.0] * 48]
    assert all(x != x for x in run(COPIED % "", shared=16 * 64))
    assert all(x != x for x in run(COPIED % "copies_wait<1>();", shared=16 * 64))
    assert run(COPIED % "copies_end(); copies_wait<1>();", shared=16 * 64) == found


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (("a.in + 4 *", "a.in + 1 + 4 *"), "misaligned access"),
        (("a.in + 4 *", "a.in + 256 + 4 *"), "read outside every buffer"),
        (("shared_address(memory + i)", "shared_address(memory + i) + 4"), "copies to a misaligned place"),
    ],
)
def test_complaints_about_copies(changed: tuple[str, str], complaint: str) -> None:
    with pytest.raises(emulator.EmulationError, match=complaint):
        run((COPIED % WAIT).replace(*changed), shared=16 * 64)


MATRICES = """
    unsigned x[4];
    unsigned short* memory = (unsigned short*)dynamic_shared();
    for (int k = 0; k < 8; k++) memory[8 * (i %% 32) + k] = 8 * (i %% 32) + k;
    __syncwarp();
    %s(x, shared_address(memory + 8 * (i %% 32)));
    if (i < 32) __stcs(a.out + i, float(x[%d] >> (16 * %d) & 0xffff));
"""


@pytest.mark.parametrize("matrix", range(4))
@pytest.mark.parametrize("place", [0, 1])
def test_matrices_are_loaded(matrix: int, place: int) -> None:
    """Matrix m, row r, column c holds 64 m + 8 r + c; lane l gets columns 2 (l % 4) and the next of row l / 4."""
    numbers = torch.arange(64.0).view(8, 8) + 64 * matrix
    for name, rows in (("load_matrices", numbers), ("load_transposed", numbers.T)):
        found = run(MATRICES % (name, matrix, place), shared=16 * 32)[:32]
        assert found == rows[:, place::2].flatten().tolist()


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_matrices_are_multiplied(name: str) -> None:
    """Lanes have what NVIDIA's PTX manual says of m16n8k16: of [16, 16], [16, 8] and the result."""
    body = """
    unsigned left[4], right[2];
    float c[4] = {1000, 1000, 1000, 1000};
    const int g = i %% 32 / 4, t = i %% 4 * 2;
    for (int r = 0; r < 4; r++) {
        const int m = g + r %% 2 * 8, k = t + r / 2 * 8;
        left[r] = pack_%s(m + 2 * k, m + 2 * (k + 1));
    }
    for (int r = 0; r < 2; r++) right[r] = pack_%s((t + 8 * r) * (g + 1) %% 7, (t + 8 * r + 1) * (g + 1) %% 7);
    multiply_add_%s(c, left, right[0], right[1]);
    if (i < 32) __stcs(a.out + i, c[0]), __stcs(a.out + 32 + i, c[3]);
    """
    found = run(body % (name, name, name))
    m, n, k = torch.arange(16.0), torch.arange(8.0), torch.arange(16.0)
    right = (k[:, None] * (n + 1)) % 7
    product = 1000 + (m[:, None] + 2 * k) @ right
    lanes = torch.arange(32)
    assert found[:32] == product[lanes // 4, lanes % 4 * 2].tolist()
    assert found[32:] == product[lanes // 4 + 8, lanes % 4 * 2 + 1].tolist()
