#!/usr/bin/env bash
# DeepSpeed 0.19.8: a configuration without gradient_clipping clips gradients to norm 1.
#
# Expected: no clipping unless it is asked for: SGD with learning rate 0.1 and the gradient (6, 0, 8) takes the weights
# (1, 1, 1) to (0.4, 1, 0.2), as in plain PyTorch.
# What happens: the default of gradient_clipping is 1.0, so the gradient of norm 10 is cut to a tenth. With 0.0 in the
# configuration the step is the plain one. (The start compiles DeepSpeed's CPU communication: a C++ compiler is needed.)
#
# Seen:
#   found without gradient_clipping: [0.94, 1.0, 0.92]
#   found with gradient_clipping 0: [0.4, 1.0, 0.2]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy setuptools ninja==1.13.2 deepspeed==0.19.8
export DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR="$folder/extensions" PATH="$folder/env/bin:$PATH"
export RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29677
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
import deepspeed


def step(**settings):
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    configuration = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=configuration | settings
    )
    engine.backward(engine(torch.tensor([[6.0, 0.0, 8.0]])).sum())
    engine.step()
    return [round(value, 3) for value in model.weight.flatten().tolist()]


deepspeed.init_distributed("gloo")
print("found without gradient_clipping:", step())
print("found with gradient_clipping 0:", step(gradient_clipping=0.0))
PYTHON
)
found=$(grep '^found ' <<<"$found")
echo "$found"
[ "$found" = "found without gradient_clipping: [0.94, 1.0, 0.92]
found with gradient_clipping 0: [0.4, 1.0, 0.2]" ]
