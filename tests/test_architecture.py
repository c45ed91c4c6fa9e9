"""Who may import whom: no circle between folders, no import hidden in a function, none through the package's root."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import prefuse

ROOT = Path(prefuse.__file__).parent
DEMO = ("cost", "job", "report", "progress", "scored", "pretrained.command")
LAZY = frozenset(
    {
        *(("prefuse.demo.command", f"prefuse.demo.{name}") for name in DEMO),
        ("prefuse.doctor.examination", "prefuse.trl.compatibility"),
        ("prefuse.viz", "prefuse._display.figure"),
    }
)
"""(module, module): imports inside a function, because they need matplotlib, rich, transformers or TRL."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))} | {"prefuse._prefuse": ROOT / "_prefuse.pyi"}

PYTHON = [module for module in MODULES if module not in ("prefuse", "prefuse._prefuse")]
"""Those that are read: not the root, which imports what is public."""


def imported(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of ours that a statement of `module` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "prefuse")
        return
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    base = node.module or ""
    if node.level:
        parents = package.split(".")
        base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
    if base.split(".")[0] != "prefuse":
        return
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        if base == "prefuse":
            yield base
        yield inner if inner in MODULES else base


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(module, whether inside a function) of every import; those for type checkers alone are left out."""
    tree = ast.parse(MODULES[module].read_text())

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from ((name, inside) for name in imported(module, child))
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(tree, False)


def folder(module: str) -> str:
    """The folder below `prefuse` that a module lies in; a module of its own is one."""
    return ".".join(module.split(".")[:2])


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen, open_ = set(), [start]
        while open_:
            for following in arrows.get(open_.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    open_.append(following)
        reach[start] = seen
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]}
    return sorted(sorted(circle) for circle in found)


def test_nothing_is_imported_inside_a_function():
    hidden = {
        (module, name)
        for module in MODULES
        if module != "prefuse._prefuse"
        for name, inside in imports(module)
        if inside
    }
    assert sorted(hidden - LAZY) == []
    assert LAZY - hidden == set()


def test_nothing_is_imported_from_the_root():
    assert [module for module in PYTHON if "prefuse" in (name for name, _ in imports(module))] == []


def test_no_circle_between_modules():
    arrows = {module: {name for name, _ in imports(module)} - {module} for module in PYTHON}
    assert circles(arrows) == []


def test_no_circle_between_folders():
    arrows: dict[str, set[str]] = {}
    for module in PYTHON:
        to = {folder(name) for name, _ in imports(module)} - {folder(module), "prefuse"}
        arrows.setdefault(folder(module), set()).update(to)
    assert circles(arrows) == []


def test_private_modules_lie_in_folders():
    assert {path.name for path in ROOT.glob("_*.py")} == {"__init__.py", "__main__.py"}


def missing_names(path: Path) -> Iterator[str]:
    """What a script takes from modules of ours and is not there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "prefuse":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module not in MODULES and not hasattr(importlib.import_module(node.module), alias.name):
                    yield f"{path.relative_to(Path(__file__).parents[1])}:{node.lineno}: {module}"


def test_scripts_name_what_is_there():
    """Also those that this machine cannot run, as they need a GPU, a framework or a wheel."""
    root = Path(__file__).parents[1]
    scripts = [script for name in ("tests", "benchmarks", "examples") for script in sorted((root / name).rglob("*.py"))]
    assert [missing for script in scripts for missing in missing_names(script)] == []
