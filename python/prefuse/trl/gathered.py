"""Logits that are not there, for the trainers of TRL's that build them all.

Those trainers call the model and ask its logits for a few numbers per token, all of which `Gathered` has: the model's
forward pass has made them of hidden states, and the logits never existed. The trainers' own code runs on, so that
losses and metrics are theirs.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefuse._arguments.layout import shift_left
from prefuse._parallel.sharded_weights import gathered, whole
from prefuse._patches import Patch
from prefuse.compat.trl import OPTIONAL_OUTPUTS, token_outputs
from prefuse.linear.functions import linear_token_stats
from prefuse.linear.operands import mean_row
from prefuse.linear.plans import Plan
from prefuse.linear.sparse import Sparse
from prefuse.models.causal_lm import HeadTensors
from prefuse.models.head import Head, head
from prefuse.trl import training_line
from prefuse.trl.fused import Running

LabelsOf = Callable[[Tensor], Tensor]
"""From the input tokens [B, T], the labels [B, T] of those that are scored; −100 elsewhere."""

Method = Callable[..., Any]


class GatheringModel:
    """A model to call for `Gathered` logits.

    Args:
        head: of the model.
        labels_of: which tokens are scored.
        outputs: what is asked of the logits beside log-probabilities: some of TRL's names of outputs.
        sparse: as in `prefuse.linear_token_stats`.
    """

    def __init__(
        self, head: Head, labels_of: LabelsOf, outputs: Sequence[str] = (), sparse: Sparse | str | None = None
    ) -> None:
        self._head = head
        self._sparse = sparse
        self._labels_of = labels_of
        self._outputs = tuple(outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head.model, name)

    def __call__(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The model's output, as far as the trainers look at it: `.logits` and `.aux_loss`."""
        labels = self._labels_of(input_ids).to(input_ids.device)

        before = replace(self._head.tokens)

        def inside(hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
            shared = self._head.tokens.since(before) if self._head.share_prompts else None
            tell = training_line.teller(self._head.causal_lm, hidden, shared)
            return _statistics(hidden, tensors, self._outputs, self._sparse, tell)

        found = self._head.run(inside, labels=labels, inputs={"input_ids": input_ids, **inputs})
        found = {name: values[:, -labels.shape[1] :] if values.ndim else values for name, values in found.items()}
        aux_loss = found.pop("aux_loss", None)
        positions = torch.arange(labels.numel(), device=labels.device).view_as(labels)
        flat = {name: values.reshape(-1) for name, values in found.items()}
        config: Any = self._head.causal_lm.config
        classes = config.get_text_config().vocab_size
        logits = Gathered(flat, labels.roll(-1, -1).reshape(-1), positions, classes)
        return types.SimpleNamespace(logits=logits, aux_loss=aux_loss)


class Gathered:
    """What stands for logits [..., V]: indexed like them, and answering from the statistics of each row.

    Args:
        statistics: [N] each, by TRL's names of outputs.
        labels: [N], which token each row was scored on.
        positions: [...], the rows of these logits among the N.
        classes: V.
        temperature: by which the logits are divided in the statistics, and have not been divided yet.
    """

    def __init__(
        self,
        statistics: Mapping[str, Tensor],
        labels: Tensor,
        positions: Tensor,
        classes: int,
        temperature: float = 1.0,
    ) -> None:
        self._statistics = statistics
        self._labels = labels
        self._positions = positions
        self._classes = classes
        self._temperature = temperature

    @property
    def shape(self) -> torch.Size:
        """That of the logits."""
        return torch.Size((*self._positions.shape, self._classes))

    @property
    def device(self) -> torch.device:
        """Where the logits would be."""
        return self._positions.device

    @property
    def ndim(self) -> int:
        """How many dimensions the logits have."""
        return self._positions.ndim + 1

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Of the label of each row, of the logits over `temperature`: 0 where none is scored."""
        return self.divided(temperature)._of("log_probs")

    def entropy(self, temperature: float = 1.0) -> Tensor:
        """Of each row; 0 where none is scored."""
        return self.divided(temperature)._of("entropy")

    def divided(self, temperature: float) -> Gathered:
        """Divided by the number that the statistics were made with."""
        if temperature != self._temperature:
            raise TypeError(
                f"logits: prefuse has not made them; their statistics are those of temperature {self._temperature}, "
                f"and {temperature} was asked for"
            )
        return self._at(self._positions, 1.0)

    __truediv__ = divided

    def div_(self, temperature: float) -> Gathered:
        """`divided`, in place."""
        self._temperature = self.divided(temperature)._temperature
        return self

    def mean(self, dim: int | None = None) -> Tensor:
        """Over the classes, or over everything."""
        means = self._of("mean_logits")
        return means.mean() if dim is None else _along_classes(means, dim)

    def nansum(self) -> Tensor:
        """Over everything but rows that are not a number."""
        return self._of("mean_logits").nansum() * self._classes

    def argmax(self, dim: int) -> Tensor:
        """The label where that is the most likely class, and −1 elsewhere: as good for comparing with labels."""
        likely = torch.where(self._of("is_top1"), self._labels[self._positions], -1)
        found: Tensor = _along_classes(likely, dim)
        return found

    def log_softmax(self, dim: int) -> Gathered:
        """Of which `torch.take_along_dim` takes the labels' log-probabilities."""
        found: Gathered = _along_classes(self, dim)
        return found

    def __getitem__(self, key: Any) -> Gathered:
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *[slice(None)] * (self._positions.ndim + 2 - len(keys)), *keys[at + 1 :])
        if len(keys) > self._positions.ndim:
            *keys, classes = keys  # type: ignore[assignment]
            if classes != slice(None):
                raise TypeError(f"logits: prefuse has not made them, and classes {classes} were asked for")
        return self._at(self._positions[tuple(keys)])

    def index_select(self, dim: int, index: Tensor) -> Gathered:
        """Along another dimension than that of the classes."""
        return self._at(self._positions.index_select(dim, index))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Gathered, ...]:
        """Parts along another dimension than that of the classes."""
        return tuple(self._at(positions) for positions in self._positions.chunk(chunks, dim))

    def split(self, rows: int, dim: int = 0) -> tuple[Gathered, ...]:
        """Parts of so many rows along another dimension than that of the classes."""
        return tuple(self._at(positions) for positions in torch.split(self._positions, rows, dim))

    def to(self, *_: Any, **__: Any) -> Gathered:
        """The same: its numbers are in float32, on the device of the model."""
        return self

    def view(self, *shape: int) -> Gathered:
        """In another shape, whose last dimension is that of the classes."""
        return self._at(self._positions.reshape(shape[:-1]))

    def contiguous(self) -> Gathered:
        """The same."""
        return self

    def detach(self) -> Gathered:
        """The same without gradient."""
        statistics = {name: values.detach() for name, values in self._statistics.items()}
        return Gathered(statistics, self._labels, self._positions, self._classes, self._temperature)

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        kwargs = kwargs or {}
        if function is torch.nn.functional.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        if function is torch.take_along_dim and isinstance(args[0], Gathered):
            return args[0].log_probs().unsqueeze(-1)
        raise TypeError(f"logits: prefuse has not made them, and torch.{function.__name__} was called on them")

    def _of(self, name: str) -> Tensor:
        if name not in self._statistics:
            raise TypeError(f"logits: prefuse has not made them, and their {name} were asked for")
        return self._statistics[name][self._positions]

    def _at(self, positions: Tensor, temperature: float | None = None) -> Gathered:
        kept = self._temperature if temperature is None else temperature
        return Gathered(self._statistics, self._labels, positions, self._classes, kept)


