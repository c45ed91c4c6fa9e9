"""What the machine code of a kernel does in its main loops: issue slots and loads in flight, read from nvdisasm's text.

A loop's fast path is the shortest way through it that moves whole 16 bytes and nothing narrower: what nearly every turn
takes. Branches that are seldom taken (a new maximum, the unit that holds the label) are not on it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple


def disassembler() -> str | None:
    """The path of nvdisasm: NVIDIA's wheel, `CUDA_HOME`, `CUDA_PATH`, `PATH`, Triton's wheel; None without one."""
    folders = [
        *(root / "cu13" / "bin" for root in _package("nvidia")),
        *(Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)),
        *(Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder),
        *(root / "backends" / "nvidia" / "bin" for root in _package("triton")),
    ]
    return shutil.which("nvdisasm", path=os.pathsep.join(map(str, folders)))


def _package(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []


def disassembled(cubin: bytes, nvdisasm: str) -> str:
    """nvdisasm's text of `cubin`; a RuntimeError with its complaint where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([nvdisasm, "-c", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{nvdisasm} failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Loop(NamedTuple):
    """The fast path of a loop; a turn of it moves `loads` and `stores` of 16 bytes per thread.

    Attributes:
        slots: instructions that a warp issues in a turn.
        loads: of global memory.
        stores: to global memory.
        shared_loads: of shared memory.
        in_flight: loads of global memory that are issued before one of their results is used.
        special: of the instructions, those of the special function unit, which takes one in eight clocks.
    """

    slots: int
    loads: int
    stores: int
    shared_loads: int
    in_flight: int
    special: int = 0


class _Moved(NamedTuple):
    loads: int
    shared_loads: int
    stores: int


def loops(sass: str) -> list[Loop]:
    """The fast paths of the loops that move 16 bytes at a time, in the order of the code; of nested loops, each."""
    instructions, labels = parsed(sass)
    heads = sorted({target for i, text in enumerate(instructions) if (target := _target(text, labels, i + 1)) <= i})
    found = (_fast_path(instructions, labels, head) for head in heads)
    return [loop for loop in found if loop]


def parsed(sass: str) -> tuple[list[str], dict[str, int]]:
    """The instructions without their addresses, and where each label stands among them."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"(\.L_\S+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    return instructions, labels


_INSTRUCTION = re.compile(r"(?P<guard>@!?U?P\w+\s+)?(?P<name>\S+)")
_JUMP = re.compile(r"(?:@!?U?P\w+\s+)?BRA(?:\.U|\.CONV|\.ANY|\.ALL)*\s.*`\((\.L_\S+?)\)")
# What a fast path does not hold: narrower accesses, units cut out of two granules, calls.
_SLOW = re.compile(r"\b(LDG|STG)\.(?!\S*\.128)|\b(LDG|STG)\b(?!\S*\.128)|\bSHF\.R\.W|\bCALL|\bEXIT|\bRET")


def _target(text: str, labels: dict[str, int], otherwise: int) -> int:
    jump = _JUMP.match(text)
    return labels[jump[1]] if jump else otherwise


def _next(instructions: list[str], labels: dict[str, int], i: int) -> set[int]:
    """Where the instruction may lead. A conditional jump names a predicate before or behind its name."""
    jump = _JUMP.match(instructions[i])
    if not jump:
        return {i + 1}
    conditional = instructions[i].startswith("@") or re.search(r"BRA\S*\s+!?U?P\d", instructions[i])
    return {i + 1, labels[jump[1]]} if conditional else {labels[jump[1]]}


class _Way(NamedTuple):
    """A way through the code, as a chain from its last instruction to its first."""

    length: int
    last: int
    before: _Way | None

    def instructions(self) -> list[int]:
        way: _Way | None = self
        found: list[int] = []
        while way and way.length:
            found.append(way.last)
            way = way.before
        return found[::-1]


def _fast_path(instructions: list[str], labels: dict[str, int], head: int) -> Loop | None:
    """The shortest way from `head` back to it of those that move most; ways lead forward but for the last step."""
    reached: dict[int, dict[_Moved, _Way]] = {head: {_Moved(0, 0, 0): _Way(0, head, None)}}
    closed: dict[_Moved, _Way] = {}
    for i in range(head, len(instructions)):
        ways = reached.pop(i, None)
        if ways is None or _is_slow(instructions[i]):
            continue
        for moved, way in ways.items():
            after, longer = _after(instructions[i], moved), _Way(way.length + 1, i, way)
            for follower in _next(instructions, labels, i):
                if follower == head or follower > i:
                    known = closed if follower == head else reached.setdefault(follower, {})
                    known[after] = min(longer, known.get(after, longer), key=lambda way: way.length)
    moving = [moved for moved in closed if moved.loads or (moved.shared_loads and moved.stores)]
    if not moving:
        return None
    most = max(moving)
    way = closed[most]
    path = [instructions[i] for i in way.instructions()]
    return Loop(
        way.length, most.loads, most.stores, most.shared_loads, _in_flight(path), sum("MUFU." in text for text in path)
    )


def _in_flight(path: list[str]) -> int:
    """Loads before the first instruction that names a register into which one of them writes."""
    loaded: set[int] = set()
    issued = 0
    for text in path:
        registers = [int(number) for number in re.findall(r"\bR(\d+)", text)]
        if "LDG" in text:
            loaded.update(range(registers[0], registers[0] + 4))
            issued += 1
        elif loaded.intersection(registers):
            break
    return issued


def _is_slow(text: str) -> bool:
    return bool(_SLOW.search(text)) and not text.startswith("@")


def _after(text: str, moved: _Moved) -> _Moved:
    instruction = _INSTRUCTION.match(text)
    name = instruction["name"] if instruction else ""
    if not name.endswith(".128"):
        return moved
    kind = name.split(".")[0]
    return _Moved(moved.loads + (kind == "LDG"), moved.shared_loads + (kind == "LDS"), moved.stores + (kind == "STG"))
