#!/usr/bin/env bash
# torch 2.15.0, CPU: cross_entropy with label smoothing is infinite for a few float16 logits, its gradient is right.
#
# Expected: the mean loss of 512 tokens over 1000 classes is about 7, as without smoothing and as in float32.
# What happens: the smoothing part first adds up the log-probabilities of all classes and tokens, in float16 (about
# 512 * 7000, above 65504), and then divides. The loss is infinite, while the gradient is that of the right loss: a loop
# that skips infinite losses never trains.
#
# Seen:
#   float32, smoothing 0.0: loss 7.4, norm of the gradient 0.044
#   float32, smoothing 0.1: loss 7.4, norm of the gradient 0.040
#   float16, smoothing 0.0: loss 7.4, norm of the gradient 0.044
#   float16, smoothing 0.1: loss inf, norm of the gradient 0.040
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
logits, labels = torch.randn(512, 1000), torch.randint(1000, (512,))
for dtype in (torch.float32, torch.float16):
    for smoothing in (0.0, 0.1):
        x = logits.to(dtype, copy=True).requires_grad_()
        loss = torch.nn.functional.cross_entropy(x, labels, label_smoothing=smoothing)
        loss.backward()
        print(f"{str(dtype)[6:]}, smoothing {smoothing}: loss {loss.item():.1f}, norm of the gradient {x.grad.float().norm():.3f}")
PYTHON
)
echo "$found"
[ "$found" = "float32, smoothing 0.0: loss 7.4, norm of the gradient 0.044
float32, smoothing 0.1: loss 7.4, norm of the gradient 0.040
float16, smoothing 0.0: loss 7.4, norm of the gradient 0.044
float16, smoothing 0.1: loss inf, norm of the gradient 0.040" ]
