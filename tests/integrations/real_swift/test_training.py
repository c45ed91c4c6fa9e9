"""What ms-swift logs, and the weights that it ends at, are the same with prefuse."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest

from prefuse.integrations import swift
from tests.integrations.folders import save_model
from tests.integrations.real_swift import MADE
from tests.integrations.real_swift.running import train
from tests.integrations.runs import differences, same_bits

LORA = {"tuner_type": "lora", "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "lora_rank": 2}

CASES = {
    "dpo": {},
    "dpo, one pair at a time": {"per_device_train_batch_size": 1},
    "dpo, all logits": {"use_logits_to_keep": False},
    "dpo, hinge and SFT": {"loss_type": ["hinge", "sft"], "loss_weights": [0.7, 0.3]},
    "dpo, ipo": {"loss_type": "ipo"},
    "dpo, LD-DPO, RPO": {"ld_alpha": 0.3, "rpo_alpha": 0.5},
    "dpo, LoRA": LORA,
    "dpo, accumulation": {"gradient_accumulation_steps": 2},
    "kto": {"rlhf_type": "kto", "per_device_train_batch_size": 4},
    "kto, LoRA, all logits": {
        "rlhf_type": "kto",
        "per_device_train_batch_size": 4,
        "use_logits_to_keep": False,
        **LORA,
    },
    "cpo": {"rlhf_type": "cpo"},
    "simpo": {"rlhf_type": "simpo", "cpo_alpha": 0.0},
    "orpo": {"rlhf_type": "orpo"},
    "orpo, LoRA on the head": {"rlhf_type": "orpo", **LORA, "target_modules": ["q_proj", "lm_head"]},
}
"""Arguments beside those of `train`."""


REWARD = """
from swift.rewards import ORM, orms

class Letters(ORM):
    def __call__(self, completions, **kwargs):
        return [sum(map(ord, each)) % 7 / 7 for each in completions]

orms["letters"] = Letters
"""


@pytest.fixture
def grpo(tmp_path):
    """Arguments of GRPO with a reward."""
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "rlhf_type": "grpo",
        "external_plugins": str(tmp_path / "reward.py"),
        "reward_funcs": "letters",
        "num_generations": 2,
        "max_completion_length": 6,
        "temperature": 0.7,
    }


@contextlib.contextmanager
def without_logits():
    """prefuse in ms-swift, where nothing is asked of logits."""
    from swift.rlhf_trainers.rlhf_mixin import RLHFTrainerMixin

    def get_per_token_logps(self, logits, labels, label_pad_token_id=-100, reduction="mean"):
        raise AssertionError("the logits were made")

    def selective_log_softmax(*_):
        raise AssertionError("the logits were made")

    with (
        mock.patch.object(RLHFTrainerMixin, "get_per_token_logps", get_per_token_logps),
        mock.patch.object(swift, "selective_log_softmax", selective_log_softmax),
        swift.accelerate(fallback="error"),
    ):
        yield


def compare(model, data, tmp_path, **arguments):
    plain = train(model, data, tmp_path / "plain", **arguments)
    with without_logits():
        ours = train(model, data, tmp_path / "ours", **arguments)
    found = differences(plain, ours)
    assert found.pop("weights") < 5e-5  # of Adam, which divides by the gradient's size
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("case", CASES)
def test_the_same_training(case, model, data, tmp_path):
    compare(model, data, tmp_path, **CASES[case])


@pytest.mark.parametrize("arguments", [{"beta": 0.1, "log_entropy": True}, {"beta": 0.0, "loss_type": "dr_grpo"}, LORA])
def test_grpo(arguments, grpo, model, data, tmp_path):
    compare(model, data, tmp_path, **grpo, **arguments)


@pytest.mark.parametrize("rlhf_type", ["dpo", "kto", "grpo"])
def test_rows_without_padding(rlhf_type, grpo, model, data, tmp_path, monkeypatch):
    """ms-swift asks for flash attention, which the CPU has not; sdpa tells sequences apart by their positions."""
    monkeypatch.setattr("swift.arguments.SftArguments._check_padding_free", lambda _: None)
    others = grpo if rlhf_type == "grpo" else {"rlhf_type": rlhf_type, "per_device_train_batch_size": 4}
    compare(model, data, tmp_path, padding_free=True, attn_impl="sdpa", **others)


def test_router_loss(data, tmp_path):
    model = save_model(tmp_path / "model", "mixtral")
    compare(model, data, tmp_path, model_type="mixtral", router_aux_loss_coef=0.1)


def test_what_is_left_is_scored_by_logits(model, data, tmp_path, monkeypatch):
    """As of a multimodal model, which this one is said to be."""
    plain = train(model, data, tmp_path / "plain")
    with swift.accelerate(fallback="error"):
        monkeypatch.setattr(swift, "_left", lambda *_: True)
        ours = train(model, data, tmp_path / "ours")
    found = differences(plain, ours)
    assert found.pop("weights") < 5e-5
    assert max(found.values()) < 1e-5, found


PLUGIN = """
import prefuse.integrations.swift
from tests.integrations.real_swift import MADE

MADE.append(prefuse.integrations.swift.accelerate())
"""


def test_as_a_plugin(model, data, tmp_path):
    """The two lines of docs/integrations.md, in a file that ms-swift imports."""
    from swift.rlhf_trainers.dpo_trainer import DPOTrainer

    before = DPOTrainer.concatenated_forward
    plugin = tmp_path / "prefuse_plugin.py"
    plugin.write_text(PLUGIN)
    plain = train(model, data, tmp_path / "plain")
    ours = train(model, data, tmp_path / "ours", external_plugins=str(plugin))
    assert DPOTrainer.concatenated_forward is not before
    [made] = MADE
    made.remove()
    assert DPOTrainer.concatenated_forward is before
    assert max(differences(plain, ours).values()) < 5e-5


def test_everything_is_put_back(model, data, tmp_path):
    from swift.rlhf_trainers import dpo_trainer, grpo_trainer, kto_trainer, rlhf_mixin

    places = [
        rlhf_mixin,
        grpo_trainer,
        rlhf_mixin.RLHFTrainerMixin,
        dpo_trainer.DPOTrainer,
        kto_trainer.KTOTrainer,
        grpo_trainer.GRPOTrainer,
    ]
    before = [dict(vars(place)) for place in places]
    plain = train(model, data, tmp_path / "plain")
    made = swift.accelerate()
    again = swift.accelerate()
    train(model, data, tmp_path / "ours", max_steps=1)
    made.remove()
    assert [dict(vars(place)) for place in places] != before
    again.remove()
    assert [dict(vars(place)) for place in places] == before
    assert same_bits(plain, train(model, data, tmp_path / "plain again"))


def test_bfloat16(model, data, tmp_path):
    """ms-swift rounds log-probabilities to bfloat16, and prefuse keeps float32."""
    plain = train(model, data, tmp_path / "plain", torch_dtype="bfloat16", max_steps=2)
    with swift.accelerate(fallback="error"):
        ours = train(model, data, tmp_path / "ours", torch_dtype="bfloat16", max_steps=2)
    found = differences(plain, ours)
    assert found["exact losses"] < 2e-2
    assert found["logps/chosen"] < 1e-2
