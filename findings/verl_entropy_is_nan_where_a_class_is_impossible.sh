#!/usr/bin/env bash
# verl 0.9.1 (torch 2.15.0): entropy_from_logits is NaN where one class has probability 0, and its gradient, too.
#
# Expected: of the logits (0, 0, -inf) the entropy of two equal classes, log 2, with the gradient (0, 0, 0), as
# torch.distributions.Categorical gives it. Models whose vocabulary is padded mask the further classes with -inf.
# What happens: the sum of softmax times logits has the term 0 * -inf, which is NaN, and with it the whole entropy.
#
# Seen:
#   torch.distributions: 0.6931
#   entropy_from_logits: nan
#   entropy_from_logits_with_chunking: nan
#   gradient: [nan, nan, nan]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install torch==2.15.0 numpy packaging tensordict==0.10.0 transformers==5.24.0
# Without its declared dependencies, among which are Ray and data packages that nothing here uses.
install --no-deps verl==0.9.1
found=$("$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import importlib.util
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch

# The file by itself: the package imports Ray, and these functions read nothing of it.
sys.modules["verl.utils.device"] = MagicMock()
[file] = [path for folder in sys.path for path in Path(folder).glob("verl/utils/torch_functional.py")]
spec = importlib.util.spec_from_file_location("torch_functional", file)
functional = importlib.util.module_from_spec(spec)
spec.loader.exec_module(functional)
entropy_from_logits = functional.entropy_from_logits
entropy_from_logits_with_chunking = functional.entropy_from_logits_with_chunking

logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
print(f"torch.distributions: {torch.distributions.Categorical(logits=logits.detach()).entropy().item():.4f}")
entropy = entropy_from_logits(logits)
print(f"entropy_from_logits: {entropy.item():.4f}")
print(f"entropy_from_logits_with_chunking: {entropy_from_logits_with_chunking(logits).item():.4f}")
entropy.sum().backward()
print("gradient:", logits.grad[0].tolist())
PYTHON
)
echo "$found"
[ "$found" = "torch.distributions: 0.6931
entropy_from_logits: nan
entropy_from_logits_with_chunking: nan
gradient: [nan, nan, nan]" ]
