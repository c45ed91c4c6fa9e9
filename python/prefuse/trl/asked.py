"""Models that give statistics of tokens in the place of their logits, while a method of a trainer runs.

Before TRL 1.15 DPO, KTO, GRPO and RLOO call their models for all logits, some of them under attributes of the trainer.
While such a method runs, the forward pass of these models knows which tokens are scored, and what it returns has
`gathered.Gathered` for logits. The method is TRL's own; what it calls in another way than it is known to gets logits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefuse.models import patching, proof
from prefuse.models.causal_lm import HeadTensors, find_causal_lm, refuse_or_warn, run_inside
from prefuse.models.sharing import counts
from prefuse.trl import training_line
from prefuse.trl.fused import Running
from prefuse.trl.gathered import Gathered, Method, _statistics, other_padding

_KEY = "_prefuse_trl_asked"


class Asked(NamedTuple):
    """What models are asked for.

    Attributes:
        labels_of: from the input tokens [B, T] and their attention mask, the labels [B, T] of those that are scored,
            −100 elsewhere; None where these tokens are not known, and logits are to be made.
        outputs: as of `gathered.GatheringModel`.
        temperature: of log-probabilities and entropies.
        running: see there.
    """

    labels_of: Callable[[Tensor, Tensor | None], Tensor | None]
    outputs: tuple[str, ...]
    temperature: float
    running: Running


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


class Models:
    """The models that are asked: their forwards are patched at the first call, and given back together."""

    def __init__(self, running: Running) -> None:
        self._patched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._running = running

    @contextlib.contextmanager
    def asked(
        self,
        models: Sequence[Any],
        labels_of: Callable[[Tensor, Tensor | None], Tensor | None],
        outputs: tuple[str, ...] = (),
        temperature: float = 1.0,
    ) -> Iterator[None]:
        """Inside, calls of `models` answer with statistics of the tokens that `labels_of` knows."""
        for model in models:
            if (causal_lm := _causal_lm(model)) is not None and causal_lm not in self._patched:
                patching.patch_forward(causal_lm, _KEY, _answering_forward)
                self._patched.add(causal_lm)
        token = _ASKED.set(Asked(labels_of, outputs, temperature, self._running))
        try:
            yield
        finally:
            _ASKED.reset(token)

    def remove(self) -> None:
        """Gives all forwards back."""
        for causal_lm in self._patched:
            patching.unpatch(causal_lm, _KEY)
        self._patched.clear()


def _causal_lm(model: Any) -> nn.Module | None:
    if model is None:
        return None
    try:
        found: nn.Module = find_causal_lm(model)
    except TypeError:
        return None  # it is called for its logits
    return found


def _answering_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    asked = _ASKED.get()
    own = functools.partial(patching.call_original, self, _KEY)
    if asked is None or getattr(self, _KEY).count == 0:
        return own(*args, **kwargs)
    names = list(inspect.signature(type(self).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    labels = _labels(asked, given)
    if labels is None:
        return own(*args, **kwargs)
    changed = proof.unknown_hook(self) or patching.unknown_above(self, _KEY)
    if changed is not None:
        refuse_or_warn(self, f"{changed} may change what the model returns", asked.running.fallback)
        return own(*args, **kwargs)
    kept = given.pop("logits_to_keep", None) or 0
    given["labels"] = labels
    before = replace(counts(self))

    def inside(hidden: Tensor, tensors: HeadTensors) -> Any:
        shared = counts(self).since(before) if asked.running.share_prompts else None
        tell = training_line.teller(self, hidden, shared)
        found = _statistics(hidden, tensors, asked.outputs, asked.running.sparse, tell, asked.temperature)
        aux_loss = found.pop("aux_loss", None)
        trimmed = {name: values[:, -labels.shape[1] :] for name, values in found.items()}
        classes = self.config.get_text_config().vocab_size
        return _output_class()(trimmed, labels.roll(-1, -1), kept, classes, asked.temperature, aux_loss)

    run = getattr(self, _KEY).around(run_inside)
    return run(self, inside, (), given, own, asked.running.fallback, asked.running.share_prompts)


def _labels(asked: Asked, given: Mapping[str, Any]) -> Tensor | None:
    """None where logits are to be made."""
    ids = given.get("input_ids")
    if ids is None or given.get("labels") is not None or isinstance(given.get("logits_to_keep"), Tensor):
        return None
    labels = asked.labels_of(ids, given.get("attention_mask"))
    return None if labels is None else labels.to(ids.device)


@functools.cache
def _output_class() -> Any:
    """A model's output, of tensors that wrappers find, as the trainers look at it: `.logits` and `.aux_loss`."""
    from transformers.utils import ModelOutput

    @dataclass
    class GatheredOutput(ModelOutput):  # type: ignore[misc]
        statistics: Any = None  # by name, [B, T] each
        labels: Any = None
        kept: Any = None
        classes: Any = None
        temperature: Any = None
        aux_loss: Any = None

        @property
        def logits(self) -> Gathered:
            """Of the last `kept` positions, or all."""
            positions = torch.arange(self.labels.numel(), device=self.labels.device).view_as(self.labels)
            flat = {name: values.reshape(-1) for name, values in self.statistics.items()}
            kept = positions[:, -self.kept :] if self.kept else positions
            return Gathered(flat, self.labels.reshape(-1), kept, self.classes, self.temperature)

    return GatheredOutput


def _known(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor | None], Tensor | None]:
    """Labels by the tokens that they belong to."""

    def labels_of(ids: Tensor, _: Tensor | None) -> Tensor | None:
        for tokens, labels in pairs:
            if tokens is ids:
                return labels
        for tokens, labels in pairs:
            if tokens.shape == ids.shape and bool((tokens.to(ids.device) == ids).all()):
                return labels
        return None

    return labels_of


