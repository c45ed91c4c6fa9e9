"""What the extension takes for an array: a tensor or an unused DLPack capsule of CPU memory, and never an address."""

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack
from torch.utils.dlpack import to_dlpack as capsule

from prefuse import _prefuse
from prefuse._backends.arrays import capsule_of_numpy
from prefuse._backends.rows import STATISTICS, bits_of, names_of, position

VIEW = (4096, "f32", (4,), (1,))
SHAPE = ("f32", (4,), (1,))


def call_with(given):
    """Every function that reads or writes memory, with `given` for all of its arrays."""
    rows = (given, given, None, None, 1.0, 1.0, 0.0, -100, 0, 4)
    program = _prefuse.Graph("empty", {"item": "batch"}).compile([])
    return {
        "rows_forward": lambda: _prefuse.rows_forward(rows, bits_of(["logp"]), 1, given, 1),
        "rows_backward": lambda: _prefuse.rows_backward(rows, bits_of(["logp", "lse"]), given, given, given, 1),
        "rows_both": lambda: _prefuse.rows_both(rows, bits_of(["logp", "lse"]), 1, given, given, given, 1),
        "segment_sum": lambda: _prefuse.segment_sum(given, given, given),
        "segment_expand": lambda: _prefuse.segment_expand(given, given, given),
        "distance_forward": lambda: _prefuse.distance_forward(given, given, given, 1),
        "distance_backward": lambda: _prefuse.distance_backward(given, given, given, given, 1),
        "curate_rank": lambda: _prefuse.curate_rank(given, given, given, given, 1),
        "curate_first_beaten": lambda: _prefuse.curate_first_beaten(given, given, given, 0.0, given),
        "curate_pairs": lambda: _prefuse.curate_pairs(given, given, given, given, given, 1),
        "curate_ends": lambda: _prefuse.curate_ends(given, given, given, given),
        "Program.run": lambda: program.run([given], [], [], [given], 1),
        "cuda_segment_sum": lambda: _prefuse.cuda_segment_sum(given, given, given, 0, 0),
        "cuda_distance_forward": lambda: _prefuse.cuda_distance_forward(given, given, given, given, 0, 0),
        "cuda_rows_forward": lambda: _prefuse.cuda_rows_forward(rows, bits_of(["logp"]), 1, given, given, 0, 0),
    }


@pytest.mark.parametrize("given", [VIEW, 4096, np.ones(4), None], ids=["view", "address", "array", "none"])
@pytest.mark.parametrize("function", call_with(None))
def test_an_address_is_a_type_error(function, given):
    with pytest.raises(TypeError):
        call_with(given)[function]()


@pytest.mark.parametrize("function", [name for name in call_with(None) if not name.startswith("cuda")])
def test_a_shape_is_no_memory(function):
    with pytest.raises(TypeError, match="expected an unused DLPack capsule, got"):
        call_with(SHAPE)[function]()


def segment_sum(values, offsets, out):
    return _prefuse.segment_sum(capsule(values), capsule(offsets), capsule(out))


def test_what_came_is_said():
    values, offsets, out = torch.ones(4), torch.tensor([0, 3, 4]), torch.empty(2)
    segment_sum(values, offsets, out)
    assert out.tolist() == [3, 1]
    with pytest.raises(ValueError, match=r"expected f16, bf16, f32, f64, i64 or bool, got DLPack type 0 of 32 bits"):
        segment_sum(values, offsets.int(), out)
    with pytest.raises(ValueError, match=r"^values: expected at most one dimension, got 2"):
        segment_sum(values[None], offsets, out)
    with pytest.raises(ValueError, match=r"expected at most 8 dimensions, got 9"):
        segment_sum(values.reshape(4, *[1] * 8), offsets, out)
    with pytest.raises(TypeError, match=r"^offsets: expected dtype i64, got f32"):
        segment_sum(values, values, out)
    used = capsule(values)
    from_dlpack(used)
    with pytest.raises(ValueError, match="expected a DLPack capsule that nobody has consumed"):
        _prefuse.segment_sum(used, capsule(offsets), capsule(out))


def test_a_capsule_keeps_the_memory_and_serves_several_calls():
    given, offsets, out = capsule(torch.arange(1000.0)), torch.tensor([0, 1000]), torch.empty(1)
    gc.collect()
    for _ in range(2):
        torch.full((1000,), torch.nan)
        _prefuse.segment_sum(given, capsule(offsets), capsule(out))
        assert out.item() == 999 * 500


