#!/usr/bin/env bash
# transformers 5.24.0: gradient accumulation multiplies loss and gradient of models other than causal language models.
#
# Expected: 8 samples in one batch, or in 8 batches of one that are accumulated, give one step with the same loss and
# gradient. They do for causal language models.
# What happens: for classifiers, masked language models and T5 the loss that is logged and the gradient are 8 times as
# large. The Trainer sees **kwargs in the model's forward and leaves the division to the model, which does not look at
# num_items_in_batch in its loss. Gradient clipping and Adam hide it in part; with plain SGD the learning rate
# is 8 times too large. Setting loss_is_scaled_for_ga = False on the Trainer helps.
#
# Seen:
#   BERT classifier: 8 accumulated steps against one batch: loss times 8.0, gradient norm times 8.0
#   T5: 8 accumulated steps against one batch: loss times 8.0, gradient norm times 8.0
#   GPT-2: 8 accumulated steps against one batch: loss times 1.0, gradient norm times 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 accelerate==1.15.0
found=$("$folder/env/bin/python" - <<'PYTHON'
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

torch.manual_seed(0)
tokens = torch.randint(97, (8, 12))
texts = [{"input_ids": row, "labels": row} for row in tokens]
classes = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(tokens)]
cases = {
    "BERT classifier": (BertForSequenceClassification, BertConfig, classes, dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    "T5": (T5ForConditionalGeneration, T5Config, texts, dict(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0)),
    "GPT-2": (GPT2LMHeadModel, GPT2Config, texts, dict(
        n_embd=32, n_layer=1, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
}


def first_step(model, samples, size, folder):
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_steps=1, optim="sgd",
        max_grad_norm=1e9, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=samples)
    trainer.log = lambda logs, *_: trainer.state.log_history.append(logs)
    trainer.train()
    return trainer.state.log_history[0]


for name, (kind, configuration, samples, sizes) in cases.items():
    steps = []
    for size in (8, 1):
        torch.manual_seed(0)
        model = kind(configuration(vocab_size=97, **sizes))
        with tempfile.TemporaryDirectory() as folder:
            steps.append(first_step(model, samples, size, folder))
    whole, accumulated = steps
    loss, norm = (float(accumulated[key]) / float(whole[key]) for key in ("loss", "grad_norm"))
    print(f"{name}: 8 accumulated steps against one batch: loss times {loss:.1f}, gradient norm times {norm:.1f}")
PYTHON
)
echo "$found"
[ "$found" = "BERT classifier: 8 accumulated steps against one batch: loss times 8.0, gradient norm times 8.0
T5: 8 accumulated steps against one batch: loss times 8.0, gradient norm times 8.0
GPT-2: 8 accumulated steps against one batch: loss times 1.0, gradient norm times 1.0" ]
