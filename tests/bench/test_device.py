"""`python -m prefuse bench device` where there is no device: what it says, and its parts at work on the CPU."""

import functools
import json

import pytest
import torch

import prefuse.denoising
from prefuse.__main__ import main
from prefuse._display import tables
from prefuse.bench import (
    device,
    device_checks,
    gather,
    head,
    head_device,
    machine,
    prompts,
    quality,
    results,
    scoring,
    timing,
)

HANDS = [gather.PREFUSE, gather.PREFUSE_INPLACE, gather.LOG_SOFTMAX, gather.CROSS_ENTROPY]
HEADS = (head.PREFUSE, head.PREFUSE_WIDE, head.EAGER, head.TRL, head.VERL)
CPU = torch.device("cpu")
SMALL = head_device.Size(pairs=2, tokens=4, features=8, classes=50)
TINY = device.Size(
    ((32, 50),),
    (torch.bfloat16, torch.float32),
    2,
    4096,
    ((3, 4, 5),),
    SMALL,
    prompts.Size(1, 128, (prompts.Shape(20, 5, 2, 1),)),
)
PARTS = [part for part in device.PARTS if part != "checks"]  # which put more on the device than a CPU stands for


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_device_it_is_one_sentence(capsys):
    assert main(["bench", "device", "--quick"]) == 2
    said = capsys.readouterr().out
    assert said == f"{device.NO_DEVICE}\n"
    assert said.startswith("bench device needs a CUDA device")


