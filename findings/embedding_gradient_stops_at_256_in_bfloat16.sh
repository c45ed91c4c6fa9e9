#!/usr/bin/env bash
# torch 2.15.0, CPU: the gradient of an nn.Embedding in bfloat16 stops growing at 256 uses of a token.
#
# Expected: a token that is looked up 5000 times, each time with gradient 1, gets the gradient 5000, rounded to the dtype,
# as index_select and gather give it.
# What happens: the rows are added up one by one in the dtype of the weight. 256 + 1 is 256 in bfloat16, 2048 + 1 is 2048
# in float16, so frequent tokens (padding, end of sequence, newline) lose most of their gradient. Indexing `weight[ids]`
# does the same.
#
# Seen:
#   float32 embedding: 5000
#   float32 weight[ids]: 5000
#   float32 index_select: 5000
#   bfloat16 embedding: 256
#   bfloat16 weight[ids]: 256
#   bfloat16 index_select: 4992
#   float16 embedding: 2048
#   float16 weight[ids]: 2048
#   float16 index_select: 5000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

ids = torch.zeros(5000, dtype=torch.long)
reads = {
    "embedding": lambda weight: torch.nn.functional.embedding(ids, weight),
    "weight[ids]": lambda weight: weight[ids],
    "index_select": lambda weight: weight.index_select(0, ids),
}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for name, read in reads.items():
        weight = torch.zeros(10, 4, dtype=dtype, requires_grad=True)
        read(weight).sum().backward()
        print(f"{str(dtype)[6:]} {name}: {weight.grad[0, 0].item():.0f}")
PYTHON
)
echo "$found"
[ "$found" = "float32 embedding: 5000
float32 weight[ids]: 5000
float32 index_select: 5000
bfloat16 embedding: 256
bfloat16 weight[ids]: 256
bfloat16 index_select: 4992
float16 embedding: 2048
float16 weight[ids]: 2048
float16 index_select: 5000" ]
