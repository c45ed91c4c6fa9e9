"""The table of docs/evidence.md: which objective has which evidence, read from the tests themselves.

A test says what it shows by the marker ``evidence(kind, detail)``. Of which objectives it shows it follows from its
parameters (`name`, `variant`, `identity`), from the objectives that a test without such parameters calls by name, or
from ``objectives=(…)`` in the marker. In `tests/objectives` a test fails that did not compute what it is listed for
(`tests/objectives/conftest.py`), so the table lists nothing that was not done. The site has it on the page
docs/evidence.md (`docs/_site/generated.py`); ``python -m tests.evidence`` prints it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from prefuse import objectives
from prefuse.catalogue import catalogue
from tests.objectives import identities

MODULES = (
    "tests.objectives.test_pairs_and_points",
    "tests.objectives.test_extremes",
    "tests.objectives.test_lists_and_tokens",
    "tests.objectives.test_variants",
    "tests.objectives.test_declared_identities",
    "tests.objectives.test_libraries",
    "tests.objectives.test_libraries_policy_gradient",
    "tests.codegen.test_catalogue",
    "tests.codegen.test_compile",
    *(f"tests.objectives.identities.{found.name}" for found in pkgutil.iter_modules(identities.__path__)),
)

KINDS = {
    "numbers": (
        "worked numbers",
        "loss and gradients computed beforehand, by libraries or from the papers",
    ),
    "identities": ("identities", "equal losses and other relations that hold whatever the numbers"),
    "slopes": (
        "finite differences",
        "the gradient against central differences in float64, detached parts held constant",
    ),
    "pytorch": ("PyTorch", "losses, gradients and rewards against a second implementation and PyTorch's autograd"),
    "TRL": ("TRL", "value and gradient against TRL's trainers (1.16), run on random batches: their loss types"),
    "Liger": ("Liger", "the same against Liger's chunked losses (0.8)"),
    "extremes": ("hostile input", "finite at log-ratios of ±10⁴, lengths of 1 and 10⁵, and without tokens"),
    "emulated": ("kernel, emulated", "the generated CUDA kernel, run on the CPU, against the CPU's program"),
    "compiled": ("kernel, compiled", "the same kernel compiled by NVRTC for every architecture, without spilling"),
}

COMPUTING = (
    *("evaluate", "losses", "gradients", "pair_losses", "preference_loss", "pairs_and_points.evaluate"),
    *("evaluate_lists", "list_losses", "list_gradients"),
)
"""What tests without parameters compute objectives with: the name of one stands first."""

_NAMES = frozenset(objectives.names())


class Evidence(NamedTuple):
    """One case of a test: what it shows of an objective."""

    objective: str
    kind: str
    detail: str


def collected() -> Iterator[Evidence]:
    """Every case of every test of `MODULES` that has the marker."""
    importlib.import_module("tests.codegen.conftest")
    for module in map(importlib.import_module, MODULES):
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(function) and function.__module__ == module.__name__:
                yield from _of(function, [*function_marks(function), *function_marks(module)])


def function_marks(thing: Any) -> list[pytest.Mark]:
    """The marks written on a function or a module."""
    marks = getattr(thing, "pytestmark", [])
    return [getattr(mark, "mark", mark) for mark in (marks if isinstance(marks, list) else [marks])]


def _of(function: Any, marks: list[pytest.Mark]) -> Iterator[Evidence]:
    for mark in (mark for mark in marks if mark.name == "evidence"):
        for parameters in _cases(marks):
            for objective in sorted(named(function, mark, parameters)):
                detail = " ".join(filter(None, [*mark.args[1:], _code(parameters.get("loss_type"))]))
                yield Evidence(objective, mark.args[0], detail)


def _cases(marks: list[pytest.Mark]) -> Iterator[dict[str, Any]]:
    """What the cases of a test are parametrised with."""
    choices = []
    for mark in (mark for mark in marks if mark.name == "parametrize"):
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        rows = [getattr(row, "values", row) for row in mark.args[1]]
        choices.append([dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in rows])
    for chosen in itertools.product(*choices):
        yield {name: value for part in chosen for name, value in part.items()}


def named(function: Any, mark: pytest.Mark, parameters: Mapping[str, Any]) -> set[str]:
    """The objectives that one case of a test is evidence for."""
    if "objectives" in mark.kwargs:
        return set(mark.kwargs["objectives"])
    if "identity" in parameters:
        sides = re.sub('"[^"]*"', "", parameters["identity"].split(" where ")[0])
        return _NAMES.intersection(re.findall(r"\w+", sides))
    for value in (parameters.get("name"), (parameters.get("variant") or [None])[0]):
        if isinstance(value, str):
            return {re.split("[-]", value)[0]}  # the kernel tests name variants
    return set(_called(function))


def _called(function: Any) -> Iterator[str]:
    """Objectives whose name stands first in a call that computes."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in COMPUTING
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def _code(text: Any) -> str:
    return f"`{text}`" if text else ""


def markdown() -> str:
    """The columns, and the table."""
    return "\n".join([*_legend(), "", *_table(list(collected()))])


def _legend() -> Iterator[str]:
    yield "| column | what was done |"
    yield "| --- | --- |"
    yield from (f"| {title} | {what} |" for title, what in KINDS.values())


def _table(found: list[Evidence]) -> Iterator[str]:
    yield f"| objective | {' | '.join(title for title, _ in KINDS.values())} |"
    yield f"| --- |{' --- |' * len(KINDS)}"
    details: dict[tuple[str, str], list[str]] = {}
    for one in found:
        details.setdefault((one.objective, one.kind), []).append(one.detail)
    for page in catalogue():
        cells = (_cell(details.get((page.name, kind), ())) for kind in KINDS)
        yield f"| [{page.name}](objectives.md#{page.name}) | {' | '.join(cells)} |"


def _cell(details: Iterable[str]) -> str:
    """The number of cases, or what they are."""
    details = list(details)
    named_ones = sorted(set(filter(None, details)))
    return ", ".join(named_ones) if named_ones else str(len(details) or "")


if __name__ == "__main__":
    print(markdown())
