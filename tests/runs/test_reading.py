"""One real training of TRL's, read back from everywhere it was logged to: the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import prefuse.__main__ as command_line
from prefuse import runs, viz
from prefuse.runs.run import canonical, run_of
from tests.integration.models import saved
from tests.trl.running import pairs, tokenizer

PROJECT = "dashboard"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after 12 steps of DPO with evaluations, which logged to TensorBoard and to trackio."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("TRACKIO_PROJECT", PROJECT)
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "out" / "runs"))
        from trl import DPOConfig, DPOTrainer

        torch.manual_seed(0)
        trainer = DPOTrainer(
            saved("llama", folder / "model"),
            args=DPOConfig(
                str(folder / "out"),
                use_cpu=True,
                bf16=False,
                max_steps=12,
                logging_steps=1,
                eval_strategy="steps",
                eval_steps=6,
                save_steps=6,
                per_device_train_batch_size=2,
                learning_rate=1e-2,
                report_to=["tensorboard"],
                disable_tqdm=True,
            ),
            train_dataset=pairs(),
            eval_dataset=pairs(4),
            processing_class=tokenizer(),
        )
        trainer.train()
    return trainer


def assert_same(found: runs.Run, expected: runs.Run, tolerance: float = 0.0) -> None:
    for name in ("loss", "rewards/chosen", "rewards/margins", "logps/chosen", "eval/loss", "eval/rewards/accuracies"):
        assert found.series[name].steps.tolist() == expected.series[name].steps.tolist(), name
        assert np.allclose(found.series[name].values, expected.series[name].values, rtol=tolerance, atol=0.0), name


def test_a_trainer_its_state_and_its_history_are_the_same(trained: Any) -> None:
    run = runs.read(trained)
    assert run.name == trained.args.output_dir and run.last_step == 12
    assert run.series["loss"].steps.tolist() == list(range(1, 13))
    assert run.series["eval/loss"].steps.tolist() == [6, 12]
    assert run.series["loss"].values[0] == pytest.approx(np.log(2), abs=1e-6)
    assert_same(runs.read(trained.state), run)
    assert_same(runs.read(trained.state.log_history), run)
    assert runs.read(run) is run


def test_an_output_folder_is_read_by_tensorboard(trained: Any) -> None:
    expected = runs.read(trained)
    assert_same(runs.read(trained.args.output_dir), expected, 1e-6)  # its files are float32
    file = next(Path(trained.args.output_dir).rglob("*tfevents*"))
    assert_same(runs.read(file), expected, 1e-6)


def test_the_checkpoint_with_the_most_steps_counts(trained: Any, tmp_path: Path) -> None:
    for step in (6, 12):
        state = Path(trained.args.output_dir) / f"checkpoint-{step}" / "trainer_state.json"
        copy = tmp_path / f"checkpoint-{step}" / state.name
        copy.parent.mkdir()
        copy.write_bytes(state.read_bytes())
    assert_same(runs.read(tmp_path), runs.read(trained))
    assert runs.read(tmp_path / "checkpoint-6" / "trainer_state.json").last_step == 6


def test_trackio_is_read_by_trackio(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path)
    for name, rows in (("first", trained.state.log_history[:3]), ("second", trained.state.log_history)):
        for at, row in enumerate(rows):
            sqlite_storage.SQLiteStorage.log(project=PROJECT, run=name, metrics=rewritten(row), step=at)
    expected = runs.read(trained)
    assert_same(runs.read(f"trackio:{PROJECT}/second"), expected)
    assert runs.read(f"trackio:{PROJECT}/first").last_step == 3
    by_name = {run.name: run for run in trackio.Api().runs(PROJECT)}
    assert_same(runs.read(by_name["second"]), expected)
    with pytest.raises(FileNotFoundError, match=r"no run third in trackio's project dashboard, which has .*first"):
        runs.read(f"trackio:{PROJECT}/third")


def rewritten(row: dict[str, float]) -> dict[str, float]:
    """A row as transformers' callbacks hand it to trackio and wandb."""
    from transformers.integrations.integration_utils import rewrite_logs

    return {
        **rewrite_logs({name: value for name, value in row.items() if name != "step"}),
        "train/global_step": row["step"],
    }


