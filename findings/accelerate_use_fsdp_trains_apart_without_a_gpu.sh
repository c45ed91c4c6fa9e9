#!/usr/bin/env bash
# accelerate 1.15.0 (torch 2.15.0): `accelerate launch --use_fsdp --num_processes 2` without a GPU trains two models apart.
#
# Expected: FSDP2, which torch itself runs on the CPU (fully_shard over gloo), or an error that it is not taken. The
# launcher accepts the options, starts both processes and sets ACCELERATE_USE_FSDP for them.
# What happens: nothing is printed. Each process is of kind NO, counts one process, and keeps a plain model of its own,
# whose gradients nobody averages. With ACCELERATE_USE_CPU=true the two are MULTI_CPU and the model is wrapped by
# DistributedDataParallel, as FSDP is looked at for kinds of GPUs alone: every process holds all weights. A test of FSDP
# that is launched so on a machine without GPUs tests something else.
#
# Seen:
#   as launched: NO, 1 process(es), Sequential, 144 of 144 weights
#   with ACCELERATE_USE_CPU=true: MULTI_CPU, 2 process(es), DistributedDataParallel, 144 of 144 weights
#   torch's own fully_shard in the same processes: 72 of 144 weights
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.15.0 numpy
cat > "$folder/script.py" <<'PYTHON'
import os
import sys

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def held(model):
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in model.parameters()]
    return f"{sum(part.numel() for part in parts)} of 144 weights"


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


accelerator = Accelerator()
prepared = accelerator.prepare(model())
sharded = fully_shard(model())
if os.environ["RANK"] == "0":
    kind = f"{accelerator.distributed_type.value}, {accelerator.num_processes} process(es), {type(prepared).__name__}"
    print(f"{sys.argv[1]}: {kind}, {held(prepared)}")
    if "CPU" in sys.argv[1]:
        print(f"torch's own fully_shard in the same processes: {held(sharded)}")
PYTHON
launch() {
    "$folder/env/bin/python" -m accelerate.commands.launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy NO_WRAP \
        --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 \
        "$folder/script.py" "$1" 2>/dev/null
}
export CUDA_VISIBLE_DEVICES=""
found=$(launch "as launched"; ACCELERATE_USE_CPU=true launch "with ACCELERATE_USE_CPU=true")
echo "$found"
[ "$found" = "as launched: NO, 1 process(es), Sequential, 144 of 144 weights
with ACCELERATE_USE_CPU=true: MULTI_CPU, 2 process(es), DistributedDataParallel, 144 of 144 weights
torch's own fully_shard in the same processes: 72 of 144 weights" ]
