#!/usr/bin/env bash
# torch 2.15.0: linear_cross_entropy in chunks gives NaN gradients where every label is ignored, the whole one zeros.
#
# Expected: a batch without a label to train on (a prompt longer than the window, say) has the loss 0 / 0 = NaN, but the
# gradients 0, as for cross_entropy(linear(...)), which the documentation calls equivalent: a step leaves the weights.
# What happens: with options=LinearCrossEntropyOptions() the gradients are made in the forward, with the factor 1 / 0 in
# them. One such batch makes the whole weight NaN, for good.
#
# Seen:
#   whole: loss nan, NaN in the gradients of hidden 0 of 512, weight 0 of 800
#   in chunks: loss nan, NaN in the gradients of hidden 512 of 512, weight 800 of 800
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy

torch.manual_seed(0)
labels = torch.full((64,), -100)
for name, options in {"whole": None, "in chunks": LinearCrossEntropyOptions()}.items():
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(100, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, labels, options=options)
    loss.backward()
    nans = [tensor.grad.isnan().sum().item() for tensor in (hidden, weight)]
    print(f"{name}: loss {loss.item()}, NaN in the gradients of hidden {nans[0]} of 512, weight {nans[1]} of 800")
PYTHON
)
echo "$found"
[ "$found" = "whole: loss nan, NaN in the gradients of hidden 0 of 512, weight 0 of 800
in chunks: loss nan, NaN in the gradients of hidden 512 of 512, weight 800 of 800" ]
