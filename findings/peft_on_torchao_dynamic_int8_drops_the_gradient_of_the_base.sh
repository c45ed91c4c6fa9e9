#!/usr/bin/env bash
# PEFT 0.21.2 on torchao 0.18.0 (torch 2.15.0): with layers quantised by Int8DynamicActivationInt8WeightConfig LoRA trains
# with another gradient than that of the loss.
#
# Expected: the gradient, as with Int8WeightOnlyConfig, or an error: PEFT makes layers of its own for torchao's tensors.
# What happens: nothing is printed. The output of a layer quantised so does not require a gradient although its input
# does, so what an adapter does to the layers after its own counts by way of their adapters and of what goes around them
# (residual connections) alone. Where nothing goes around, backward() says that no element requires a gradient.
#
# Seen: the change of the loss along a direction in lora_A, by the gradient and by a difference quotient
#   not quantised: -2.96 and -2.96, a layer's output requires a gradient: True
#   Int8WeightOnlyConfig: -2.96 and -2.96, a layer's output requires a gradient: True
#   Int8DynamicActivationInt8WeightConfig: -2.25 and -2.98, a layer's output requires a gradient: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 torchao==0.18.0 torch==2.15.0 transformers==5.24.0 numpy
cat > "$folder/script.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32, bias=False)
        self.second = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        hidden = self.first(x)
        return hidden + self.second(hidden)


for config in (None, Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    torch.manual_seed(0)
    model = Model()
    if config is not None:
        quantize_(model, config)
    needs = model.second(torch.ones(8, 32, requires_grad=True)).requires_grad
    adapters = LoraConfig(r=4, target_modules=["first", "second"], init_lora_weights=False)
    model = get_peft_model(model, adapters)
    x = torch.randn(8, 32)
    weight = model.base_model.model.first.lora_A.default.weight
    model(x).square().mean().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    slope = float((weight.grad * direction).sum())
    with torch.no_grad():
        losses = []
        for step in (0.5, -0.5):  # the loss is quadratic in this weight, so the step's size does not matter
            weight += step * direction
            losses.append(float(model(x).square().mean()))
            weight -= step * direction
    name = "not quantised" if config is None else type(config).__name__
    quotient = losses[0] - losses[1]
    print(f"{name}: {slope:.2f} and {quotient:.2f}, a layer's output requires a gradient: {needs}")
PYTHON
found=$(OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" "$folder/env/bin/python" "$folder/script.py" 2>/dev/null)
echo "$found"
[ "$found" = "not quantised: -2.96 and -2.96, a layer's output requires a gradient: True
Int8WeightOnlyConfig: -2.96 and -2.96, a layer's output requires a gradient: True
Int8DynamicActivationInt8WeightConfig: -2.25 and -2.98, a layer's output requires a gradient: False" ]
