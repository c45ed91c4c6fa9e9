#!/usr/bin/env bash
# transformers 5.24.0: sequences packed by position_ids attend to each other unless use_cache=False is passed.
#
# Expected: position_ids that start again at 0 mark packed sequences; the second sequence gets the log-probabilities that
# it has alone, with or without a cache, as training with a packing collator relies on.
# What happens: the packed mask is made only where no cache is. use_cache is True by default, in training too, so
# model(ids, position_ids=...) makes a cache, and the second sequence attends to the first. An attention mask of ones,
# which tokenizers return, has the same effect even without a cache.
#
# Seen:
#   default: other log-probabilities, 1.0 nats apart
#   use_cache=True: other log-probabilities, 1.0 nats apart
#   use_cache=False: the same log-probabilities, 0.0 nats apart
#   use_cache=False, mask of ones: other log-probabilities, 1.0 nats apart
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2))
first, second = torch.randint(97, (1, 5)), torch.randint(97, (1, 7))
packed = torch.cat([first, second], 1)
positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
ones = torch.ones_like(packed)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(4 if parameter.ndim == 2 else 1)
    alone = model(second).logits.log_softmax(-1)
    for name, arguments in {
        "default": {},
        "use_cache=True": {"use_cache": True},
        "use_cache=False": {"use_cache": False},
        "use_cache=False, mask of ones": {"use_cache": False, "attention_mask": ones},
    }.items():
        logps = model(packed, position_ids=positions, **arguments).logits.log_softmax(-1)[:, 5:]
        error = (logps - alone).abs().max().item()
        print(f"{name}: {'the same' if error < 1e-4 else 'other'} log-probabilities, {error:.1f} nats apart")
PYTHON
)
echo "$found"
[ "$found" = "default: other log-probabilities, 1.0 nats apart
use_cache=True: other log-probabilities, 1.0 nats apart
use_cache=False: the same log-probabilities, 0.0 nats apart
use_cache=False, mask of ones: other log-probabilities, 1.0 nats apart" ]
