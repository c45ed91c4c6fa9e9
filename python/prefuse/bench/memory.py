"""Peak extra memory of one run: how far the resident set rises above what the inputs already hold.

Neither `tracemalloc` nor torch's allocator sees all of it (torch does not see a Rust buffer, Python sees no tensor),
so the kernel's own count is taken: `VmHWM`, the resident set's high-water mark. Each case runs in a fresh process,
because freed pages that an allocator keeps hide the next case's need, and `ru_maxrss` of a child starts at its
parent's peak. In that process the case runs once (libraries load, thread pools start, compilers compile), what
prefuse keeps for the next step is given back, the mark is reset, and the second run is measured. glibc is told to map
every block of 1 MiB or more by itself, so that freeing it gives it back.

This works on Linux. Elsewhere, or where the mark cannot be reset, the answer is None.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from prefuse._backends.storage import release_memory

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_extra_bytes(factory: str, **arguments: object) -> int | None:
    """Bytes by which one run of a case raises its process's resident set at most; None if this system cannot tell.

    Args:
        factory: ``"module:function"``. The function makes the inputs and returns a callable without arguments, the run
            to measure, which must keep nothing.
        arguments: passed to the function; they travel as JSON.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    if not (_STATUS.exists() and os.access(_RESET, os.W_OK)):
        return None
    child = subprocess.run(
        [sys.executable, "-m", __name__, factory, json.dumps(arguments)],
        env=os.environ
        | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        raise RuntimeError(f"measuring {factory} failed: {child.stderr.strip()[-2000:]}")
    return int(child.stdout.split()[-1])


def _measure(factory: str, arguments: dict[str, object]) -> int:
    module, function = factory.split(":")
    run = getattr(importlib.import_module(module), function)(**arguments)
    run()
    gc.collect()
    release_memory()  # which prefuse keeps for the next step: it is this step's need
    before = _status_bytes("VmRSS")
    _RESET.write_text(_RESET_PEAK)
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], json.loads(sys.argv[2])))
