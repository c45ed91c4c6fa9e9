"""What ms-swift logs, and the weights that it ends at, are the same with prefuse."""

from __future__ import annotations

import pytest

import prefuse.integrations.swift
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


@pytest.mark.parametrize("case", CASES)
def test_the_same_training(case, model, data, tmp_path):
    plain = train(model, data, tmp_path / "plain", **CASES[case])
    with prefuse.integrations.swift.accelerate(fallback="error"):
        ours = train(model, data, tmp_path / "ours", **CASES[case])
    found = differences(plain, ours)
    assert found.pop("weights") < 5e-5  # of Adam, which divides by the gradient's size
    assert max(found.values()) < 1e-5, found


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
    made = prefuse.integrations.swift.accelerate()
    again = prefuse.integrations.swift.accelerate()
    train(model, data, tmp_path / "ours", max_steps=1)
    made.remove()
    assert [dict(vars(place)) for place in places] != before
    again.remove()
    assert [dict(vars(place)) for place in places] == before
    assert same_bits(plain, train(model, data, tmp_path / "plain again"))


def test_bfloat16(model, data, tmp_path):
    """ms-swift rounds log-probabilities to bfloat16, and prefuse keeps float32."""
    plain = train(model, data, tmp_path / "plain", torch_dtype="bfloat16", max_steps=2)
    with prefuse.integrations.swift.accelerate(fallback="error"):
        ours = train(model, data, tmp_path / "ours", torch_dtype="bfloat16", max_steps=2)
    found = differences(plain, ours)
    assert found["exact losses"] < 2e-2
    assert found["logps/chosen"] < 1e-2