class Mine(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "kind", [torch.Tensor.clone, torch.nn.Parameter, lambda tensor: tensor.as_subclass(Mine), capsule]
)
def test_tensors_are_taken_as_they_are(kind):
    values, offsets, out = torch.arange(8.0)[::2], torch.tensor([0, 3, 4]), torch.empty(2)
    _prefuse.segment_sum(kind(values), offsets, out)
    assert out.tolist() == [6, 6]


@pytest.mark.parametrize("other", [torch.empty(4, device="meta"), torch.ones(4).to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_memory_are_refused(other):
    with pytest.raises(ValueError, match=r"Cannot|null address"):
        _prefuse.segment_sum(other, torch.tensor([0, 4]), torch.empty(1))


def test_a_tensor_of_one_element_is_no_number():
    rows = (torch.randn(1, 5), torch.tensor([0]), None, None)
    numbers = (1.0, 0.0, -100, 0, 5)
    warm, same, out = torch.tensor([2.0]), torch.empty(1, 1), torch.empty(1, 1)
    _prefuse.rows_forward((*rows, 2.0, *numbers), bits_of(["logp"]), 1, same, 1)
    _prefuse.rows_forward((*rows, warm, *numbers), bits_of(["logp"]), 1, out, 1)
    assert torch.equal(out, same)
    with pytest.raises((TypeError, ValueError), match="temperature"):
        _prefuse.rows_forward((*rows, warm.long(), *numbers), bits_of(["logp"]), 1, out, 1)


WITHOUT_EXCHANGE = """
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None  # as before PyTorch 2.10
import prefuse
columns = {f"{ref}{role}_logps": -torch.arange(1.0, 5) for role in ("chosen", "rejected") for ref in ("", "ref_")}
columns["chosen_logps"] = (columns["chosen_logps"] / 2).requires_grad_()
loss = prefuse.objectives.dpo(**columns).loss
loss.backward()
logps = prefuse.token_logps(torch.zeros(2, 4), torch.tensor([0, 3]), temperature=torch.tensor([1.0, 2.0]))
print(loss.item(), *columns["chosen_logps"].grad.tolist(), *logps.tolist())
"""


def test_capsules_do_where_there_is_nothing_better():
    def numbers(text):
        done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
        return done.stdout.split()

    assert numbers(WITHOUT_EXCHANGE) == numbers(WITHOUT_EXCHANGE.replace("torch.Tensor.__dlpack", "torch.Tensor.other"))


def test_numpy_arrays_that_may_not_be_written():
    values = np.broadcast_to(np.float64(2.0), (5,))
    out = np.empty(1)
    _prefuse.segment_sum(capsule_of_numpy(values), capsule_of_numpy(np.array([0, 5])), capsule_of_numpy(out))
    assert out.tolist() == [10]


def test_tables_must_be_contiguous():
    logits, labels, out = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.empty(3, 2).T
    rows = (capsule(logits), capsule(labels), None, None, 1.0, 1.0, 0.0, -100, 0, 5)
    with pytest.raises(ValueError, match=r"^out: shape \[2, 3\] with strides \[1, 2\], expected a contiguous array"):
        _prefuse.rows_forward(rows, bits_of(["logp", "lse"]), 1, capsule(out), 1)


def test_sets_of_statistics():
    """One bit for each, the same on both sides; the order of a table is that of the bits."""
    assert tuple(_prefuse.statistic_names()) == STATISTICS
    bits = bits_of(["kl", "logp", "entropy"])
    assert names_of(bits) == ("logp", "entropy", "kl")
    assert [position(name, bits) for name in ("logp", "entropy", "kl")] == [0, 1, 2]
    assert names_of(bits_of(STATISTICS)) == STATISTICS


@pytest.mark.parametrize("stats", [0, 1 << len(STATISTICS), -1, "logp"])
def test_what_is_no_set_of_statistics_is_refused(stats):
    rows = (capsule(torch.randn(3, 5)), capsule(torch.tensor([0, 1, 2])), None, None, 1.0, 1.0, 0.0, -100, 0, 5)
    with pytest.raises((ValueError, OverflowError, TypeError), match=r"stats|unsigned|int"):
        _prefuse.rows_forward(rows, stats, 1, capsule(torch.empty(1, 3)), 1)
