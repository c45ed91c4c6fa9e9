#!/usr/bin/env bash
# torch 2.15.0: sum() and mean() of a nested tensor made by torch.nested.narrow count what was cut away.
#
# Expected: the sum over the two sequences [0, 1] and [5, 6, 7] is 19, the mean 3.8, as for the same tensor after
# .contiguous() or one made by nested_tensor.
# What happens: the narrowed tensor is a view of the padded one, with holes. A reduction to one number runs over the
# values behind it, holes included: 0 + 1 + ... + 7 = 28. (A sum over the ragged dimension alone is refused with a clear
# message.) The mean of a per-token loss, narrowed to each response, is so the mean over prompts and padding as well.
#
# Seen:
#   sequences: [[0.0, 1.0], [5.0, 6.0, 7.0]]
#   narrowed: sum 28.0, mean 3.5
#   contiguous: sum 19.0, mean 3.8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

padded = torch.arange(8.0).reshape(2, 4)
start, length = torch.tensor([0, 1]), torch.tensor([2, 3])
narrowed = torch.nested.narrow(padded, 1, start, length, layout=torch.jagged)
print("sequences:", [sequence.tolist() for sequence in narrowed.unbind()])
for name, tensor in {"narrowed": narrowed, "contiguous": narrowed.contiguous()}.items():
    print(f"{name}: sum {tensor.sum().item():.1f}, mean {tensor.mean().item():.1f}")
PYTHON
)
echo "$found"
[ "$found" = "sequences: [[0.0, 1.0], [5.0, 6.0, 7.0]]
narrowed: sum 28.0, mean 3.5
contiguous: sum 19.0, mean 3.8" ]