def _masked(inputs: Mapping[str, Any], prefix: str = "") -> list[tuple[Tensor, Tensor]]:
    """The tokens of a batch, and those of them that its completion mask marks."""
    found = []
    for name in (f"{prefix}input_ids", f"{prefix}completion_input_ids"):
        ids, mask = inputs.get(name), inputs.get(f"{prefix}completion_mask")
        if ids is not None and mask is not None:
            found.append((ids, ids.masked_fill(mask == 0, -100)))
    return found


def _models(trainer: Any, *others: Any) -> list[Any]:
    return [*others, getattr(trainer, "model", None), getattr(trainer, "ref_model", None)]


def _as_it_is(trainer: Any) -> bool:
    """Whether a trainer is to run as it does: asked already, by a fused path of TRL's, or for more than statistics."""
    args = getattr(trainer, "args", None)
    return bool(
        _ASKED.get() is not None
        or getattr(trainer, "use_liger_kernel", False)
        or getattr(trainer, "use_weighting", getattr(args, "use_weighting", False))
        or getattr(trainer, "is_encoder_decoder", False)
    )


def _batches(trainer: Any, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Of DPO and KTO: what is scored of a batch, and of its mismatched completions."""
    if (truncate := getattr(trainer, "_truncate_inputs", None)) is not None:  # of TRL 0.29's DPO
        ids, _, mask = truncate(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
        return [(ids, ids.masked_fill(mask == 0, -100))]
    return _masked(inputs) + _masked(inputs, "KL_")


_OF_LOSS = ("entropy", "mean_logits", "is_top1")


def _loss(original: Method, models: Models) -> Method:
    def _compute_loss(self: Any, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        if return_outputs or _as_it_is(self):  # somebody wants to see the logits
            return original(self, model, inputs, return_outputs)
        with models.asked(_models(self, model), _known(_batches(self, inputs)), _OF_LOSS):
            return original(self, model, inputs, return_outputs)

    return _compute_loss


def _reference(original: Method, models: Models) -> Method:
    def compute_ref_log_probs(self: Any, *arguments: Any) -> Any:
        *model, inputs = arguments  # the model, since TRL 1.6
        if _as_it_is(self):
            return original(self, *arguments)
        with models.asked(_models(self, *model), _known(_batches(self, inputs))):
            return original(self, *arguments)

    return compute_ref_log_probs


def _labelled(original: Method, models: Models) -> Method:
    """Of KTO before TRL 1.6, whose batches have labels; the last argument is the batch, before it maybe the model."""

    @functools.wraps(original)
    def method(self: Any, *arguments: Any) -> Any:
        *model, batch = arguments
        if _as_it_is(self) or other_padding(self):
            return original(self, *arguments)
        names = ("completion", "KL_completion")
        pairs = [(batch[f"{name}_input_ids"], batch[f"{name}_labels"]) for name in names if f"{name}_labels" in batch]
        with models.asked(_models(self, *model), _known(pairs), ("mean_logits",)):
            return original(self, *arguments)

    return method


def _concatenated(original: Method, models: Models) -> Method:
    """Of DPO before TRL 0.29, which cuts rows to length itself: every token that it attends to is scored."""

    def labels_of(ids: Tensor, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else ids.masked_fill(mask == 0, -100)

    def concatenated_forward(self: Any, model: Any, batch: Any, is_ref_model: bool = False) -> Any:
        likelihood = self.args.rpo_alpha is not None or "sft" in self.loss_type
        if _as_it_is(self) or self.padding_free or likelihood:
            return original(self, model, batch, is_ref_model)
        with models.asked([model], labels_of, ("mean_logits",)):
            return original(self, model, batch, is_ref_model)

    return concatenated_forward


def _completions(original: Method, models: Models) -> Method:
    plain = inspect.unwrap(original)
    signature = inspect.signature(plain)
    masks = "selective_log_softmax_and_entropy" in plain.__globals__  # whose callers give masks of rows to all

    def _get_per_token_logps_and_entropies(self: Any, *arguments: Any, **options: Any) -> Any:
        given = signature.bind(self, *arguments, **options)
        given.apply_defaults()
        count = given.arguments["logits_to_keep"]
        if _ASKED.get() is not None:
            return original(self, *arguments, **options)

        def labels_of(ids: Tensor, mask: Tensor | None) -> Tensor | None:
            labels = ids.new_full(ids.shape, -100)
            labels[:, -count:] = ids[:, -count:]
            if not masks:
                return labels
            return None if mask is None else labels.masked_fill(mask == 0, -100)

        asked = ("entropy",) if given.arguments["compute_entropy"] else ()
        with models.asked([given.arguments["model"]], labels_of, asked, self.temperature):
            return original(self, *arguments, **options)

    return _get_per_token_logps_and_entropies


METHODS: dict[str, dict[str, Callable[[Method, Models], Method]]] = {
    "DPOTrainer": {
        "_compute_loss": _loss,
        "compute_ref_log_probs": _reference,
        "concatenated_forward": _concatenated,
    },
    "KTOTrainer": {
        "_compute_loss": _loss,
        "compute_ref_log_probs": _reference,
        "forward": _labelled,
        "compute_reference_log_probs": _labelled,
    },
    "GRPOTrainer": {
        "_full_logits_logps": _completions,
        "_get_per_token_logps_and_entropies": _completions,
    },
    "RLOOTrainer": {"_get_per_token_logps_and_entropies": _completions},
}
"""What takes the place of methods that call models for their logits: the same, with models that are asked."""
