"""``python -m tests.models docs/models.md``: writes the table of all families."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers

from tests.models import adapters, sharing, sweep
from tests.models.families import families
from tests.models.sweep import Verdict

SECONDS, BYTES = 120, 14 << 30
"""What one family may take."""


def page(verdicts: list[Verdict], shares: list[Verdict]) -> str:
    """The table as Markdown."""
    counts, ways = (Counter(found.what for found in column) for column in (verdicts, shares))
    return "\n".join(
        [
            "# Models",
            "",
            "`prefuse.head(model).token_logps` and all gradients against the model's own logits, for a tiny random "
            "model of every family:",
            "untied and tied, without padding, padded on the right and on the left, in evaluation and in training with "
            "dropout, scales and soft caps off their",
            "defaults; where an image is easily made, with one, too.",
            f"Written by `make models` with transformers {transformers.__version__} and torch {torch.__version__}: "
            + ", ".join(f"{what} {count}" for what, count in counts.most_common())
            + ".",
            "",
            "The last column is [`share_prompts=True`](prompts.md) against the same head without, with sliding windows "
            "longer than the rows and shorter: "
            + ", ".join(f"{what} {count}" for what, count in ways.most_common())
            + ".",
            "",
            "| family | class | verdict | image | prompts |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {v.family} | {v.model} | {told(v)} | {'yes' if v.image else ''} | {told(share)} |"
                for v, share in zip(verdicts, shares, strict=True)
            ),
            "",
            *peft_part(),
        ]
    )


def told(found: Verdict) -> str:
    return found.what + (f": {found.why}" if found.why else "")


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


def in_time(verdict: Callable[[str, str], Verdict], pair: tuple[str, str]) -> Verdict:
    """A verdict of a process of its own: models that take too long or too much memory are not built."""
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        os.write(writable, pickle.dumps(verdict(*pair)))
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return (
        pickle.loads(told) if told else Verdict(*pair, "not built", f"took more than {SECONDS} s, or too much memory")
    )


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    verdicts, shares = [], []
    for pair in families():
        verdicts.append(in_time(sweep.verdict, pair))
        shares.append(in_time(sharing.verdict, pair))
        print(verdicts[-1], shares[-1], flush=True)
    Path(sys.argv[1]).write_text(page(verdicts, shares))


if __name__ == "__main__":
    main()
