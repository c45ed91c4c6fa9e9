"""The reference of TRL's DPO trainer, refreshed by the callback."""

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from prefuse.outer import frozen_copy
from prefuse.outer.callbacks import ReferenceRefresh

WORDS = ["<pad>", "</s>", "<unk>", *"abcdefgh"]


def trainer(tmp_path, steps):
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    policy = LlamaForCausalLM(config)
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
    )
    data = Dataset.from_dict({"prompt": [" a b"] * 4, "chosen": [" c d"] * 4, "rejected": [" e f g"] * 4})
    return DPOTrainer(
        policy, ref_model=frozen_copy(policy), args=arguments, train_dataset=data, processing_class=tokenizer
    )


class Recorded(ReferenceRefresh):
    """Keeps the policy's weights after each step."""

    seen = ()

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        self.seen = (*self.seen, copied(kwargs["model"]))


def copied(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_the_reference_follows_the_policy_to_the_last_refresh(tmp_path):
    run = trainer(tmp_path, steps=3)
    callback, before = Recorded(run.ref_model, every=2), copied(run.ref_model)
    run.add_callback(callback)
    run.train()
    assert torch.equal(copied(run.ref_model), callback.seen[1])
    assert not torch.equal(callback.seen[1], before)
    assert not torch.equal(callback.seen[1], callback.seen[2])
