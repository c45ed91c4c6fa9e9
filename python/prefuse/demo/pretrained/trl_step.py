"""A DPO step of TRL's own `DPOTrainer`, not accelerated, on a batch of the demo's: same weights, same reference."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from torch import Tensor

from ..batches import IGNORED, Batch
from .policy import Passes

_ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}  # a trainer takes no empty data set


class TrlStep(NamedTuple):
    """What TRL computes in a step: each call returns the loss.

    Attributes:
        version: TRL's.
        whole: both backbones, head and loss.
        head: the same with hidden states that are given: the head's passes of reference and policy, and the loss.
    """

    version: str
    whole: Callable[[], Tensor]
    head: Callable[[Tensor], Tensor]


def step_of(passes: Passes, tokenizer: Any, batch: Batch, beta: float) -> TrlStep:
    """A trainer on a second model of the same tensors; gradients go to the adapters of `passes`.

    Raises:
        ImportError: TRL is not installed.
    """
    try:
        from trl import DPOTrainer

        found = version("trl")
    except (ImportError, PackageNotFoundError) as error:
        raise ImportError("TRL is not installed; pip install 'trl>=0.24'") from error
    model = _again(passes.model)
    trainer = _trainer(DPOTrainer, model, tokenizer, beta)
    with contextlib.suppress(ValueError):  # newer versions compare with a copy of the adapters
        model.delete_adapter("ref")
    model.train(passes.model.training)
    inputs = trainer.data_collator(_examples(batch))

    def whole() -> Tensor:
        loss: Tensor = trainer.compute_loss(trainer.model, inputs)
        return loss

    def head(hidden: Tensor) -> Tensor:
        with _given(model.get_base_model(), hidden):
            return whole()

    return TrlStep(found, whole, head)


def _again(model: Any) -> Any:
    """A second model of the same parameters and buffers, which a trainer may patch."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _trainer(kind: Any, model: Any, tokenizer: Any, beta: float) -> Any:
    import datasets
    from trl import DPOConfig

    quiet = not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                folder,
                beta=beta,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,  # as the demo trains
                max_length=None,
                report_to=[],
                disable_tqdm=True,
            )
            rows = datasets.Dataset.from_list([_ROW])
            return kind(model, args=args, train_dataset=rows, processing_class=copy.deepcopy(tokenizer))
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _examples(batch: Batch) -> list[dict[str, list[int]]]:
    """Rows for TRL's collator, under the names of TRL 0.24 and of 1.x."""
    found: list[dict[str, list[int]]] = [{} for _ in range(batch.pairs)]
    for row, (tokens, labels) in enumerate(zip(batch.tokens, batch.labels, strict=True)):
        role, pair = divmod(row, batch.pairs)
        start = int((labels != IGNORED).int().argmax())
        parts = {"prompt": tokens[:start], ("chosen", "rejected")[role]: labels[labels != IGNORED]}
        for name, ids in parts.items():
            found[pair] |= {f"{name}_ids": ids.tolist(), f"{name}_input_ids": ids.tolist()}
    return found


@contextlib.contextmanager
def _given(base: Any, hidden: Tensor) -> Iterator[None]:
    """Within, the backbone of a causal LM returns `hidden`, whatever it is called with."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    own = vars(base.base_model)
    before = own.get("forward")
    own["forward"] = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden)
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before
