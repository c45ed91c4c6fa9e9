"""The head's hands and their comparison on sizes of a moment; what they compute and how much memory ours takes."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefuse.bench import head, memory, quality
from prefuse.linear.plans import WORKSPACE_BYTES

TINY = {"pairs": 2, "tokens": 24, "features": 8, "classes": 40}
MEBIBYTE = 1 << 20
NEEDS_CUDA = {(head.LIGER, head.NLL)}
ON_CPU = [
    (name, task)
    for name in (*head.ON_CPU, head.PREFUSE_WIDE, head.LIGER_SCALED)
    for task in (head.DPO, head.NLL)
    if (name, task) not in NEEDS_CUDA
]


@pytest.fixture
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(("name", "task"), ON_CPU)
@pytest.mark.parametrize("masked", [0.0, 0.5])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hands_are_right(name, task, masked, trainable, dtype, uncompiled):
    batch = head.inputs(**TINY, dtype=dtype, masked=masked, trainable=trainable)
    assert head.disagreement(name, task, batch) is None
    gradients = head.step(name, task, batch)()
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in batch.leaves]
    assert len(gradients) == 1 + trainable
    assert sum(gradient.numel() * gradient.element_size() for gradient in gradients) == batch.output_bytes


@pytest.mark.parametrize("what", ["loss", "hidden", "weight"])
def test_a_hand_that_computes_something_else_is_found(what, monkeypatch):
    def wrong(hidden, weight, labels):
        right = head.through(head.log_softmax_gather, head.DPO)(hidden, weight, labels)
        changed = {"loss": right, "hidden": 0.01 * hidden.sum(), "weight": weight.sum()}[what]
        return right + (changed.detach() if what == "loss" else changed - changed.detach())

    monkeypatch.setitem(head.HANDS, head.EAGER, lambda task: wrong)
    found = head.disagreement(head.EAGER, head.DPO, head.inputs(**TINY, trainable=True))
    assert found.startswith(f"disagrees: {'the loss' if what == 'loss' else f'd({what})'} is off by")


def test_a_hand_that_fails_says_why(monkeypatch):
    monkeypatch.setitem(head.HANDS, head.EAGER, lambda task: lambda *batch: torch.empty(-1))
    assert head.disagreement(head.EAGER, head.DPO, head.inputs(**TINY)).startswith("RuntimeError: Trying to create")


def test_the_check_sees_ignored_tokens_and_others():
    for masked, tokens in ((0.5, 24), (0.5, 200), (0.1, 200)):
        few = head._few(head.inputs(2, tokens, 8, 40, masked=masked))
        ignored = (few.labels == head.IGNORED).float().mean()
        assert few.labels.shape == (4, 16) and 0 < ignored < 1
        assert few.hidden.shape == (4, 16, 8)
    assert head._few(head.inputs(2, 5, 8, 40)).labels.shape == (4, 5)


def test_a_library_that_is_missing_is_named(monkeypatch):
    for module in ("cut_cross_entropy", "quack.linear_cross_entropy", "verl.utils.kernel.linear_cross_entropy"):
        monkeypatch.setitem(sys.modules, module, None)
    found, absent = head.available((head.EAGER, head.CCE, head.QUACK, head.VERL), head.NLL)
    assert found == [head.EAGER]
    assert list(absent) == [head.CCE, head.QUACK, head.VERL]
    assert all("import of" in reason for reason in absent.values())


def test_unknown_hands_and_tasks():
    with pytest.raises(ValueError, match="name: got 'nobody', expected one of prefuse"):
        head.hand("nobody", head.DPO)
    with pytest.raises(ValueError, match="task: got 'ppo'"):
        head.hand(head.PREFUSE, "ppo")


@pytest.mark.parametrize(("trainable", "masked", "rows"), [(False, 0.0, 96), (True, 0.5, 48)])
def test_the_bare_gemms_are_those_of_the_scored_tokens(trainable, masked, rows):
    shapes = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in str(function):
                shapes.append((*args[0].shape, args[1].shape[1]))
            return function(*args, **(kwargs or {}))

    run = head.bare(head.inputs(**TINY, masked=masked, trainable=trainable))
    with Products():
        run()
    assert shapes == [(rows, 8, 40), (rows, 40, 8), (40, rows, 8)][: 2 + trainable]


def test_ours_takes_the_workspace_and_the_unscaled_gradient_at_most():
    size = {"pairs": 2, "tokens": 1024, "features": 64, "classes": 65536}
    peak = memory.peak_extra_bytes("prefuse.bench.head:run", name=head.PREFUSE, **size)
    if peak is None:
        pytest.skip("this system does not tell")
    gradient = 4 * 1024 * 64 * 2
    assert 1.5 * WORKSPACE_BYTES < 4 * 1024 * 65536 * 2  # the logits would not fit
    assert WORKSPACE_BYTES // 2 < peak - gradient < WORKSPACE_BYTES + gradient + 16 * MEBIBYTE


@pytest.fixture
def script(monkeypatch):
    """The benchmark as a module, its slow parts small."""
    path = Path(__file__).parents[2] / "benchmarks" / "head_cpu.py"
    spec = importlib.util.spec_from_file_location("head_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda factory, **arguments: 1 << 24)
    small = functools.partial(quality.problem, pairs=6, tokens=4, features=16, classes=300)
    monkeypatch.setattr(quality, "problem", small)
    return module


def test_the_benchmark_runs_and_writes_its_results(script, monkeypatch, tmp_path, capsys):
    arguments = ["--pairs", "2", "--tokens", "8", "--features", "8", "--vocabulary", "40", "--rounds", "2"]
    hands = (head.PREFUSE, head.EAGER, head.TRL)
    monkeypatch.setattr(sys, "argv", ["head_cpu.py", *arguments, "--hands", *hands, "--results", str(tmp_path)])
    script.main()
    said = capsys.readouterr().out
    assert "weight frozen, 50% masked" in said and "relative error of the gradient, bfloat16, confident tokens" in said
    (path,) = tmp_path.glob("head_cpu-*.json")
    report = json.loads(path.read_text())
    assert {"cpu", "cores", "torch"} <= set(report["machine"]) and report["sizes"]["classes"] == 40
    cases = {(case["hand"], case["weight"], case["masked"]): case for case in report["cases"]}
    assert len(report["cases"]) == len(cases) == 4 * 2 * 2
    for (name, weight, masked), case in cases.items():
        assert case["seconds"]["median"] > 0 and case["times_gemms"] > 0
        assert name != script.BARE or case["times_gemms"] == case["times_gemms_fastest"] == 1
        assert masked or case["times_unmasked"] == 1
        assert (case["peak_beyond_gradients_bytes"] is None) == bool(masked)
        assert case["allowed_bytes"] == WORKSPACE_BYTES + 4 * 8 * 8 * 2
        plan = {"frozen": "single-pass", "trained": "grouped"}[weight] if name == head.PREFUSE else None
        assert (case["plan"] or {"name": None})["name"] == plan
    outputs = 4 * 8 * 8 * 2
    assert cases[head.EAGER, "frozen", 0.0]["peak_beyond_gradients_bytes"] == (1 << 24) - outputs
    assert cases[head.EAGER, "trained", 0.0]["peak_beyond_gradients_bytes"] == (1 << 24) - outputs - 40 * 8 * 2
    assert {case["way"] for case in report["quality"]} == {head.TRL, *quality.WAYS}


def test_a_hand_that_is_wrong_is_not_measured(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(head.HANDS, head.EAGER, lambda task: lambda hidden, weight, labels: hidden.sum())
    arguments = ["--pairs", "1", "--tokens", "4", "--features", "8", "--vocabulary", "40", "--rounds", "2"]
    hands = (head.PREFUSE, head.EAGER)
    monkeypatch.setattr(sys, "argv", ["head_cpu.py", *arguments, "--hands", *hands, "--results", str(tmp_path)])
    script.main()
    assert f"not measured: {head.EAGER} (disagrees" in capsys.readouterr().out
    report = json.loads(next(tmp_path.iterdir()).read_text())
    assert {case["hand"] for case in report["cases"]} == {script.BARE, head.PREFUSE}
    assert report["quality"] is None
