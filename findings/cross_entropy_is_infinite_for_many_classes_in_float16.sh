#!/usr/bin/env bash
# torch 2.15.0, CPU: log_softmax and cross_entropy of float16 logits are infinite for more than 65504 even classes.
#
# Expected: the cross entropy of equal logits over 128256 classes (the vocabulary of Llama 3) is log(128256) = 11.76, a
# number that float16 holds well (11.77); softmax gets it right, 1 / 128256.
# What happens: the sum of exp(logit - max) is rounded to float16, whose largest number is 65504, before the logarithm.
# A freshly initialised model, whose logits are all near 0, so starts with an infinite loss. 65504 classes are fine.
#
# Seen:
#   65504 float32: cross entropy 11.1, log_softmax -11.1, log of softmax -11.1
#   65504 float16: cross entropy 11.1, log_softmax -11.1, log of softmax -11.1
#   128256 float32: cross entropy 11.8, log_softmax -11.8, log of softmax -11.8
#   128256 float16: cross entropy inf, log_softmax -inf, log of softmax -11.8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

label = torch.zeros(1, dtype=torch.long)
for classes in (65504, 128256):
    for dtype in (torch.float32, torch.float16):
        logits = torch.zeros(1, classes, dtype=dtype)
        loss = torch.nn.functional.cross_entropy(logits, label).item()
        logp = logits.log_softmax(-1)[0, 0].item()
        log = logits.softmax(-1)[0, 0].float().log().item()
        print(f"{classes} {str(dtype)[6:]}: cross entropy {loss:.1f}, log_softmax {logp:.1f}, log of softmax {log:.1f}")
PYTHON
)
echo "$found"
[ "$found" = "65504 float32: cross entropy 11.1, log_softmax -11.1, log of softmax -11.1
65504 float16: cross entropy 11.1, log_softmax -11.1, log of softmax -11.1
128256 float32: cross entropy 11.8, log_softmax -11.8, log of softmax -11.8
128256 float16: cross entropy inf, log_softmax -inf, log of softmax -11.8" ]
