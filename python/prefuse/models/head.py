"""`prefuse.head(model)`: a transformers causal LM whose head runs fused, through whatever the model is wrapped in.

The model's ``forward`` learns one more argument. ``model(..., fused=function)`` runs the backbone and hands its hidden
states, with what makes logits of them, to ``function``; what that returns, the call returns. This happens inside the
model, where FSDP has gathered the parameters and autocast is on, so that DDP, FSDP, PEFT and ``torch.compile`` see a
forward pass like any other. Without the argument the forward is the original one.

`Head` puts prefuse's losses and statistics there. Importing this imports neither transformers nor PEFT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from prefuse._arguments.layout import check_layout, shift_left
from prefuse._arguments.transforms import compiler_disabled
from prefuse.functional import sequence_logps
from prefuse.language import Objective, Score
from prefuse.linear.functions import HeadOptions, LinearTokenStats, linear_sequence_logps
from prefuse.losses.preference import preference_loss
from prefuse.models import patching, proof
from prefuse.models.causal_lm import (
    HeadTensors,
    Inside,
    PeftMethod,
    check_fallback,
    check_fusable,
    find_causal_lm,
    of_logits,
    of_outputs,
    peft_method,
    refuse_or_warn,
    run_inside,
)
from prefuse.models.sharing import Counts, counts

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Head", "HeadTensors", "head"]

_KEY = "_prefuse_head"


class TokenLogpOptions(HeadOptions, total=False):
    """Options of log-probabilities by token, beside the model's own head: see `Head.token_stats`."""

    mask: Tensor | None
    cu_seqlens: Tensor | None
    ignore_index: int


class TokenStatsOptions(HeadOptions, total=False):
    """Options of statistics by token, beside the model's own head: see `prefuse.linear_token_stats`."""

    reference_hidden: Tensor | None
    reference_weight: Tensor | None
    reference_bias: Tensor | None
    k: int
    differentiable: Sequence[str] | None


class SequenceLogpOptions(TokenLogpOptions, total=False):
    """Options of log-probabilities by response: see `prefuse.linear_sequence_logps`."""

    average: bool


