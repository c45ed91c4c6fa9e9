"""PTX as NVRTC writes it: compiled from the sources of a launch, and taken apart into instructions."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from tests.nvrtc import ptx

Sources = tuple[tuple[str, str], ...]
"""(name, text) of the headers that a kernel may include, its own text last."""


class Instruction(NamedTuple):
    """`guard` is the predicate before it ("%p1", "!%p1" or ""), `op` its name cut at the dots."""

    guard: str
    op: tuple[str, ...]
    arguments: tuple[str, ...]
    text: str


class Function(NamedTuple):
    """Where a function begins, and the names of its parameters and results in memory."""

    begin: int
    parameters: tuple[str, ...]
    results: tuple[str, ...]


class Program:
    """A kernel and the functions that it calls. Registers, labels and shared arrays carry their function's name.

    Attributes:
        instructions: of all functions, one behind the other.
        types: of each register ("f32", "pred", …).
        shared: where each static shared array begins; `dynamic` is where the dynamic one does.
        local: where each function's local memory begins, of `local_size` bytes in all.
    """

    def __init__(self, text: str, entry: str) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.types: dict[str, str] = {}
        self.shared: dict[str, int] = {}
        self.functions: dict[str, Function] = {}
        self.local: dict[str, int] = {}
        self._size = self.local_size = 0
        text = re.sub(r"//[^\n]*", "", text)
        for found in re.finditer(r"\.(entry|func)\s*(\([^)]*\))?\s*([\w$]+)\s*\(([^)]*)\)[^{;]*\{", text):
            results, name, parameters = found[2] or "", found[3], found[4]
            self.functions[name] = Function(len(self.instructions), _names(parameters), _names(results))
            for statement in _statements(text, found.end()):
                self._take(statement, name)
            self.instructions.append(Instruction("", ("ret",), (), "ret at the end"))
        self.entry = self.functions[entry]
        self.dynamic = (self._size + 15) // 16 * 16
        self.shared |= dict.fromkeys(re.findall(r"\.extern \.shared .*?([\w$]+)\[\];", text), self.dynamic)

    def _take(self, statement: str, function: str) -> None:
        if statement.endswith(":"):
            self.labels[f"{function}/{statement[:-1]}"] = len(self.instructions)
        elif register := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S):
            for name in register[2].split(","):
                many = re.match(r"(%?\w+)<(\d+)>", name.strip())
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
                self.types |= {f"{function}/{one}": register[1] for one in names}
        elif depot := re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", statement):
            self.local[depot[2]] = self.local_size = (self.local_size + 15) // 16 * 16
            self.local_size += int(depot[3])
        elif array := re.match(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", statement):
            align = int(array[1])
            begin = (self._size + align - 1) // align * align
            self.shared[array[2]], self._size = begin, begin + int(array[3])
        elif not statement.startswith("."):
            self.instructions.append(self._instruction(statement, function))

    def _instruction(self, statement: str, function: str) -> Instruction:
        found = re.match(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)", statement, re.S)
        assert found, statement
        pieces = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,{}\[\]()]+", found[3])
        arguments = tuple(self._named(piece.strip(), function) for piece in pieces if piece.strip())
        return Instruction(self._named(found[1] or "", function), tuple(found[2].split(".")), arguments, statement)

    def _named(self, text: str, function: str) -> str:
        """`text` with the function's name before each register and label in it."""

        def full(name: re.Match[str]) -> str:
            own = f"{function}/{name[0]}"
            return own if own in self.types or name[0].startswith("$L") else name[0]

        return re.sub(r"[%$]?[A-Za-z_][\w$]*", full, text)


def _names(parameters: str) -> tuple[str, ...]:
    return tuple(re.findall(r"([\w$]+)(?:\[\d+\])?\s*(?:,|$|\))", parameters))


def _statements(text: str, i: int) -> list[str]:
    """The statements of a body that begins at `i`, labels with their colon; braces around blocks are dropped."""
    found: list[str] = []
    piece, depth = "", 1
    while depth:
        c = text[i]
        if c == ";" or (
            c == ":" and re.fullmatch(r"\s*\$?[\w$]+", piece) and text[i + 1] != ":" and text[i - 1] != ":"
        ):
            found.append(piece.strip() + (":" if c == ":" else ""))
            piece = ""
        elif c in "{}" and not piece.strip():
            depth += 1 if c == "{" else -1
        elif c == "{":
            end = text.index("}", i)
            piece, i = piece + text[i : end + 1], end
        else:
            piece += c
        i += 1
    return [statement for statement in found if statement]


@functools.cache
def compiled(sources: Sources, defines: tuple[tuple[str, str], ...], kernel: str, architecture: int) -> Program:
    """The program that NVRTC makes of a launch's sources."""
    return Program(ptx(sources, defines, architecture), kernel)
