"""The arguments of `prefuse.preference_loss` that belong together, as they come and checked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefuse._arguments.checks import check_flag, check_integer
from prefuse._arguments.layout import check_layout, scored_tokens, shift_left
from prefuse._arguments.placement import sent
from prefuse._parallel.sharded_weights import gathered_head
from prefuse.linear.operands import Lora
from prefuse.linear.sparse import Sparse

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Transform:
    """What is done to logits before anything is made of them, and the k of top-k statistics."""

    temperature: float | Tensor
    softcap: float | None
    scale: float
    k: int


@dataclass(frozen=True)
class Layout:
    """Responses, checked, in the alignment of the rows: of logits or hidden states.

    Attributes:
        labels, mask: as given, or one token to the left.
        scored: which tokens are scored.
        offsets: where packed responses begin.
        groups: which prompt each response answers.
        shift: whether the caller's labels, and so columns by token, are one token behind.
        ignore_index: marks labels to ignore.
    """

    labels: Tensor
    mask: Tensor | None
    scored: Tensor
    offsets: Tensor | None
    groups: Tensor | None
    shift: bool
    ignore_index: int

    def at(self, hidden: Any) -> Layout:
        """The same where the hidden states are, if it came on the host."""
        if not isinstance(hidden, Tensor) or self.labels.device.type != "cpu" or hidden.device.type == "cpu":
            return self
        names = ("labels", "mask", "scored", "offsets", "groups")
        return dataclasses.replace(self, **{name: sent(getattr(self, name), hidden.device) for name in names})


@dataclass(frozen=True)
class Responses:
    """Which tokens are scored, and how responses lie in the batch."""

    labels: Tensor
    mask: Tensor | None
    cu_seqlens: Tensor | None
    groups: Tensor | None
    shift: bool
    ignore_index: int

    def checked(self) -> Layout:
        """The same, checked and aligned with the rows.

        Raises:
            TypeError, ValueError: the message names the argument.
        """
        offsets = check_layout(self.labels, self.mask, self.cu_seqlens)
        check_integer("ignore_index", self.ignore_index)
        check_flag("shift", self.shift)
        labels, mask = self.labels, self.mask
        if self.shift:
            labels, mask = shift_left(labels, mask, self.ignore_index, offsets)
        scored = scored_tokens(labels, mask, self.ignore_index)
        return Layout(labels, mask, scored, offsets, self.groups, self.shift, self.ignore_index)


@dataclass(frozen=True)
class HeadInputs:
    """Hidden states (None: logits came instead), what makes logits of them, and how the caller wants it done."""

    hidden: Any
    weight: Any
    bias: Tensor | None
    lora: Lora | None
    reference_weight: Tensor | None
    reference_bias: Tensor | None
    gradient_dtype: torch.dtype | None
    plan: str | None
    workspace_bytes: int | None
    group: ProcessGroup | None
    sparse: float | str | Sparse | None
    logits_dtype: torch.dtype | None

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Weights that DeepSpeed ZeRO-3 has partitioned are whole in the block."""
        return gathered_head(self.weight, self.bias, self.lora, self.reference_weight, self.reference_bias)

    def as_columns(self, reads: Collection[str]) -> tuple[dict[str, Any], HeadInputs]:
        """Those that the objective reads as columns, by name, and the rest."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        columns = {name: value for name, value in given.items() if name in reads and value is not None}
        rest: Any = dict.fromkeys(columns)
        return columns, dataclasses.replace(self, **rest)

    def check(self, logits: Any, inplace: bool, reads: Collection[str]) -> None:
        """Refuses hidden states and logits together, or neither, or an argument of the one beside the other.

        Raises:
            TypeError, ValueError: the message names the argument.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.hidden is None:
            unread = [name for name, value in given.items() if value is not None]
            if unread:
                raise TypeError(f"{unread[0]}: given without hidden, the hidden states it belongs to")
            if logits is None:
                raise TypeError("logits: missing; give logits, or hidden and weight")
            return
        taken = [name for name in given if name in reads]
        if taken:
            raise TypeError(
                f"{taken[0]}: an argument that goes with hidden, and a column that the objective reads; "
                "give the column another name"
            )
        if logits is not None:
            raise TypeError("logits: given together with hidden; give one of the two")
        if self.weight is None:
            raise TypeError("weight: missing, and hidden needs it")
        if inplace:
            raise ValueError("inplace: expected False with hidden, from which there are no logits to write over")