@dataclass(frozen=True)
class Head:
    """The fused head of a model: made by `head`, used as context manager or until `remove`.

    Every method calls `model` as a forward pass does, so hooks run and wrapped parameters are gathered. `labels` are
    aligned with the input tokens, as Hugging Face models take them: token t is scored with the hidden state of t − 1,
    and −100 is not scored. `inputs` are the model's other arguments: ``input_ids``, ``attention_mask``,
    ``pixel_values`` and so on.

    Attributes:
        model: the model as it was given, wrapped or not.
        causal_lm: the transformers model inside.
        share_prompts: whether what rows begin with alike is computed once.
        fresh: whether it was patched for this head, and not before.
    """

    model: nn.Module
    causal_lm: nn.Module
    share_prompts: bool = False
    fresh: bool = field(default=False, compare=False, repr=False)

    def preference_loss(
        self,
        objective: str | Objective,
        *,
        labels: Tensor,
        inputs: Mapping[str, Any],
        share_prompts: bool | None = None,
        **options: Any,
    ) -> Score:
        """`prefuse.preference_loss` of the model's responses.

        Where a mixture of experts is asked for router logits (``output_router_logits`` in its configuration or in
        `inputs`), its weighed load-balancing loss is added to ``score.loss``, as the model's own forward adds it.

        Args:
            objective: an `Objective` or the name of one.
            labels: [R, T], or [1, N] beside ``cu_seqlens``.
            inputs: of the model.
            share_prompts: as in `head`, for this call; None: as the head.
            options: further arguments of `prefuse.preference_loss`: ``reference=``, hyper-parameters, columns, …

        Returns:
            A `Score`; `.losses` without the load-balancing loss.

        Raises:
            TypeError, ValueError: as `prefuse.preference_loss`, or for a head that cannot be fused: see `head`.
        """

        def inside(hidden: Tensor, tensors: HeadTensors) -> tuple[dict[str, Tensor], Score]:
            source = tensors.source(hidden)
            # Where the model has made its logits, their gradient is dense.
            own = options if "hidden" in source else {n: v for n, v in options.items() if n != "sparse"}
            score = preference_loss(objective, labels=tensors.given_labels(), shift=True, **source, **own)
            loss = score.loss if tensors.router_loss is None else score.loss + tensors.router_loss
            return {"loss": loss, "losses": score.losses}, score

        own = self if share_prompts is None else replace(self, share_prompts=share_prompts)
        tensors, score = own._carry(inside, labels, inputs)
        moved: Score = score.with_tensors(**tensors)
        return moved

    def token_stats(
        self,
        labels: Tensor,
        statistics: str | Sequence[str] = ("logp",),
        *,
        inputs: Mapping[str, Any],
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        ignore_index: int = -100,
        **options: Unpack[TokenStatsOptions],
    ) -> LinearTokenStats:
        """`prefuse.linear_token_stats` of the labels.

        Args:
            labels: [B, T], or [1, N] beside `cu_seqlens`.
            statistics: names of `prefuse.functional`'s table.
            inputs: of the model.
            mask: the shape of `labels`; 0 marks tokens to ignore.
            cu_seqlens: [R + 1] integers, where each packed response begins and the last ends. Its first token has no
                hidden state that predicts it.
            ignore_index: the label that marks tokens to ignore.
            options: further arguments of `prefuse.linear_token_stats`.

        Returns:
            One tensor per statistic, in the shape and alignment of `labels`: 0 where none is scored, as for the first
            token of each response.

        Raises:
            TypeError, ValueError: as `prefuse.linear_token_stats`, or for a head that cannot be fused: see `head`.
        """
        tokens = labels.shape[-1]

        def inside(hidden: Tensor, tensors: HeadTensors) -> tuple[dict[str, Tensor], LinearTokenStats]:
            scored = tensors.given_labels()
            offsets = check_layout(scored, mask, cu_seqlens)
            moved, moved_mask = shift_left(scored, mask, ignore_index, offsets)
            made = tensors.token_stats(hidden, moved, statistics, mask=moved_mask, ignore_index=ignore_index, **options)
            return {name: value.roll(1, -1)[..., -tokens:] for name, value in made.items()}, made

        tensors, made = self._carry(inside, labels, inputs)
        return LinearTokenStats(tensors, made.plan if isinstance(made, LinearTokenStats) else None)

    def token_logps(self, labels: Tensor, *, inputs: Mapping[str, Any], **options: Unpack[TokenLogpOptions]) -> Tensor:
        """log p of each label in nats, in the shape of `labels`; arguments and errors are those of `token_stats`.

        Under ``torch.no_grad()`` this is the ``reference=`` of another head's `preference_loss`.
        """
        return self.token_stats(labels, "logp", inputs=inputs, **options).logp

    def sequence_logps(
        self, labels: Tensor, *, inputs: Mapping[str, Any], **options: Unpack[SequenceLogpOptions]
    ) -> Tensor:
        """log p of each response in nats, [B] (packed: [R]): `prefuse.linear_sequence_logps` of the labels.

        Args:
            labels: [B, T], or [1, N] beside ``cu_seqlens``.
            inputs: of the model.
            options: further arguments of `prefuse.linear_sequence_logps`: ``average=``, ``mask=``, …

        Raises:
            TypeError, ValueError: as `prefuse.linear_sequence_logps`, or for a head that cannot be fused: see `head`.
        """

        def inside(hidden: Tensor, tensors: HeadTensors) -> tuple[dict[str, Tensor], None]:
            labels = tensors.given_labels()
            if tensors.weight is None:
                return {"logps": sequence_logps(hidden, labels, shift=True, **of_logits(options))}, None
            logps = linear_sequence_logps(hidden, labels=labels, shift=True, **tensors.arguments, **options)
            return {"logps": logps}, None

        return self._carry(inside, labels, inputs)[0]["logps"]

    def run(self, function: Inside, *, labels: Tensor, inputs: Mapping[str, Any]) -> Any:
        """Calls the model with `function` in the place of its LM head.

        Args:
            function: takes the last hidden states [B, T, H] and the `HeadTensors`. Wrappers hook into the tensors that
                it returns, alone or in a tuple, list or dict.
            labels: [B, T], which come as ``tensors.labels``.
            inputs: of the model.

        Returns:
            What `function` returned, as the wrappers hand it on.

        Raises:
            RuntimeError: the head was removed.
            TypeError: `inputs` is no mapping, or holds labels of its own.
        """
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs: expected the model's arguments by name, got {type(inputs).__name__}")
        if inputs.get("labels", labels) is not labels:
            raise TypeError("inputs: holds labels; give them as labels= alone")
        if not patching.is_patched(self.causal_lm, _KEY):
            raise RuntimeError("this head was removed from its model; call prefuse.head(model) for a new one")
        fallback = patching.settings(self.causal_lm, _KEY)
        changed = proof.unknown_hook(self.causal_lm) or patching.unknown_above(self.causal_lm, _KEY)
        if changed is not None:
            refuse_or_warn(self.causal_lm, f"{changed} may change what the model returns", fallback)
            return self._outside(function, labels, inputs)
        method = peft_method(self.model)
        if method.name in _RUNS_TWICE:
            refuse_or_warn(self.causal_lm, f"PEFT's {method.name} calls its forward more than once", fallback)
            return self._outside(function, labels, inputs)
        called = _Called(function, labels, method, self.share_prompts)
        given = {} if method.name in _OWN_LOSS else {"labels": labels}
        found = self.model(**{**inputs, **given}, fused=called)
        if called.times:
            return found
        refuse_or_warn(self.causal_lm, f"{_named(self.model, method)} does not call its forward", fallback)
        return self._outside(function, labels, inputs)

    def _outside(self, function: Inside, labels: Tensor, inputs: Mapping[str, Any]) -> Any:
        """`function` of the logits that the whole model returns, hooks and wrappers included."""
        outputs = self.model(**{**inputs, "use_cache": False, "return_dict": True})
        labels = peft_method(self.model).aligned(labels, outputs.logits.shape[1])
        return function(outputs.logits, of_outputs(self.causal_lm, outputs, labels))

    @property
    def tokens(self) -> Counts:
        """How many tokens this model was given where prompts are shared, and how many of them it has computed."""
        return counts(self.causal_lm)

    def remove(self) -> None:
        """Puts the original forward back. Other heads of the same model are removed with it."""
        patching.unpatch(self.causal_lm, _KEY)

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _carry(
        self,
        function: Callable[[Tensor, HeadTensors], tuple[dict[str, Tensor], Any]],
        labels: Tensor,
        inputs: Mapping[str, Any],
    ) -> tuple[dict[str, Tensor], Any]:
        """`run` for what returns more than tensors: the tensors by name, and the rest past the wrappers."""
        carried = _Carried(function)
        return self.run(carried, labels=labels, inputs=inputs), carried.rest


