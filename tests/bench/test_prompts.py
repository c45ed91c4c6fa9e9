"""The benchmark of shared prompts: what it counts, that it runs, and that sharing takes no more memory."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from prefuse.bench import memory, prompts

pytest.importorskip("transformers")

PAIR = prompts.Shape(4, 2, 2, 1)


def test_pairs_of_queries_and_keys():
    assert (PAIR.whole, PAIR.packed) == (12, 8)
    assert PAIR.pairs_whole == 2 * 21
    assert PAIR.pairs_packed == 10 + 2 * (2 * 4 + 3)


def test_the_most_that_sharing_can_give():
    """By hand: two layers of width 64 with 4 heads of 16 and 2 key heads, 96 inside, and 49 152 classes."""
    model = prompts._random(2, 64, 16, 2)
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * (64 * 8 // 3)
    head, pair = 2 * 49152 * 64 * 4, 7 * 2 * 64
    whole, packed = (3 * 2 * layer * tokens + head + pair * pairs for tokens, pairs in ((12, 42), (8, 32)))
    assert prompts.most(PAIR, model) == pytest.approx(whole / packed)
    alone = (3 * 2 * layer * 12 + pair * 42) / (3 * 2 * layer * 8 + pair * 32)
    assert prompts.most(PAIR, model, scored=False) == pytest.approx(alone)
    assert prompts.most(prompts.Shape(0, 6, 2, 1), model) == 1


@pytest.fixture
def script(monkeypatch):
    """The benchmark as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / "prompts_cpu.py"
    spec = importlib.util.spec_from_file_location("prompts_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(prompts, "causal_lm", lambda folder, layers: prompts._random(layers, 64, 16, 2).train())
    return module


def test_the_benchmark_runs_and_writes_its_results(script, monkeypatch, tmp_path, capsys):
    hands = (prompts.WHOLE, prompts.SHARED, prompts.DENSE, prompts.TRL)
    options = ["--layers", "1", "--rounds", "2", "--processor-time", "--no-memory", "--results", str(tmp_path)]
    monkeypatch.setattr(script, "SHAPES", {"a pair": prompts.Shape(20, 4, 2, 1)})
    monkeypatch.setattr(sys, "argv", ["prompts_cpu.py", *options, "--shapes", "a pair", "--hands", *hands])
    script.main()
    assert "at most 1." in capsys.readouterr().out
    (path,) = tmp_path.glob("prompts_cpu-*.json")
    report = json.loads(path.read_text())
    assert [case["hand"] for case in report["cases"]] == list(hands)
    assert all(case["seconds"]["fastest"] > 0 and 1 < case["most"] < 48 / 28 for case in report["cases"])


def test_the_layers_alone(script, monkeypatch, tmp_path):
    options = ["--layers", "1", "--rounds", "2", "--no-head", "--results", str(tmp_path)]
    monkeypatch.setattr(script, "SHAPES", {"a pair": prompts.Shape(20, 4, 2, 1)})
    monkeypatch.setattr(sys, "argv", ["prompts_cpu.py", *options, "--shapes", "a pair"])
    script.main()
    (path,) = tmp_path.glob("prompts_layers_cpu-*.json")
    report = json.loads(path.read_text())
    assert report["comparison"].endswith("the layers alone")
    assert [case["hand"] for case in report["cases"]] == [prompts.WHOLE, prompts.SHARED]


def test_sharing_takes_no_more_memory():
    given = {"folder": None, "layers": 1, "shape": [256, 64, 2, 1]}
    whole, shared = (
        memory.peak_extra_bytes("prefuse.bench.prompts:run", name=name, **given)
        for name in (prompts.WHOLE, prompts.SHARED)
    )
    if whole is None:
        pytest.skip("this system does not tell")
    assert shared <= whole
