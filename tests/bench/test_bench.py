import json
from collections import Counter

import pytest
import torch

from prefuse.bench import gather, machine, results, timing
from prefuse.bench.memory import peak_extra_bytes

MEGABYTE = 1 << 20


def test_cases_take_turns():
    runs = Counter()
    timings = timing.interleaved({name: lambda name=name: runs.update([name]) for name in "abc"}, rounds=4)
    assert set(timings) == set("abc")
    for measured in timings.values():
        assert 0 < measured.fastest <= measured.lower_quartile <= measured.median <= measured.upper_quartile
        assert measured.rounds == 4


@pytest.mark.parametrize("name", [name for name in gather.available() if name != gather.COMPILED])
def test_hands_agree(name):
    logits, labels = gather.inputs(5, 40, torch.float64)
    expected = gather.log_softmax_gather(logits, labels)
    torch.testing.assert_close(gather.hand(name)(logits, labels), expected)
    for backward in (False, True):
        gather.bound(name, logits, labels, backward)()


def test_only_the_hand_in_place_writes_over_its_logits():
    logits, labels = gather.inputs(5, 40, torch.float32)
    before = logits.clone()
    for name in (gather.PREFUSE, gather.PREFUSE_INPLACE):
        gather.bound(name, logits, labels, backward=True)()
        assert torch.equal(logits, before)
    gather.forward_backward(gather.hand(gather.PREFUSE_INPLACE), logits, labels, torch.ones(5))
    assert not torch.equal(logits, before)


def test_unknown_hand():
    with pytest.raises(ValueError, match="name: got 'nobody', expected one of prefuse"):
        gather.hand("nobody")


def test_peak_is_what_a_run_holds_at_most_and_a_failure_says_why():
    size = {"rows": 64, "vocabulary": 65536, "dtype": "float32"}
    logits = 64 * 65536 * 4
    peak = peak_extra_bytes("prefuse.bench.gather:run", name=gather.PREFUSE, backward=True, **size)
    if peak is None:
        pytest.skip("this system does not tell")
    assert logits <= peak + MEGABYTE
    assert peak < 1.5 * logits  # the gradient and nothing else of that size
    forward = peak_extra_bytes("prefuse.bench.gather:run", name=gather.PREFUSE, backward=False, **size)
    assert forward < 0.5 * logits
    theirs = peak_extra_bytes("prefuse.bench.gather:run", name=gather.LOG_SOFTMAX, backward=True, **size)
    assert theirs > 1.9 * logits
    with pytest.raises(RuntimeError, match="has no attribute 'nothing'"):
        peak_extra_bytes("prefuse.bench.gather:nothing")


def test_results_carry_the_machine(tmp_path):
    path = results.write(tmp_path / "new", "comparison", {"machine": machine.describe()})
    assert path.name.startswith("comparison-")
    described = json.loads(path.read_text())["machine"]
    assert {"cpu", "cores", "threads", "simd", "torch"} <= set(described)


def test_bandwidth_cases_say_what_they_move():
    cases = machine.bandwidth_cases(4096)
    assert {name: moved for name, (_, moved) in cases.items()} == {"read": 4096, "copy": 8192}
    for run, _ in cases.values():
        run()
