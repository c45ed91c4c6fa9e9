#!/usr/bin/env bash
# torch 2.15.0 (numpy 2.4.6): DLPack hands over a lazily negated tensor with the other sign.
#
# Expected: the values, or an error. A conjugated tensor is refused ("Can't export tensors with the conjugate bit set"), and
# `Tensor.numpy()` refuses the imaginary part of one, whose negation is a bit beside the memory ("negative bit set").
# What happens: `__dlpack__` looks for the first bit alone. Whoever takes that imaginary part by DLPack, NumPy or torch itself,
# reads the memory without the negation: every number has the other sign, and nothing is said. With `copy=True` the sign is
# right. `resolve_neg()` before the hand-over is the remedy.
#
# Seen:
#   the tensor: [-2.0, 4.0]
#   numpy.from_dlpack: [2.0, -4.0]
#   torch.from_dlpack: [2.0, -4.0]
#   torch.from_dlpack, copy=True: [-2.0, 4.0]
#   after resolve_neg: [-2.0, 4.0]
#   Tensor.numpy: RuntimeError
#   torch.from_dlpack of the conjugated: BufferError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import numpy
import torch

conjugated = torch.tensor([1 + 2j, 3 - 4j]).conj()
imaginary = conjugated.imag
ways = {
    "the tensor": lambda: imaginary,
    "numpy.from_dlpack": lambda: numpy.from_dlpack(imaginary),
    "torch.from_dlpack": lambda: torch.from_dlpack(imaginary),
    "torch.from_dlpack, copy=True": lambda: torch.from_dlpack(imaginary, copy=True),
    "after resolve_neg": lambda: numpy.from_dlpack(imaginary.resolve_neg()),
    "Tensor.numpy": lambda: imaginary.numpy(),
    "torch.from_dlpack of the conjugated": lambda: torch.from_dlpack(conjugated),
}
for name, way in ways.items():
    try:
        print(f"{name}: {way().tolist()}")
    except (BufferError, RuntimeError) as error:
        print(f"{name}: {type(error).__name__}")
PYTHON
found=$("$folder/env/bin/python" "$folder/script.py")
echo "$found"
[ "$found" = "the tensor: [-2.0, 4.0]
numpy.from_dlpack: [2.0, -4.0]
torch.from_dlpack: [2.0, -4.0]
torch.from_dlpack, copy=True: [-2.0, 4.0]
after resolve_neg: [-2.0, 4.0]
Tensor.numpy: RuntimeError
torch.from_dlpack of the conjugated: BufferError" ]