def test_runs_of_the_api_of_wandb(trained: Any) -> None:
    rows = [{**rewritten(row), "_step": at, "_runtime": None} for at, row in enumerate(trained.state.log_history)]
    assert_same(runs.read(SimpleNamespace(name="one", scan_history=lambda: iter(rows))), runs.read(trained))


def test_offline_runs_of_wandb(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the installed wandb itself writes, with a row that is longer than a block."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed, which writes such files")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", project="dashboard", dir=str(tmp_path)) as run:
        for at, row in enumerate(trained.state.log_history):
            run.log({**rewritten(row), "note": "x" * 70_000 * (at == 3), "nested": {"at": at}})
    wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for place in (path, tmp_path):
        assert_same(runs.read(place), runs.read(trained))
    assert runs.read(path).series["nested.at"].values[-1] == len(trained.state.log_history) - 1


def test_tables_and_rows_in_files(trained: Any, tmp_path: Path) -> None:
    history = trained.state.log_history
    table = pandas.DataFrame(history)  # empty cells are NaN
    expected = runs.read(trained)
    assert_same(runs.read(table), expected)
    table.to_csv(tmp_path / "log.csv", index=False)
    assert_same(runs.read(tmp_path / "log.csv"), expected)
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, history)) + "\n")
    assert_same(runs.read(tmp_path / "log.jsonl"), expected)


def test_of_two_values_of_a_step_the_later_counts() -> None:
    run = run_of("resumed", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}])
    assert run.series["loss"].values.tolist() == [1.0, 3.0]


def test_what_is_no_number_is_left_out_and_not_finite_numbers_stay() -> None:
    run = run_of(
        "odd", [{"step": 1, "loss": "0.5", "note": "text", "flag": True, "none": None}, {"step": 2, "loss": np.inf}]
    )
    assert set(run.series) == {"loss"} and run.series["loss"].values.tolist() == [0.5, np.inf]


def test_names() -> None:
    names = ("loss", "train/loss", "eval_loss", "eval/loss", "eval_rewards/chosen", "train/rewards/chosen")
    assert [canonical(name) for name in names] == [
        "loss", "loss", "eval/loss", "eval/loss", "eval/rewards/chosen", "rewards/chosen",
    ]  # fmt: skip


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    def refused(run: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            runs.read(run)

    refused(tmp_path / "none", FileNotFoundError, "no file or folder .*none")
    refused(tmp_path, FileNotFoundError, "has no event files of TensorBoard's, no trainer_state.json")
    refused([], ValueError, "nothing was logged in run")
    refused([{"step": 1}], ValueError, "nothing was logged")
    refused(3, TypeError, "got int")
    files = {
        "a.txt": ("x", "expected a name that ends in"),
        "a.json": ("{", "Expecting property name"),
        "b.json": ("{}", "has no 'log_history'"),
        "a.jsonl": ('{"step": 1}\nnot', "Expecting value"),
    }
    for name, (content, match) in files.items():
        (tmp_path / name).write_text(content)
        refused(tmp_path / name, ValueError, match)


def test_the_command_prints_and_draws(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.png"
    assert command_line.main(["dashboard", trained.args.output_dir, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "rewards/margins" in printed and "accuracy_at_start" in printed and os.path.getsize(out) > 10_000
    assert command_line.main(["dashboard", str(tmp_path / "none")]) == 2
    assert "dashboard: run: no file or folder" in capsys.readouterr().err


def test_the_figure_has_the_panels_that_there_is_something_for(trained: Any) -> None:
    figure = viz.dashboard(trained)
    titles = {axes.get_title() for axes in figure.axes} - {""}
    assert {"loss", "log-probability (nats)", "weight of the gradient"} <= titles
    assert "length (tokens)" not in titles
    loss = next(axes for axes in figure.axes if axes.get_title() == "loss")
    assert [line.get_label() for line in loss.lines] == ["loss", "eval/loss"]
    weight = next(axes for axes in figure.axes if axes.get_title() == "weight of the gradient")
    margins = runs.read(trained).series["rewards/margins"].values
    assert np.allclose(weight.lines[0].get_ydata(), torch.sigmoid(-torch.from_numpy(margins)).numpy(), rtol=1e-12)
    with pytest.raises(ValueError, match="has none of the numbers that a dashboard draws, but other"):
        viz.dashboard([{"step": 1, "other": 1.0}])
