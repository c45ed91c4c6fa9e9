#!/usr/bin/env bash
# torch 2.15.0: a post-accumulate-grad hook is called for a parameter that has received no gradient.
#
# Expected: register_post_accumulate_grad_hook runs "after grad has been accumulated". A parameter for which the backward
# of an autograd.Function returns None gets no gradient: backward leaves .grad at None and autograd.grad gives None. So no
# call, as for a parameter that is not in the graph at all.
# What happens: the hook is called, with parameter.grad None. An optimizer step in the hook, as in PyTorch's tutorial on
# it, skips; code that reads parameter.grad fails (DeepSpeed 0.19.8 under ZeRO-3: "'NoneType' object has no attribute
# 'numel'").
#
# Seen:
#   hidden: hook called, .grad is [2.0, 2.0]
#   table: hook called, .grad is None
#   autograd.grad: (None,)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, table):
        return hidden * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2, None


def report(name):
    def hook(parameter):
        print(f"{name}: hook called, .grad is {'None' if parameter.grad is None else parameter.grad.tolist()}")

    return hook


hidden, table, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
for name, parameter in {"hidden": hidden, "table": table, "unused": unused}.items():
    parameter.register_post_accumulate_grad_hook(report(name))
Scale.apply(hidden, table).sum().backward()
print("autograd.grad:", torch.autograd.grad(Scale.apply(hidden, table).sum(), [table], allow_unused=True))
PYTHON
)
echo "$found"
[ "$found" = "hidden: hook called, .grad is [2.0, 2.0]
table: hook called, .grad is None
autograd.grad: (None,)" ]