class Heads:
    """The heads of the models that were called: made when one is, and removed together."""

    def __init__(self, running: Running) -> None:
        self._made: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._fallback = None if running.fallback == "logits" else running.fallback
        self._share_prompts = running.share_prompts
        self._sparse = running.sparse

    def of(self, model: nn.Module) -> Head:
        """The head of a model."""
        found = head(model, fallback=self._fallback, share_prompts=self._share_prompts)
        if found.fresh:
            self._made.add(found.causal_lm)
        return found

    def gathering(self, model: nn.Module, labels_of: LabelsOf, outputs: Sequence[str] = ()) -> GatheringModel:
        """The model to call for `Gathered` logits."""
        return GatheringModel(self.of(model), labels_of, outputs, self._sparse)

    def remove(self) -> None:
        """Removes those that were not there before."""
        for causal_lm in self._made:
            Head(causal_lm, causal_lm).remove()


def _selective_log_softmax(here: Patch) -> Callable[..., Tensor]:
    @functools.wraps(here.original)
    def selective_log_softmax(
        logits: Any, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        if isinstance(logits, Gathered):
            return _one_label(logits, index).log_probs(temperature)
        if temperature != 1.0:
            options["temperature"] = temperature
        if row_mask is not None:
            options["row_mask"] = row_mask
        found: Tensor = here.original(logits, index, **options)
        return found

    return selective_log_softmax


def _selective_log_softmax_and_entropy(here: Patch) -> Callable[..., Any]:
    @functools.wraps(here.original)
    def selective_log_softmax_and_entropy(
        logits: Any,
        index: Tensor,
        entropy_requires_grad: bool = True,
        temperature: float = 1.0,
        row_mask: Tensor | None = None,
    ) -> Any:
        if not isinstance(logits, Gathered):
            return here.original(logits, index, entropy_requires_grad, temperature, row_mask)
        entropy = logits.entropy(temperature)
        logps = _one_label(logits, index).log_probs(temperature)
        return logps, entropy if entropy_requires_grad else entropy.detach()

    return selective_log_softmax_and_entropy


def _entropy_from_logits(here: Patch) -> Callable[..., Tensor]:
    @functools.wraps(here.original)
    def entropy_from_logits(logits: Any, *arguments: Any, **options: Any) -> Tensor:
        found: Tensor = (
            logits.entropy() if isinstance(logits, Gathered) else here.original(logits, *arguments, **options)
        )
        return found

    return entropy_from_logits


def _one_label(logits: Gathered, index: Tensor) -> Gathered:
    if index.shape != logits.shape[:-1]:
        raise TypeError(
            f"logits: prefuse has not made them; expected one label for each of {tuple(logits.shape[:-1])}, got "
            f"{tuple(index.shape)}"
        )
    return logits


def _cpo(original: Method, heads: Heads) -> Method:
    def concatenated_forward(self: Any, model: Any, batch: Mapping[str, Tensor]) -> Any:
        if self.is_encoder_decoder or isinstance(model, GatheringModel) or other_padding(self):
            return original(self, model, batch)
        labels = _roles([batch["chosen_labels"], batch["rejected_labels"]])
        return original(self, heads.gathering(model, lambda _: labels, ("mean_logits",)), batch)

    return concatenated_forward


def _orpo(original: Method, heads: Heads) -> Method:
    def concatenated_forward(self: Any, model: Any, batch: Mapping[str, Tensor]) -> Any:
        if self.is_encoder_decoder or isinstance(model, GatheringModel) or other_padding(self):
            return original(self, model, batch)
        # The likelihood of a chosen response takes in its prompt.
        chosen = batch["chosen_input_ids"].masked_fill(batch["chosen_attention_mask"] != 1, -100)
        labels = _roles([chosen, batch["rejected_labels"]])
        return original(self, heads.gathering(model, lambda _: labels, ("mean_logits",)), batch)

    return concatenated_forward


def _tpo(original: Method, heads: Heads) -> Method:
    def _compute_loss(self: Any, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool) -> Any:
        if return_outputs or isinstance(model, GatheringModel):  # somebody wants to see the logits
            return original(self, model, inputs, return_outputs)
        mask = inputs["completion_mask"]
        gathering = heads.gathering(
            model,
            lambda tokens: tokens.masked_fill(mask == 0, -100),
            ("entropy", "mean_logits", "is_top1"),
        )
        return original(self, gathering, inputs, return_outputs)

    return _compute_loss


def _online_dpo(original: Method, heads: Heads) -> Method:
    def _forward(
        self: Any,
        model: Any,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        completion_mask: Tensor,
        vision_inputs: Any = None,
    ) -> Any:
        responses = completion_ids.shape[1]
        without_prompt = responses >= self.max_length  # of which TRL reads other logits
        if not without_prompt and prompt_ids.shape[1] and not isinstance(model, GatheringModel):
            model = heads.gathering(model, lambda tokens: _last(tokens, responses))
        return original(self, model, prompt_ids, prompt_mask, completion_ids, completion_mask, vision_inputs)

    return _forward


def other_padding(trainer: Any) -> bool:
    """Whether labels are padded by another number than −100, which trainers before TRL 0.28 let one choose."""
    return bool(getattr(trainer, "label_pad_token_id", -100) != -100)


FUNCTIONS = {
    "entropy_from_logits": _entropy_from_logits,
    "selective_log_softmax": _selective_log_softmax,
    "selective_log_softmax_and_entropy": _selective_log_softmax_and_entropy,
}
"""What takes the place of the functions that are given logits."""

METHODS: dict[str, dict[str, Callable[[Method, Heads], Method]]] = {
    "CPOTrainer": {"concatenated_forward": _cpo},
    "ORPOTrainer": {"concatenated_forward": _orpo},
    "TPOTrainer": {"_compute_loss": _tpo},
    "OnlineDPOTrainer": {"_forward": _online_dpo},
}
"""What takes the place of the methods that build them: the same with another model to call."""


def _roles(labels: Sequence[Tensor]) -> Tensor:
    """The labels of each role one after the other, padded to one length."""
    length = max(each.shape[1] for each in labels)
    return torch.cat([nn.functional.pad(each, (0, length - each.shape[1]), value=-100) for each in labels])


def _last(tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens of each row as labels."""
    return tokens.where(torch.arange(tokens.shape[1], device=tokens.device) >= tokens.shape[1] - count, -100)


def _along_classes(values: Any, dim: int) -> Any:
    if dim != -1:
        raise TypeError(f"logits: prefuse has not made them, and dim={dim} of them was asked for")
    return values


def _cross_entropy(logits: Gathered, labels: Tensor, **options: Any) -> Tensor:
    """The mean of −log p over the labels that are not −100."""
    plain = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean"}
    for name, value in options.items():
        if value != plain.get(name, 0.0):
            raise TypeError(f"cross_entropy: of logits that prefuse has not made, got {name}={value!r}")
    return -logits.log_probs().sum() / (labels != -100).sum()


def _statistics(
    hidden: Tensor,
    tensors: HeadTensors,
    outputs: Sequence[str],
    sparse: Sparse | str | None,
    tell: Callable[[Plan | None], None] | None = None,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """[B, T] each, that of position t for the token t + 1; mean logits of all positions, the others of scored ones."""
    targets = shift_left(tensors.given_labels(), None, -100, None)[0]
    scored = [name for name in outputs if name != "mean_logits"]
    made = token_outputs(hidden, targets, scored, tensors, sparse=sparse, temperature=temperature, tell=tell)
    found = dict(zip(("log_probs", *OPTIONAL_OUTPUTS), made, strict=True))
    if "mean_logits" in outputs:
        found["mean_logits"] = _mean_logits(hidden, tensors)
    found["aux_loss"] = tensors.aux_loss
    return {name: values for name, values in found.items() if values is not None}


@torch.no_grad()
def _mean_logits(hidden: Tensor, tensors: HeadTensors) -> Tensor:
    """The mean logit of every position: without a cap that of ``h·w_v`` is ``h·mean(w)``, and no logits are needed."""
    if tensors.weight is None:
        return hidden.mean(-1, dtype=torch.float32)
    if tensors.softcap is not None:
        labels = hidden.new_zeros(hidden.shape[:-1], dtype=torch.long)
        made = linear_token_stats(hidden, labels=labels, stats="mean_logit", **tensors.arguments)
        return made.mean_logit.float()
    matrices = () if tensors.lora is None else tensors.lora[:2]
    with gathered([tensors.weight, tensors.bias, *matrices]), torch.autocast(hidden.device.type, enabled=False):
        states = hidden.float()
        means = states @ mean_row(whole(tensors.weight))
        if tensors.lora is not None:
            first, second, scaling = tensors.lora
            means = means + scaling * ((states @ whole(first).float().T) @ mean_row(whole(second)))
        if tensors.bias is not None:
            means = means + whole(tensors.bias).float().mean()
        scaled: Tensor = means * tensors.scale
        return scaled
