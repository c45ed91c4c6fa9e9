#!/usr/bin/env bash
# torch 2.15.0: clip_grad_norm_ sets finite float16 gradients to zero where their norm is above 65504.
#
# Expected: gradients that are all finite are scaled to norm 1, as in bfloat16 and float32.
# What happens: the norm is returned, and kept, in float16, where 100000 is infinite. The gradients are then multiplied by
# 1 / inf = 0, and the step is lost. With the default error_if_nonfinite=False nothing says so.
#
# Seen:
#   float32: all finite True, norm 1e+05, norm after clipping 1.00
#   bfloat16: all finite True, norm 1e+05, norm after clipping 1.00
#   float16: all finite True, norm inf, norm after clipping 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    parameter = torch.nn.Parameter(torch.zeros(1_000_000, dtype=dtype))
    parameter.grad = torch.full_like(parameter, 100.0)
    finite = parameter.grad.isfinite().all().item()
    norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    after = parameter.grad.float().norm().item()
    print(f"{str(dtype)[6:]}: all finite {finite}, norm {norm.item():.2g}, norm after clipping {after:.2f}")
PYTHON
)
echo "$found"
[ "$found" = "float32: all finite True, norm 1e+05, norm after clipping 1.00
bfloat16: all finite True, norm 1e+05, norm after clipping 1.00
float16: all finite True, norm inf, norm after clipping 0.00" ]
