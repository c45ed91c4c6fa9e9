"""SimPO in a plain `transformers.Trainer`: one method, and the logits are never made.

    python examples/transformers_trainer.py

The model is a random Llama of a few thousand weights and the pairs are random tokens, so that it runs anywhere in
seconds; with a real model and tokenizer the trainer stays as it is.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import prefuse

PAIRS, PROMPT, LENGTH, VOCABULARY = 32, 4, 12, 64


class SimpoTrainer(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The loss is a mean over the pairs of a step, which accumulation averages; it is none over tokens.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        # The head of whatever the trainer has wrapped the model in; it is made at the first step and found later.
        score = prefuse.head(model).preference_loss("simpo", labels=labels, inputs=inputs)
        return (score.loss, {"losses": score.losses}) if return_outputs else score.loss


def collate(pairs):
    """One batch of pairs: all chosen sequences, then all rejected ones."""
    tokens = torch.stack([pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs])
    labels = tokens.clone()
    labels[:, :PROMPT] = -100  # the prompt is not scored
    return {"input_ids": tokens, "labels": labels}


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    tokens = torch.randint(VOCABULARY, (PAIRS, 2, LENGTH))
    tokens[:, 1, :PROMPT] = tokens[:, 0, :PROMPT]  # both answer the same prompt
    with tempfile.TemporaryDirectory() as folder:
        trainer = SimpoTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=8,
                learning_rate=3e-3,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,  # the model's forward does not name the columns of a pair
                disable_tqdm=True,
            ),
            train_dataset=[{"chosen": chosen, "rejected": rejected} for chosen, rejected in tokens],
            data_collator=collate,
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
