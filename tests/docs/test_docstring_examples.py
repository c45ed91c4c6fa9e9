"""Every example in a docstring runs, with what it takes for granted at hand; a new one fails until that is said."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import prefuse
from prefuse import language
from tests.integration.models import VOCABULARY, causal_lm, saved

pytest.importorskip("trl")

ROOT = Path(prefuse.__file__).parent
INDENTED = re.compile(r"(?:^|\n)((?: {4}.*\n?|\n(?= {4}))+)")


def is_code(text: str) -> bool:
    """Whether an indented paragraph is statements, and not a continued list of arguments."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return bool(re.search(r"^\w+ = \w.*\(.*…", text, re.MULTILINE))  # an example with something left out
    return any(isinstance(one, ast.Expr | ast.Assign | ast.FunctionDef) for one in statements) and "(" in text


def examples() -> Iterator[tuple[str, str]]:
    """(where, code) of every example."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for match in INDENTED.finditer(ast.get_docstring(node) or ""):
                    code = textwrap.dedent(match[1])
                    if is_code(code):
                        yield f"{path.relative_to(ROOT)} {getattr(node, 'name', '')}".strip(), code


def tokens() -> dict[str, Any]:
    labels = torch.randint(5, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))
    return {"labels": labels, "tokens": labels}


def pairs(folder: Path) -> dict[str, Any]:
    w, n = torch.tensor([-3.0, -2.0], requires_grad=True), torch.tensor([3, 4])
    return vars(language) | {"w": w, "l": w - 1, "n_w": n, "n_l": n + 1}


def a_head(folder: Path) -> dict[str, Any]:
    return tokens() | {"model": causal_lm("llama")}


def micro_batches(folder: Path) -> dict[str, Any]:
    model, labels = causal_lm("llama"), tokens()["labels"]
    return {"micro_batches": [labels, labels[:, :4]], "model": lambda ids: model(input_ids=ids).logits}


def a_trainer(folder: Path) -> dict[str, Any]:
    from prefuse.outer.callbacks import ReferenceRefresh
    from tests.trl.running import make

    return {"trainer": make("DPO", folder, ref_model=causal_lm("llama", seed=1)), "ReferenceRefresh": ReferenceRefresh}


def a_script(folder: Path) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer

    from tests.trl import running

    return {
        "DPOConfig": functools.partial(DPOConfig, use_cpu=True, bf16=False, max_steps=1, report_to="none"),
        "DPOTrainer": DPOTrainer,
        "model": saved("llama", folder / "model"),
        "pairs": running.pairs(),
        "tokenizer": running.tokenizer(),
    }


def two_models(folder: Path) -> dict[str, Any]:
    return {
        "policy": causal_lm("llama"),
        "reference": causal_lm("llama", seed=1),
        "prompts": {"input_ids": tokens()["labels"][:2]},
    }


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "language.py": pairs,
    "losses/preference.py batch_totals": micro_batches,
    "models/head.py head": a_head,
    "outer/callbacks.py ReferenceRefresh": a_trainer,
    "outer/mixture.py ReferenceMixture": two_models,
    "trl/acceleration.py accelerate": a_script,
}
"""What each example takes for granted."""

BESIDE_FRAMEWORKS = ("integrations/llamafactory.py accelerate", "integrations/swift.py accelerate")
"""Those that `make test-llamafactory` and `make test-swift` run, beside the framework."""


def test_every_example_is_known():
    assert sorted(dict(examples())) == sorted((*GIVEN, *BESIDE_FRAMEWORKS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", GIVEN)
def test_it_runs(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefuse.trl

    monkeypatch.chdir(tmp_path)
    handles = []
    accelerate = prefuse.trl.accelerate
    monkeypatch.setattr(prefuse.trl, "accelerate", lambda *a, **k: handles.append(accelerate(*a, **k)) or handles[-1])
    names = {"prefuse": prefuse, "torch": torch, **vars(prefuse.outer), **GIVEN[where](tmp_path)}
    codes = [code for place, code in examples() if place == where]
    assert codes
    try:
        for code in codes:
            exec(compile(code, where, "exec"), names)
    finally:
        for handle in handles:
            handle.remove()