def test_options(capsys):
    wrong = {
        "--rounds 1": "got 1, expected 2 or more",
        "--rounds many": "many",
        "--size 3": "--size",
        "--only rows,heads": "got 'heads', expected names out of checks,bandwidth,rows,scoring,denoising,head,prompts",
        "--shapes 8192": "got '8192', expected shapes such as 8192x128256",
        "--dtypes bf16,f8": "got 'f8', expected names out of bf16,f16,f32",
        "--budget-seconds soon": "soon",
    }
    for options, said in wrong.items():
        with pytest.raises(SystemExit):
            main(["bench", "device", *options.split()])
        assert said in capsys.readouterr().err


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The device's clock, memory and profiler replaced by the CPU's."""

    def interleaved(cases, rounds):
        return timing.interleaved({name: lambda case=case: case()() for name, case in cases.items()}, rounds, warm_up=1)

    monkeypatch.setattr(timing, "interleaved_on_device", interleaved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(device.launches, "profiled", lambda run: run() and None)
    monkeypatch.setattr(gather, "on_device", lambda: ([*HANDS, gather.TRL_KERNEL], {gather.QUACK: "not installed"}))
    monkeypatch.setattr(scoring.torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(head, "ON_DEVICE", HEADS)
    monkeypatch.setattr(head_device, "peak_bytes", lambda run: (run(), 1000)[1])
    small = functools.partial(quality.problem, pairs=6, tokens=4, features=16, classes=300)
    monkeypatch.setattr(quality, "problem", small)


def test_measuring(on_the_cpu, capsys, tmp_path):
    report = {}
    kept = []
    device.measure(report, TINY, CPU, PARTS, keep=lambda: kept.append(json.dumps(report)))
    assert report["failed"] == {} and report["left_out"] == [] and report["bandwidth"].keys() == {"read", "copy"}
    assert json.loads(kept[0]).keys().isdisjoint({"rows", "head"})
    assert len(kept) == len(PARTS) + 2  # two dtypes of the rows are kept as they come
    said = capsys.readouterr().out
    assert "absent: QuACK cross_entropy (not installed)" in said
    assert "TRL Triton kernel not measured (" in said
    measured = {(case["hand"], case["dtype"], case["pass"]) for case in report["rows"]}
    assert len(measured) == 2 * (3 + 4 + 4)
    assert (gather.PREFUSE_INPLACE, "float32", device.FORWARD) not in measured
    for case in report["rows"]:
        assert case["gigabytes_per_second"] > 0
        assert case["share"] > 0
        assert case["share_of"] == ("read" if case["pass"] == device.FORWARD else "copy")
        if case["hand"] == gather.PREFUSE:
            assert case["times_prefuse"] == 1
    assert len(report["denoising"]) == 2 * 2 * 4
    assert {case["share_of"] for case in report["denoising"]} == {"read", "copy"}
    assert [case["hand"] for case in report["prompts"]] == [prompts.WHOLE, prompts.SHARED]
    assert {(case["tokens_whole"], case["tokens_packed"]) for case in report["prompts"]} == {(50, 30)}
    path = results.write(tmp_path, "device", report, "NVIDIA Some 100")
    assert path.name == "device-nvidia-some-100.json"
    assert json.loads(path.read_text())["scoring"][0]["launches"] is None


def test_a_part_that_fails_is_named_and_the_others_go_on(on_the_cpu, monkeypatch, capsys):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory\nof much")

    monkeypatch.setattr(device, "measure_scoring", fails)
    report = {}
    device.measure(report, TINY, CPU, ["denoising", "scoring"])
    assert report["failed"] == {"scoring": "OutOfMemoryError: CUDA out of memory"}
    assert "scoring" not in report and "rows" not in report
    assert all(case["share"] is None for case in report["denoising"])  # no bandwidth was measured
    assert "scoring: failed, OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out


def test_no_part_begins_after_the_budget(on_the_cpu, capsys):
    report = {}
    device.measure(report, TINY, CPU, PARTS, until=0.0)
    assert report["left_out"] == PARTS and "rows" not in report
    assert capsys.readouterr().out.count("left out, no time is left") == len(PARTS)


@pytest.mark.parametrize("free", [1 << 40, 1000])
def test_measuring_the_head(on_the_cpu, monkeypatch, capsys, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setitem(head.HANDS, head.EAGER, lambda task: lambda hidden, weight, labels: hidden.sum())
    report = head_device.measure(SMALL, 2, CPU)
    said = capsys.readouterr().out
    json.dumps(report)
    if free == 1000:
        assert report["tasks"] == [] and said.startswith("head: skipped, needs")
        return
    assert "head, DPO, weight frozen: log_softmax + gather not measured (disagrees" in said
    kinds = {(task["task"], task["weight"], task["like_a_model"]) for task in report["tasks"]}
    assert len(report["tasks"]) == 6 and len(kinds) == 6
    for task in report["tasks"]:
        if task["like_a_model"]:
            hands = [case["hand"] for case in task["cases"]]
            assert hands == [head_device.BARE, head.PREFUSE, *head.SPARSE, head_device.BY_PYTORCH]
            continue
        assert set(task["not_measured"]) == {head.EAGER, head.VERL}
        cases = {case["hand"]: case for case in task["cases"]}
        assert list(cases) == [head_device.BARE, head.PREFUSE, head.PREFUSE_WIDE, head.TRL]
        assert cases[head_device.BARE]["times_gemms"] == cases[head.TRL]["trl_over_this"] == 1
        assert cases[head.TRL]["allowed_bytes"] is None
        assert cases[head.PREFUSE_WIDE]["allowed_bytes"] == (1 << 30) + 4 * 4 * 8 * 4
    assert report["quality"] and "mean log-probability, weight trained: 16 tokens, H=8, V=50" in said


def test_a_hand_that_fails_at_full_size_is_named(on_the_cpu, monkeypatch):
    def peak_bytes(run):
        result = run()
        if result is not None:  # the bare GEMMs return nothing
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(head_device, "peak_bytes", lambda run: peak_bytes(run) or 0)
    task = head_device.measure_task(SMALL, head.DPO, False, 2, CPU)
    assert [case["hand"] for case in task["cases"]] == [head_device.BARE]
    assert task["not_measured"][head.PREFUSE] == "OutOfMemoryError: CUDA out of memory"


def test_against_some(on_the_cpu, monkeypatch):
    monkeypatch.setattr(head_device, "peak_bytes", lambda run: (run(), 0)[1])
    report = {}
    device.measure(report, TINY._replace(against=("LOG_softmax",)), CPU, ["rows"])
    assert {case["hand"] for case in report["rows"]} >= {gather.PREFUSE, gather.LOG_SOFTMAX}
    assert not [case for case in report["rows"] if case["hand"] == gather.CROSS_ENTROPY]
    task = head_device.measure_task(SMALL, head.DPO, False, 2, CPU, ["trl"])
    timed = {case["hand"] for case in task["cases"]} - {head_device.BARE}
    assert timed and all(name.startswith("prefuse") or "TRL" in name for name in timed)
    assert gather.against([gather.PREFUSE, gather.LIGER], []) == (gather.PREFUSE, gather.LIGER)
    assert gather.against([gather.PREFUSE, gather.LIGER], ["nobody"]) == (gather.PREFUSE,)


def test_a_shape_that_does_not_fit_is_named(on_the_cpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    speeds = {"read": 1e9, "copy": 1e9}
    assert device.measure_rows((32, 50), torch.float32, HANDS, 2, speeds, CPU) == []
    assert capsys.readouterr().out.startswith("[32 × 50] float32: skipped")


@pytest.mark.parametrize("dtype", device_checks.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (40, 700)])
def test_checks_pass_what_is_right_and_find_what_is_wrong(shape, dtype, monkeypatch):
    assert device_checks.rows(*shape, dtype, CPU) is None
    monkeypatch.setattr(device_checks, "_ROUNDINGS", 0)
    if shape[1] > 1:
        assert "is off by" in device_checks.rows(*shape, dtype, CPU)


def test_an_objective_is_checked(on_the_cpu, monkeypatch):
    assert device_checks.objective(CPU) is None
    monkeypatch.setattr(
        scoring, "formula", lambda **given: (given["chosen_logps"].mean() + given["rejected_logps"].sum(),)
    )
    assert device_checks.objective(CPU).startswith("objective dpo: off by")


def test_checks_of_squared_errors(monkeypatch):
    assert device_checks.squared_errors(torch.bfloat16, torch.float32, CPU) is None
    right = prefuse.denoising.squared_errors
    monkeypatch.setattr(prefuse.denoising, "squared_errors", lambda x, y: right(x, y) * 1.001)
    assert device_checks.squared_errors(torch.bfloat16, torch.float32, CPU).startswith("squared errors of")


@pytest.mark.parametrize("dtype", device_checks.HEAD_DTYPES, ids=str)
def test_the_head_is_checked(on_the_cpu, monkeypatch, dtype):
    assert device_checks.head(dtype, CPU) is None
    monkeypatch.setattr(device_checks, "_HEAD_ERROR", 0)
    assert device_checks.head(dtype, CPU).startswith("head, single-pass, ")


def test_a_hand_that_computes_something_else_is_found(monkeypatch):
    logits, labels = gather.inputs(20, 30, torch.float32)
    assert device_checks.disagreement(gather.CROSS_ENTROPY, logits, labels) is None
    monkeypatch.setattr(gather, "cross_entropy", lambda logits, labels: logits[:, 0])
    assert device_checks.disagreement(gather.CROSS_ENTROPY, logits, labels).startswith("disagrees")


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(gather, "LIBRARIES", {"nobody's": ("prefuse.nothing", "function", lambda function: function)})
    found, absent = gather.on_device()
    assert found[0] == gather.PREFUSE
    assert absent == {"nobody's": "ModuleNotFoundError: No module named 'prefuse.nothing'"}


def test_bandwidth_on_a_device():
    assert machine.bandwidth_cases(4096, CPU)["copy"][1] == 8192


def test_tables_without_rich():
    shown = tables.plain("title", ("hand", "ms"), [("a", "1.0"), ("longer", "10.0")])
    assert shown == "title\nhand      ms\na        1.0\nlonger  10.0\n"
