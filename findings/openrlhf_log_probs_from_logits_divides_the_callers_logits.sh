#!/usr/bin/env bash
# OpenRLHF 0.11.2 (torch 2.15.0): log_probs_from_logits with a temperature changes the logits that it is given.
#
# Expected: the arguments are as before the call; two calls with the same arguments give the same; logits that require a
# gradient may be given.
# What happens: they are divided by the temperature in place. The second call divides what the first has left, and a leaf
# that requires a gradient raises.
#
# Seen:
#   logits before: [2.0, 1.0, 0.0]
#   logits after: [4.0, 2.0, 0.0]
#   first call: -0.1429
#   second call, same arguments: -0.0185
#   with requires_grad: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install torch==2.15.0 numpy
install --no-deps openrlhf==0.11.2
cat > "$folder/script.py" <<'PYTHON'
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

# The file by itself, with DeepSpeed by name alone: the package imports flash-attn, which needs a GPU's compiler, and this
# function reads neither.
sys.modules["deepspeed"] = ModuleType("deepspeed")
[file] = [path for folder in sys.path for path in Path(folder).glob("openrlhf/models/utils.py")]
spec = importlib.util.spec_from_file_location("utils", file)
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)

logits, labels = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[0]])
print("logits before:", logits[0, 0].tolist())
first = utils.log_probs_from_logits(logits, labels, temperature=0.5).item()
print("logits after:", logits[0, 0].tolist())
print(f"first call: {first:.4f}")
print(f"second call, same arguments: {utils.log_probs_from_logits(logits, labels, temperature=0.5).item():.4f}")
try:
    utils.log_probs_from_logits(torch.zeros(1, 1, 3, requires_grad=True), labels, temperature=0.5)
except RuntimeError as error:
    print("with requires_grad:", type(error).__name__)
PYTHON
found=$("$folder/env/bin/python" "$folder/script.py" 2>/dev/null)
echo "$found"
[ "$found" = "logits before: [2.0, 1.0, 0.0]
logits after: [4.0, 2.0, 0.0]
first call: -0.1429
second call, same arguments: -0.0185
with requires_grad: RuntimeError" ]
