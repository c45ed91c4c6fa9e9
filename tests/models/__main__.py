"""``python -m tests.models docs/models.md``: writes the table of all families."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import peft
import torch
import transformers

from tests.models import adapters
from tests.models.families import families
from tests.models.sweep import Verdict, verdict


def page(verdicts: list[Verdict]) -> str:
    """The table as Markdown."""
    counts = Counter(found.what for found in verdicts)
    return "\n".join(
        [
            "# Models",
            "",
            "`prefuse.head(model).token_logps` and all gradients against the model's own logits, for a tiny random "
            "model of every family.",
            f"Written by `make models` with transformers {transformers.__version__} and torch {torch.__version__}: "
            + ", ".join(f"{what} {count}" for what, count in counts.most_common())
            + ".",
            "",
            "| family | class | verdict |",
            "| --- | --- | --- |",
            *(f"| {v.family} | {v.model} | {v.what}{': ' + v.why if v.why else ''} |" for v in verdicts),
            "",
            *peft_part(),
        ]
    )


def peft_part() -> list[str]:
    """The table of PEFT's methods as Markdown."""
    return [
        "## PEFT",
        "",
        f"Each method of PEFT {peft.__version__} on a tiny Llama, untied and tied, in evaluation and training, its "
        "weights off their first values:",
        "values and the gradients of all that is trained. Where PEFT itself refuses a place, nothing is compared.",
        "",
        *adapters.table(),
        "",
    ]


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    verdicts = []
    for pair in families():
        verdicts.append(verdict(*pair))
        print(verdicts[-1], flush=True)
    Path(sys.argv[1]).write_text(page(verdicts))


if __name__ == "__main__":
    main()
