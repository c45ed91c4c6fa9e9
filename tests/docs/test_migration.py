"""docs/migration.md: its tables name what exists, on both sides, and its changed imports change nothing else."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from prefuse import objectives
from tests.docs.test_code_blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
TABLE = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \w.*`", line)][1:]
TRAINERS = {
    "DPO": "trl.trainer.dpo_trainer",
    "KTO": "trl.trainer.kto_trainer",
    "CPO": "trl.experimental.cpo.cpo_trainer",
    "TPO": "trl.experimental.tpo.tpo_trainer",
    "Online DPO": "trl.experimental.online_dpo.online_dpo_trainer",
    "GRPO": "trl.trainer.grpo_trainer",
}
REMOVED = {"kto_pair"}  # refused by the trainer that once had it
SUGAR = {"alphapo"}  # the configuration turns it into another


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_loss_type_of_a_trainer_is_in_the_table(trainer, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    module = pytest.importorskip(TRAINERS[trainer], exc_type=ImportError)
    compared = re.findall(r'loss_type (?:==|in) (\[[^]]*\]|\{[^}]*\}|"[\w-]+")', inspect.getsource(module))
    implemented = set(re.findall(r'"([\w-]+)"', " ".join(compared))) - REMOVED
    first = [cells[0] for cells in TABLE if re.match(rf"\| {trainer}\b", cells[0])]
    listed = {name for cell in first for name in re.findall(r'`"([\w-]+)"`', cell)} - SUGAR
    assert implemented
    assert listed == implemented


def test_every_objective_named_exists_with_its_options():
    for cells in TABLE:
        for code in re.findall(r"`([^`]+)`", cells[1]):
            for name, options in re.findall(r"\b([a-z]\w+)\b(?:\(([^)]*)\))?", re.sub(r'"[^"]*"', "", code)):
                parameters = objectives.get(name).parameters
                assert set(re.findall(r"(\w+)=", options)) <= {*parameters, "variant"}, code


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [
        ("prefuse.compat.liger", "liger_kernel.chunked_loss", "liger_loss"),
        ("prefuse.compat.trl", "trl.kernels", "log_probs"),
    ],
)
def test_the_import_is_all_that_changes(ours, theirs, result):
    """The block with the library's import in the place of ours gives what it gives with ours."""
    pytest.importorskip(theirs, exc_type=ImportError)
    setting = blocks(PAGE)[0][1]
    (block,) = [code for _, code in blocks(PAGE) if f"from {ours} import" in code]
    found = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        names: dict[str, object] = {}
        with torch.compiler.set_stance("force_eager"):  # Liger compiles its losses
            exec(setting + block.replace(f"from {ours} import", f"from {module} import"), names)
        found.append(names[result])
    torch.testing.assert_close(*found)
