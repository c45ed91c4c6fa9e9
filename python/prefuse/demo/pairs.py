"""Preference pairs out of the text every Python installation carries: the standard library's docstrings.

The prompt is a function's qualified name and signature, the chosen response the first paragraph of its own docstring,
the rejected response that of another function's docstring of like length. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Third-party code is not the standard library's, and a test's docstring describes no function anyone would call.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_FEWEST_WORDS = 4
_MOST_WORDS = 28
_NEIGHBOURS = 64  # rejected responses come from the (about) so many docstrings nearest in length


@dataclass(frozen=True)
class Documented:
    """A function with the first paragraph of its docstring."""

    module: str
    prompt: str
    summary: str


@dataclass(frozen=True)
class Pair:
    """A prompt with responses: the docstring that belongs to it (chosen) first, then others' (rejected)."""

    prompt: str
    responses: tuple[str, ...]


class Split(NamedTuple):
    """Functions by what they are for.

    Attributes:
        training: to train on.
        unseen: not trained on, of modules whose other functions are.
        of_unseen_modules: of modules no function of which is trained on.
    """

    training: list[Documented]
    unseen: list[Documented]
    of_unseen_modules: list[Documented]


def stdlib_functions(root: Path | None = None) -> list[Documented]:
    """Every documented function and method of the standard library, each docstring once, in a fixed order.

    `root` is the folder of the library's sources, by default this interpreter's. Raises ValueError where it holds no
    documented function.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    found: dict[str, Documented] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts):
            for function in _documented_in(path, ".".join(parts).removesuffix(".__init__")):
                found.setdefault(function.summary.lower(), function)
    if not found:
        raise ValueError(f"root: no documented Python function below {root}; expected the standard library's sources")
    return list(found.values())


def split(functions: Sequence[Documented], share: float) -> Split:
    """Keeps about a `share` of all modules from training, and about that share of the other modules' functions.

    Where something goes depends on its name alone, so it is the same on every run and all but the same on every Python.
    """
    parts = Split([], [], [])
    for function in functions:
        if _falls_below(share, function.module):
            parts.of_unseen_modules.append(function)
        elif _falls_below(share, function.prompt):
            parts.unseen.append(function)
        else:
            parts.training.append(function)
    return parts


def _falls_below(share: float, name: str) -> bool:
    return zlib.crc32(name.encode()) % 1000 < share * 1000


def make_pairs(functions: Sequence[Documented], seed: int, responses: int = 2) -> list[Pair]:
    """One pair per function, the rejected response taken from a function whose docstring is about as long.

    Each docstring is chosen once and rejected once, so a model that looks at the response alone is right half the time.
    With more than two `responses` each further one is another docstring of like length. Raises ValueError for fewer
    functions than responses.
    """
    if len(functions) < responses:
        raise ValueError(f"functions: expected at least {responses}, got {len(functions)}")
    rng = random.Random(seed)
    order = sorted(functions, key=lambda function: (len(function.summary.split()), rng.random()))
    pairs = []
    for block in _blocks(order, max(_NEIGHBOURS, responses)):
        rng.shuffle(block)
        for place, own in enumerate(block):
            others = (block[(place + step) % len(block)].summary for step in range(1, responses))
            pairs.append(Pair(own.prompt, (own.summary, *others)))
    rng.shuffle(pairs)
    return pairs


def _blocks(items: Sequence[Documented], size: int) -> Iterator[list[Documented]]:
    """Blocks of `size` to `2 size - 1` items: the last one takes the remainder, as a block of one has no other."""
    count = max(1, len(items) // size)
    for index in range(count):
        yield list(items[index * size : (index + 1) * size if index + 1 < count else None])


def _documented_in(path: Path, module: str) -> Iterator[Documented]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes and literals of other people's code are not ours to complain of
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken files are no loss
        return
    for name, node in _functions(tree, ""):
        summary = _first_paragraph(ast.get_docstring(node) or "")
        if len(re.findall(r"[A-Za-z]{2,}", summary)) >= _FEWEST_WORDS:
            yield Documented(module, f"{module}.{name}({ast.unparse(node.args)})", summary)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions below `node` with their qualified names, wherever they are nested (classes, `if` branches, …)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # which holds no statement, and is most of a tree
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
        inner = f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix
        yield from _functions(child, inner)


def _first_paragraph(docstring: str) -> str:
    words = re.split(r"\n\s*\n", docstring.strip())[0].split()
    return " ".join(words[:_MOST_WORDS])
