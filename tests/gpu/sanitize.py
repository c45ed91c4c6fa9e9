"""Runs the kernels under NVIDIA's compute-sanitizer: ``python -m tests.gpu.sanitize [--tool TOOL] [--tests]``.

A fixed list of small calls (`prefuse.bench.first_calls`), or with ``--tests`` the hundreds of tests of the kernels.
PyTorch's caching allocator would hand out pieces of large blocks, at whose ends nothing is noticed, so it is switched
off. Kernels run some ten times slower here: the tests of large logits and of processes are left out. CUDA graphs and
torch.compile are PyTorch's kernels for the most part, and left out too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

TOOLS = ("memcheck", "racecheck", "synccheck")
TESTS = ("tests/rows", "tests/functional", "tests/preference", "tests/gpu")
CHOSEN = "(cuda or gpu) and not large and not process and not compile and not Graphs and not properties"
FOUND_SOMETHING = 86


def command(sanitizer: str, tool: str, tests: bool, more: Sequence[str]) -> list[str]:
    """The command line for one tool: the fixed calls, or the tests."""
    checked = ["--tool", tool, "--error-exitcode", str(FOUND_SOMETHING), "--target-processes", "application-only"]
    pytest = [sys.executable, "-m", "pytest", "-k", CHOSEN, *TESTS, *more]
    calls = [sys.executable, "-m", "prefuse.bench.first_calls"]
    return [sanitizer, *checked, *(pytest if tests else calls)]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every tool finds nothing, 1 where one does or a test fails, 2 where it cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--tool", choices=TOOLS, action="append", help="one of the tools; all three unless given")
    parser.add_argument("--tests", action="store_true", help="the tests in place of a fixed list of small calls")
    parser.add_argument("more", nargs="*", help="handed to pytest, for --tests")
    options = parser.parse_args(arguments)
    if options.more and not options.tests:
        parser.error("what goes to pytest needs --tests")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not on PATH; it comes with the CUDA toolkit (cuda-sanitizer-api)")
        return 2
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status = 0
    for tool in options.tool or TOOLS:
        line = command(sanitizer, tool, options.tests, options.more)
        print(" ".join(line), flush=True)
        status = max(status, int(subprocess.run(line, env=environment, check=False).returncode != 0))
    return status


if __name__ == "__main__":
    sys.exit(main())
