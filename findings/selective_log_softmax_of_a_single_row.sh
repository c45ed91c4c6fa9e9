#!/usr/bin/env bash
# trl 1.16.0: selective_log_softmax of one row of logits gives a number per class, or raises, by dtype.
#
# Expected: the docstring allows logits of shape (..., num_classes) with an index of shape (...), so also (23,) with a
# scalar, and gives one log-probability, "the same shape as index"; (0, 23) with (0,), a batch that was filtered to
# nothing, gives an empty tensor. log_softmax and gather, named there as equivalent, do so.
# What happens: a loop over the first dimension takes each class for a row. float32 gives 23 numbers, each the difference
# of two logits, bfloat16 an index error; no rows raise in torch.stack.
#
# Seen:
#   float32, one row: expected shape [], got shape [23]
#   bfloat16, one row: expected shape [], got RuntimeError: index 3 is out of bounds for dimension 0 with size 1
#   float32, no rows: expected shape [0], got RuntimeError: stack expects a non-empty TensorList
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 trl==1.16.0
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
from trl.trainer.utils import selective_log_softmax

torch.manual_seed(0)
row, label = torch.randn(23), torch.tensor(3)
none, no_label = torch.randn(0, 23), torch.zeros(0, dtype=torch.long)
for name, logits, index in (
    ("float32, one row", row, label),
    ("bfloat16, one row", row.bfloat16(), label),
    ("float32, no rows", none, no_label),
):
    want = logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]
    try:
        found = f"shape {list(selective_log_softmax(logits, index).shape)}"
    except RuntimeError as error:
        found = f"RuntimeError: {error}"
    print(f"{name}: expected shape {list(want.shape)}, got {found}")
PYTHON
)
echo "$found"
[ "$found" = "float32, one row: expected shape [], got shape [23]
bfloat16, one row: expected shape [], got RuntimeError: index 3 is out of bounds for dimension 0 with size 1
float32, no rows: expected shape [0], got RuntimeError: stack expects a non-empty TensorList" ]