def head(model: nn.Module, *, fallback: str | None = None, share_prompts: bool = False) -> Head:
    """The fused head of a causal LM; patches the ``forward`` of the innermost transformers model in place.

    A second call, with the model or anything it is wrapped in, patches nothing. `generate`, saving and copying the
    model go on as they did. Which of the configuration's numbers transform the logits (soft cap, scale) is read off the
    model's own forward pass. At the first call six tokens go through the model's own forward: the head is fused where
    its logits are those of hidden states and weight, and nothing else happens to them on the way. A transform before
    the head is left to the model. Elsewhere it makes its logits, a warning says why, and everything here is computed of
    these.

    Args:
        model: a transformers causal LM, vision-language models among them, or one wrapped by PEFT, DDP, FSDP,
            accelerate or ``torch.compile``. The head belongs to the same FSDP unit as the root, or (FSDP2) to its own.
        fallback: for heads that cannot be fused: "logits" has the model make its logits, "error" refuses. None: as an
            earlier head of this model, or "logits".
        share_prompts: run what rows of a batch begin with alike (a prompt and its responses, a conversation and its
            continuations) through the model once. Values and gradients are the same but for rounding; a warning names
            a model or a batch that cannot. See ``docs/prompts.md``.

    Returns:
        A `Head`.

    Raises:
        TypeError: there is no transformers causal LM in `model`.
        ValueError: another `fallback`; with "error", here or at a call, its head cannot be fused: it is not a
            floating-point ``nn.Linear``, alone, with plain LoRA, or as PEFT's module to save, or its logits are not
            those of the product.

    Example::

        head = prefuse.head(model)
        score = head.preference_loss("simpo", labels=labels, inputs={"input_ids": tokens})
        score.loss.backward()
    """
    if fallback is not None:
        check_fallback(fallback)
    causal_lm = find_causal_lm(model)
    if fallback == "error":
        check_fusable(causal_lm)
    fresh = not patching.is_patched(causal_lm, _KEY)
    if fresh:
        patching.patch_forward(causal_lm, _KEY, _patched, fallback or "logits")
    elif fallback is not None:
        getattr(causal_lm, _KEY).settings = fallback
    return Head(model, causal_lm, share_prompts, fresh)


_RUNS_TWICE = ("XLORA",)
"""PEFT's methods whose first pass makes what the second needs."""

_OWN_LOSS = ("CPT",)
"""PEFT's methods that make a loss of their own where they are given labels."""


def _named(model: nn.Module, method: PeftMethod) -> str:
    name = type(model).__qualname__
    return f"{name} with PEFT's {method.name}" if method.name else name


class _Called:
    """Runs a function and counts: a wrapper may never come to it, or not hand it the labels."""

    def __init__(self, function: Inside, labels: Tensor, method: PeftMethod, share_prompts: bool) -> None:
        self.share_prompts = share_prompts
        self._function = function
        self._labels = labels
        self._method = method
        self.times = 0

    def __call__(self, hidden: Tensor, tensors: HeadTensors) -> Any:
        self.times += 1
        if tensors.labels is None:
            tensors = replace(tensors, labels=self._method.aligned(self._labels.to(hidden.device), hidden.shape[1]))
        return self._function(hidden, tensors)


class _Carried:
    """Runs inside of the model and returns tensors alone, as wrappers look for those; the rest goes past them."""

    def __init__(self, inside: Callable[[Tensor, HeadTensors], tuple[dict[str, Tensor], Any]]) -> None:
        self._inside = inside
        self.rest: Any = None

    @compiler_disabled
    def __call__(self, hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
        found, self.rest = self._inside(hidden, tensors)
        return found


def _patched(self: Any, *args: Any, fused: Inside | None = None, **kwargs: Any) -> Any:
    """The forward of a model with a head."""
    if fused is None:
        return patching.call_original(self, _KEY, *args, **kwargs)
    layer = getattr(self, _KEY)
    if layer.count == 0:
        raise RuntimeError("fused: the head was removed from this model; call prefuse.head(model) again")
    own = functools.partial(patching.call_original, self, _KEY)
    share = getattr(fused, "share_prompts", False)
    return layer.around(run_inside)(self, fused, args, kwargs, own, layer.settings, share)
