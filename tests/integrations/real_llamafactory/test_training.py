"""What LLaMA-Factory logs, and the weights that it ends at, are the same with prefuse."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from unittest import mock

import pytest

import prefuse.integrations.llamafactory
from tests.integrations.folders import save_model
from tests.integrations.real_llamafactory.running import arguments, train
from tests.integrations.runs import differences, same_bits

LORA = {"finetuning_type": "lora", "lora_target": "q_proj,v_proj", "lora_dropout": 0.0, "lora_rank": 2}
KTO = {"stage": "kto", "per_device_train_batch_size": 4}

CASES = {
    "dpo": {},
    "dpo, smoothed, with SFT": {"dpo_label_smoothing": 0.1, "pref_ftx": 0.5},
    "dpo, LD-DPO": {"ld_alpha": 0.3},
    "dpo, BCO": {"pref_bco_weight": 0.5},
    "dpo, LoRA": LORA,
    "dpo, accumulation, evaluation": {
        "gradient_accumulation_steps": 2,
        "do_eval": True,
        "val_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
    "orpo": {"pref_loss": "orpo"},
    "orpo, LoRA on the head": {"pref_loss": "orpo", **LORA, "lora_target": "q_proj,lm_head"},
    "simpo": {"pref_loss": "simpo", "pref_beta": 2.0},
    "kto": KTO,
    "kto, weights, with SFT": {**KTO, "kto_chosen_weight": 0.7, "pref_ftx": 0.3},
    "kto, LoRA": {**KTO, **LORA},
}
"""Arguments beside those of `train`."""


@pytest.fixture
def without_logits(monkeypatch):
    """prefuse in LLaMA-Factory, where nothing is asked of logits."""

    def get_batch_logps(logits, labels, label_pad_token_id=-100, ld_alpha=None):
        raise AssertionError("the logits were made")

    @contextlib.contextmanager
    def running():
        with monkeypatch.context() as refused:
            for module in ("dpo", "kto"):
                refused.setattr(f"llamafactory.train.{module}.trainer.get_batch_logps", get_batch_logps)
            with prefuse.integrations.llamafactory.accelerate(fallback="error"):
                yield

    return running


@pytest.mark.parametrize("case", CASES)
def test_the_same_training(case, model, data, tmp_path, without_logits):
    plain = train(model, data, tmp_path / "plain", **CASES[case])
    with without_logits():
        ours = train(model, data, tmp_path / "ours", **CASES[case])
    found = differences(plain, ours)
    assert found.pop("weights") < 5e-5  # of Adam, which divides by the gradient's size
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize(("asked", "first"), [("hinge", 1.0), ("ipo", 25.0)])
def test_the_objective_that_was_asked_for(asked, first, model, data, tmp_path):
    """LLaMA-Factory 0.9.5 trains the sigmoid loss with TRL 0.24 here; the right one is trained by telling TRL."""
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from trl import DPOTrainer

    def told(self, *logps):
        return DPOTrainer.dpo_loss(self, *logps, loss_type=asked)

    with prefuse.integrations.llamafactory.accelerate():
        ours = train(model, data, tmp_path / "ours", pref_loss=asked)
    with mock.patch.object(CustomDPOTrainer, "dpo_loss", told, create=True):
        right = train(model, data, tmp_path / "right", pref_loss=asked)
    plain = train(model, data, tmp_path / "plain", pref_loss=asked)
    assert ours.losses[0] == pytest.approx(first, rel=1e-5)
    assert plain.losses[0] == pytest.approx(0.6931472, rel=1e-5)
    found = differences(right, ours)
    assert found.pop("weights") < 5e-5
    assert max(found.values()) < 1e-5, found


def test_a_loss_that_this_trl_has_not(model, data, tmp_path):
    with prefuse.integrations.llamafactory.accelerate(), pytest.raises(ValueError, match="kto_pair"):
        train(model, data, tmp_path / "out", pref_loss="kto_pair")


PROGRAM = """
import prefuse.integrations.llamafactory
prefuse.integrations.llamafactory.accelerate()

from llamafactory.train.tuner import run_exp

if __name__ == "__main__":
    run_exp()
"""
"""That of docs/integrations.md."""


def test_as_a_program(model, data, tmp_path):
    config, output = tmp_path / "config.yaml", tmp_path / "ours"
    config.write_text(json.dumps(arguments(model, data, output, pref_loss="hinge")))
    (tmp_path / "train.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "train.py", str(config)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with prefuse.integrations.llamafactory.accelerate():
        here = train(model, data, tmp_path / "here", pref_loss="hinge")
    logged = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in logged if "loss" in entry] == [entry["loss"] for entry in here.logged[:-1]]


@pytest.mark.parametrize("pref_loss", ["sigmoid", "orpo"])
def test_two_processes(pref_loss, model, data, tmp_path):
    """DDP over gloo, as torchrun starts it: the same losses and gradient norms with and without prefuse."""
    logged = {}
    for name, program in (("plain", PROGRAM.split("\n\n", 1)[1]), ("ours", PROGRAM)):
        config, output = tmp_path / f"{name}.yaml", tmp_path / name
        given = arguments(model, data, output, pref_loss=pref_loss, ddp_backend="gloo")
        config.write_text(json.dumps(given))
        (tmp_path / f"{name}.py").write_text(program)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", f"{name}.py", str(config)]
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        state = json.loads((output / "trainer_state.json").read_text())
        logged[name] = [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "grad_norm" in entry]
    assert len(logged["plain"]) == len(logged["ours"]) >= 3
    for plain, ours in zip(logged["plain"], logged["ours"], strict=True):
        assert ours == pytest.approx(plain, rel=1e-4, abs=2e-4)  # the log has four digits


def test_everything_is_put_back(model, data, tmp_path):
    from llamafactory.train.dpo import trainer as dpo
    from llamafactory.train.kto import trainer as kto

    places = [dpo, kto, dpo.CustomDPOTrainer, kto.CustomKTOTrainer]
    before = [dict(vars(place)) for place in places]
    plain = train(model, data, tmp_path / "plain")
    made = prefuse.integrations.llamafactory.accelerate()
    again = prefuse.integrations.llamafactory.accelerate()
    train(model, data, tmp_path / "ours", max_steps=1)
    made.remove()
    assert [dict(vars(place)) for place in places] != before
    again.remove()
    assert [dict(vars(place)) for place in places] == before
    assert same_bits(plain, train(model, data, tmp_path / "plain again"))


def test_bfloat16(data, tmp_path):
    """Two roundings of the same numbers: theirs of the logits, ours of their product with float32 weights."""
    model = save_model(tmp_path / "model")
    plain = train(model, data, tmp_path / "plain", bf16=True, max_steps=2)
    with prefuse.integrations.llamafactory.accelerate(fallback="error"):
        ours = train(model, data, tmp_path / "ours", bf16=True, max_steps=2)
    found = differences(plain, ours)
    assert found["exact losses"] < 5e-3
    assert found["logps/chosen"] < 5e-3


def test_a_head_with_a_bias(data, tmp_path):
    model = save_model(tmp_path / "model", "phi")
    plain = train(model, data, tmp_path / "plain")
    with prefuse.integrations.llamafactory.accelerate():
        ours = train(model, data, tmp_path / "ours")
    found = differences(plain, ours)
    assert found.pop("weights") < 5e-5
    assert max(found.values()) < 1e-5, found
