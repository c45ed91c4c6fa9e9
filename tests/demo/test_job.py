import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console

from prefuse import objectives
from prefuse.__main__ import main

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from prefuse.demo import report
from prefuse.demo.evaluate import wilson
from prefuse.demo.job import Settings, run
from prefuse.demo.progress import Display
from prefuse.demo.scored import rehearse
from tests.objectives.pairs_and_points import VARIANTS

CATALOGUE = sorted({name for name, _ in VARIANTS})
NEEDS_MORE = {
    "c_dpo": "chosen_cost",
    "dmpo": "chosen_token_turn",
    "dpo_d": "tie",
    "dpo_rk": "tie",
    "dro": "value",
    "em_dpo": "responsibility",
    "group_robust_dpo": "group_weight",
    "humanline_kto": "kl_logratio",
    "inpo": "chosen_previous_logps",
    "mallows_po": "dispersion",
    "mcts_dpo": "chosen_visits",
    "modpo": "margin",
    "nbpo": "flip",
    "ns_dpo": "age",
    "odpo": "margin",
    "ofs_dpo": "chosen_other_logps",
    "opa_dpo": "revised_token_severity",
    "safe_dpo": "chosen_unsafe",
    "sampo": "chosen_token_sampled",
    "spo_degree": "degree_loss",
    "ulma": "demonstration",
    "upo": "uncertainty",
    "xpo": "chosen_from_policy",
}
"""Objectives of pairs and points with a column that pairs of docstrings do not have."""

SMALL = Settings(steps=4, sft_steps=3, pairs=8, width=32, layers=1, held_out=0.25)


def small_run(name, sources, **changes):
    settings = dataclasses.replace(SMALL, sources=sources, **changes)
    return run(objectives.get(name), settings, Display(Console(file=io.StringIO())))


def figures(outcome):
    """All that training showed: what must be the same for the same seed."""
    return outcome.sft_losses, outcome.history, outcome.held_out


def test_a_run_has_all_figures(sources):
    outcome = small_run("dpo", sources)
    assert [step.step for step in outcome.history] == [1, 2, 3, 4]
    assert len(outcome.sft_losses) == 3
    assert outcome.history[0].loss == pytest.approx(0.6931472, abs=1e-6)  # policy and reference are still the same
    assert list(outcome.held_out) == [0, 1, 2, 3, 4]
    for name in ("functions", "modules"):
        before, after = outcome.before[name], outcome.after[name]
        assert before.accuracy == 0.5  # and every margin a tie
        assert before.margin == 0.0
        assert before.pairs == after.pairs >= 10
        assert after.interval[0] < after.accuracy < after.interval[1]
    assert set(outcome.seconds) == {"reading", "supervised training", "preference training"}
    assert outcome.logits[1] == outcome.vocabulary


def test_threads_are_as_before(sources):
    threads = torch.get_num_threads()
    small_run("dpo", sources, steps=1, sft_steps=1)
    assert torch.get_num_threads() == threads


def test_the_seed_decides(sources):
    assert figures(small_run("dpo", sources)) == figures(small_run("dpo", sources))
    assert figures(small_run("dpo", sources, seed=1)) != figures(small_run("dpo", sources))


@pytest.mark.parametrize("name", ["simpo", "kto", "bpo", "sft", "sppo"])
def test_other_objectives(name, sources):
    outcome = small_run(name, sources, steps=2)
    assert outcome.objective.startswith(name)
    assert len(outcome.history) == 2


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in NEEDS_MORE])
def test_the_demo_feeds_the_objectives_of_pairs_and_points(name):
    rehearse(objectives.get(name))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *NEEDS_MORE.items(),
        ("sparse_po", "token_kl_weight"),
        ("grpo", "old_logps"),
        ("brain", "proposal_logps"),
        ("p3o", "old_logps"),
    ],
)
def test_what_the_demo_cannot_feed_is_named(name, column):
    with pytest.raises(TypeError, match=column):
        rehearse(objectives.get(name))


def test_wilson_interval():
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def arguments(sources, out, *more):
    return ["demo", "--sources", str(sources), "--out", str(out), "--steps", "2", "--sft-steps", "2", *more]


def test_command_writes_its_files(sources, tmp_path, capsys):
    out = tmp_path / "made" / "by demo"
    status = main(arguments(sources, out, "--objective", "simpo", "--set", "gamma=0.5", "--no-cost"))
    assert status == 0
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((out / "demo.json").read_text())
    assert data["objective"].startswith("simpo(beta=2.0, gamma=0.5")
    assert len(data["history"]) == 2
    assert data["machine"]["threads"] >= 1
    assert data["well_above_chance"]["bound"] == report.WELL_ABOVE_CHANCE
    assert "held-out functions is" in " ".join(capsys.readouterr().out.split())


def test_command_fails_where_accuracy_does_not_rise(sources, tmp_path, capsys):
    assert main(arguments(sources, tmp_path, "--no-cost")) == 1
    assert "NOT well above chance" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objective", "dop"], "names: alpha_dpo, "),
        (["--objective", "dpo", "--set", "beta"], "--set: got 'beta', expected NAME=VALUE"),
        (["--objective", "dpo", "--set", "gamma=1"], "dpo does not read 'gamma'"),
    ],
)
def test_unusable_options(more, message, sources, tmp_path, capsys):
    assert main(arguments(sources, tmp_path, *more)) == 2
    assert message in capsys.readouterr().out


def test_without_a_command_the_commands_are_shown(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "objectives" in capsys.readouterr().out


def test_shared_prompts_are_the_same_training(sources):
    """But for rounding; the history says how many tokens were computed."""
    whole, shared = (small_run("dpo", sources, share_prompts=share) for share in (False, True))
    for plain, packed in zip(whole.history, shared.history, strict=True):
        assert packed.computed < packed.tokens == plain.tokens == plain.computed
        assert packed.loss == pytest.approx(plain.loss, abs=1e-4)
        assert packed.chosen_logp == pytest.approx(plain.chosen_logp, abs=1e-2)
    console = Console(file=io.StringIO(), width=200)
    report.print_summary(console, shared, [])
    assert "prompts shared: " in console.file.getvalue()
