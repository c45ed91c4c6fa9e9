#!/usr/bin/env bash
# torch 2.15.0: one torch.autocast object that is entered while it is entered leaves autocast on for good.
#
# Expected: after the outermost `with` ends, autocast is off, as it was before; two objects, one in the other, do so.
# What happens: __enter__ keeps what was on before in the object itself, and the second entry overwrites what the first
# kept. The state that is put back last is therefore "on". A forward pass that is wrapped by such an object (as a
# decorator) and calls itself, or another one wrapped by the same object, runs everything after it in bfloat16.
#
# Seen:
#   two objects: autocast is on afterwards: False
#   one object: autocast is on afterwards: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch

for name, (outer, inner) in {
    "two objects": [torch.autocast("cpu", torch.bfloat16) for _ in range(2)],
    "one object": [torch.autocast("cpu", torch.bfloat16)] * 2,
}.items():
    with outer:
        with inner:
            pass
    print(f"{name}: autocast is on afterwards: {torch.is_autocast_enabled('cpu')}")
    torch.set_autocast_enabled("cpu", False)
PYTHON
)
echo "$found"
[ "$found" = "two objects: autocast is on afterwards: False
one object: autocast is on afterwards: True" ]
