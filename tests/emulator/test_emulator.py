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


def run(body: str, order: int = emulator.ASCENDING) -> list[float]:
    """Runs `body` on 64 threads with `in` = 0, 1, …, 63; returns `out`."""
    out, given = torch.full((64,), -1.0), torch.arange(64.0)
    launch = {
        "kernel": "kernel",
        "sources": [("test.cu", SOURCE % body)],
        "defines": [],
        "grid": 1,
        "block": 64,
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
        ("if (i < 32) __syncthreads();\n else __syncthreads();", "a different barrier"),
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
