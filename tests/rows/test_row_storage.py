"""Memory that large gradients and tiles keep between steps: one owner at a time, bounded, given back when asked."""

from __future__ import annotations

import itertools
import os
import signal
import threading

import pytest
import torch

import prefuse
import prefuse._prefuse as _prefuse
from prefuse._backends import storage
from tests.devices import integers, normal

ROWS, CLASSES = 12, 100_000  # 4.8 MB in float32
CPU = torch.device("cpu")
BYTES = ROWS * CLASSES * 4
PATIENCE = 60
"""Seconds until a child counts as stuck."""


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """The suite's own variable apart, every test begins and ends without kept memory."""
    monkeypatch.delenv(storage.VARIABLE, raising=False)
    prefuse.release_memory()
    yield
    prefuse.release_memory()


def problem(seed=1):
    return normal(ROWS, CLASSES, seed=seed), integers(CLASSES, ROWS, seed=seed)


def gradient(logits, labels):
    leaf = logits.detach().requires_grad_()
    prefuse.token_logps(leaf, labels).sum().backward()
    return leaf.grad


def expected(logits, labels):
    return torch.nn.functional.one_hot(labels, CLASSES) - logits.double().softmax(-1)


def assert_right(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-7)


def test_the_memory_of_a_gradient_is_kept_for_the_next():
    found = gradient(*problem())
    address = found.data_ptr()
    assert _prefuse.storage_idle() == 0
    del found
    assert _prefuse.storage_idle() >= BYTES
    again = gradient(*problem(seed=2))
    assert (again.data_ptr(), _prefuse.storage_idle()) == (address, 0)
    assert_right(again, expected(*problem(seed=2)))


def test_small_tensors_are_pytorchs():
    found = gradient(normal(2, 100, seed=1), integers(100, 2, seed=1))
    del found
    assert _prefuse.storage_idle() == 0


def test_live_gradients_share_nothing():
    """Each is written over its whole length, and what the others hold stays."""
    problems = [problem(seed) for seed in range(4)]
    found = [gradient(*problems[seed % 4]) for seed in range(4)]
    copies = [one.clone() for one in found]
    found[1] = found[3] = None
    more = [gradient(*problems[seed]) for seed in (3, 1)]
    spans = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in (found[0], found[2], *more))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    for one in more:
        one.fill_(7)
    assert torch.equal(found[0], copies[0]) and torch.equal(found[2], copies[2])


def test_a_view_keeps_the_memory():
    row = gradient(*problem())[3]
    assert _prefuse.storage_idle() == 0
    more = gradient(*problem(seed=2)).fill_(7)
    assert_right(row, expected(*problem())[3])
    del row, more
    assert _prefuse.storage_idle() >= 2 * BYTES


def test_release_gives_back_what_is_idle_and_nothing_else():
    kept, gone = gradient(*problem()), gradient(*problem(seed=2))
    del gone
    idle = _prefuse.storage_idle()
    assert prefuse.release_memory() == idle >= BYTES
    assert (_prefuse.storage_idle(), prefuse.release_memory()) == (0, 0)
    assert_right(kept, expected(*problem()))


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setenv(storage.VARIABLE, "8")
    found = [gradient(*problem(seed)) for seed in range(4)]
    del found
    assert BYTES <= _prefuse.storage_idle() <= 8 << 20


def test_off_by_a_variable(monkeypatch):
    with_it = gradient(*problem())
    monkeypatch.setenv(storage.VARIABLE, "0")
    without = gradient(*problem())
    assert torch.equal(with_it, without)
    del without
    assert _prefuse.storage_idle() == 0


@pytest.mark.parametrize("given", ["-1", "1.5", "much", "²"])
def test_another_value_of_the_variable_is_refused(monkeypatch, given):
    monkeypatch.setenv(storage.VARIABLE, given)
    with pytest.raises(ValueError, match="PREFUSE_KEPT_MIB: expected a number of MiB, 0 to keep nothing, got "):
        gradient(*problem())


def test_threads_get_memory_of_their_own():
    problems = [problem(seed) for seed in range(4)]
    wrong = []

    def work(seed):
        exact = expected(*problems[seed])
        for _ in range(5):
            found, other = gradient(*problems[seed]), storage.empty((ROWS, CLASSES), torch.float32, CPU).fill_(seed)
            if (found.double() - exact).abs().max() > 1e-6 or not bool((other == seed).all()):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < _prefuse.storage_idle() <= storage.limit_bytes()


def right_in_a_child(held, copy):
    """What a forked child sees of the one tensor that is held, and does."""
    torch.set_num_threads(1)  # GNU's OpenMP has lost its other threads by the fork, and would wait for them
    right = _prefuse.storage_idle() == 0 and torch.equal(held[0], copy)
    held.pop().fill_(7)
    right = right and _prefuse.storage_idle() >= BYTES and prefuse.release_memory() >= BYTES
    mine = storage.empty((ROWS, CLASSES), torch.float32, CPU).fill_(3)
    return right and bool((mine == 3).all())


@pytest.mark.needs("fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_what_is_used_and_keeps_its_own():
    """The child sees the live gradient, nothing idle, and gives up without harm to the parent."""
    held, gone = [gradient(*problem())], gradient(*problem(seed=2))
    copy = held[0].clone()
    del gone
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)  # which ends the child, whatever it waits for
        try:
            kept_to_itself = right_in_a_child(held, copy)
            os._exit(0 if kept_to_itself else 1)
        finally:
            os._exit(2)  # an error must not run the rest of the tests a second time
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(held[0], copy) and _prefuse.storage_idle() >= BYTES
    assert_right(gradient(*problem(seed=2)), expected(*problem(seed=2)))


def test_a_capsule_that_nobody_takes_gives_its_memory_back():
    assert _prefuse.kept_storage("f32", (ROWS, CLASSES), 1 << 30) is not None
    assert _prefuse.storage_idle() >= BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_as_pytorchs_own(dtype):
    made = storage.empty((3, 1 << 21), dtype, CPU)
    assert (made.dtype, made.shape, made.stride(), made._base) == (dtype, (3, 1 << 21), (1 << 21, 1), None)
    assert made.data_ptr() % (2 << 20) == 0 or os.name == "nt"
    made.zero_()[1] = 1
    again = made.clone()
    made.share_memory_()
    assert torch.equal(made, again)
    assert _prefuse.storage_idle() >= again.nbytes, "its values have moved to shared memory"


def test_more_than_there_is_is_pytorchs_error():
    with pytest.raises(RuntimeError, match="alloc"):
        storage.empty((1 << 50,), torch.float32, CPU)


def test_the_heads_tiles_use_it():
    hidden, weight = normal(64, 8, seed=1), normal(20_000, 8, seed=2)
    prefuse.linear_token_logps(hidden, weight, integers(20_000, 64, seed=3))
    assert _prefuse.storage_idle() > 0
