"""`prefuse.head(model)`: a transformers causal LM whose head runs fused, through whatever the model is wrapped in.

The model's ``forward`` learns one more argument. ``model(..., fused=function)`` runs the backbone and hands its hidden
states, with what makes logits of them, to ``function``; what that returns, the call returns. This happens inside the
model, where FSDP has gathered the parameters and autocast is on, so that DDP, FSDP, PEFT and ``torch.compile`` see a
forward pass like any other. Without the argument the forward is the original one.

`Head` puts prefuse's losses and statistics there. Importing this imports neither transformers nor PEFT.
"""

from __future__ import annotations

import copy
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefuse._layout import check_layout, shift_left
from prefuse.language import Objective, Score
from prefuse.linear.functions import (
    LinearTokenStats,
    Lora,
    linear_sequence_logps,
    linear_token_stats,
)
from prefuse.preference import preference_loss

__all__ = ["Head", "HeadTensors", "head"]

Inside = Callable[[Tensor, "HeadTensors"], Any]
"""What runs inside of the model: hidden states [B, T, H] and the head in, anything out."""

_PATCH = "_prefuse_head"
_WRAPPED = ("_orig_mod", "module")
"""Where torch.compile, and DDP, FSDP1 and DeepSpeed, keep what they wrap."""

_SOFTCAPS = {
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "logits_soft_cap": "logits_soft_cap",
}
_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names by which forward passes transform logits, and those of the configuration's numbers."""


@dataclass(frozen=True)
class HeadTensors:
    """What makes logits of hidden states, at the time of the call.

    Attributes:
        weight: [V, H]. A DTensor or a DeepSpeed ZeRO-3 parameter where the model's is one; prefuse's functions gather.
        bias: [V] or None.
        lora: (A [r, H], B [V, r], scaling) of the active adapters of the LM head, or None.
        softcap: the cap of the logits, or None.
        scale: what logits are multiplied by before.
        labels: the labels that the model was called with, in the alignment of the hidden states and of their length
            (prompt tuning of PEFT's puts ignored ones in front), or None.
        outputs: what the backbone returned: router logits, hidden states of other layers.
        router_loss: the load-balancing loss of a mixture of experts weighed with the configuration's
            ``router_aux_loss_coef``, where router logits were asked for; else None.
        aux_loss: the same, not weighed.
    """

    weight: Tensor
    bias: Tensor | None
    lora: Lora | None
    softcap: float | None
    scale: float
    labels: Tensor | None
    outputs: Any
    router_loss: Tensor | None
    aux_loss: Tensor | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that say the same to `preference_loss`, `linear_token_stats` and their like."""
        return {name: getattr(self, name) for name in ("weight", "bias", "lora", "softcap", "scale")}


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
    """

    model: nn.Module
    causal_lm: nn.Module

    def preference_loss(
        self, objective: str | Objective, *, labels: Tensor, inputs: Mapping[str, Any], **options: Any
    ) -> Score:
        """`prefuse.preference_loss` of the model's responses.

        Where a mixture of experts is asked for router logits (``output_router_logits`` in its configuration or in
        `inputs`), its weighed load-balancing loss is added to ``score.loss``, as the model's own forward adds it.

        Args:
            objective: an `Objective` or the name of one.
            labels: [R, T], or [1, N] beside ``cu_seqlens``.
            inputs: of the model.
            options: further arguments of `prefuse.preference_loss`: ``reference=``, hyper-parameters, columns, …

        Returns:
            A `Score`; `.losses` without the load-balancing loss.

        Raises:
            TypeError, ValueError: as `prefuse.preference_loss`, or for a head that cannot be fused: see `head`.
        """

        def inside(hidden: Tensor, tensors: HeadTensors) -> tuple[dict[str, Tensor], Score]:
            score = preference_loss(
                objective, hidden=hidden, labels=_labels(tensors), shift=True, **tensors.arguments, **options
            )
            loss = score.loss if tensors.router_loss is None else score.loss + tensors.router_loss
            return {"loss": loss, "losses": score.losses}, score

        tensors, score = self._call(inside, labels, inputs)
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
        **options: Any,
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
            scored = _labels(tensors)
            offsets = check_layout(scored, mask, cu_seqlens)
            moved, moved_mask = shift_left(scored, mask, ignore_index, offsets)
            made = linear_token_stats(
                hidden,
                labels=moved,
                stats=statistics,
                mask=moved_mask,
                ignore_index=ignore_index,
                **tensors.arguments,
                **options,
            )
            return {name: value.roll(1, -1)[..., -tokens:] for name, value in made.items()}, made

        tensors, made = self._call(inside, labels, inputs)
        return LinearTokenStats(tensors, made.plan)

    def token_logps(self, labels: Tensor, *, inputs: Mapping[str, Any], **options: Any) -> Tensor:
        """log p of each label in nats, in the shape of `labels`; arguments and errors are those of `token_stats`.

        Under ``torch.no_grad()`` this is the ``reference=`` of another head's `preference_loss`.
        """
        return self.token_stats(labels, "logp", inputs=inputs, **options).logp

    def sequence_logps(self, labels: Tensor, *, inputs: Mapping[str, Any], **options: Any) -> Tensor:
        """log p of each response in nats, [B] (packed: [R]): `prefuse.linear_sequence_logps` of the labels.

        Args:
            labels: [B, T], or [1, N] beside ``cu_seqlens``.
            inputs: of the model.
            options: further arguments of `prefuse.linear_sequence_logps`: ``average=``, ``mask=``, …

        Raises:
            TypeError, ValueError: as `prefuse.linear_sequence_logps`, or for a head that cannot be fused: see `head`.
        """

        def inside(hidden: Tensor, tensors: HeadTensors) -> tuple[dict[str, Tensor], None]:
            logps = linear_sequence_logps(hidden, labels=_labels(tensors), shift=True, **tensors.arguments, **options)
            return {"logps": logps}, None

        return self._call(inside, labels, inputs)[0]["logps"]

    def remove(self) -> None:
        """Puts the original forward back. Other heads of the same model are removed with it."""
        _unpatch(self.causal_lm)

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _call(self, inside: Inside, labels: Tensor, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """Runs `inside` through the outermost wrapper: the tensors that it returned, and the rest."""
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs: expected the model's arguments by name, got {type(inputs).__name__}")
        if inputs.get("labels", labels) is not labels:
            raise TypeError("inputs: holds labels; give them as labels= alone")
        if not _is_patched(self.causal_lm):
            raise RuntimeError("this head was removed from its model; call prefuse.head(model) for a new one")
        carried = _Carried(inside)
        tensors = self.model(**{**inputs, "labels": labels}, fused=carried)
        return tensors, carried.rest


def head(model: nn.Module) -> Head:
    """The fused head of a causal LM; patches the ``forward`` of the innermost transformers model in place.

    A second call, with the model or anything it is wrapped in, patches nothing. `generate`, saving and copying the
    model go on as they did. Which of the configuration's numbers transform the logits (soft cap, scale) is read off the
    model's own forward pass.

    Args:
        model: a transformers causal LM, vision-language models among them, or one wrapped by PEFT, DDP, FSDP,
            accelerate or ``torch.compile``. The head belongs to the same FSDP unit as the root, or (FSDP2) to its own.

    Returns:
        A `Head`.

    Raises:
        TypeError: there is no transformers causal LM in `model`.
        ValueError: its LM head is not a floating-point ``nn.Linear``, alone, with plain LoRA, or as PEFT's module to
            save; it raises when it is called where the state can change in between: dropout on a head's adapter in
            training, other adapters, tensor parallelism inside of the model.

    Example::

        head = prefuse.head(model)
        score = head.preference_loss("simpo", labels=labels, inputs={"input_ids": tokens})
        score.loss.backward()
    """
    causal_lm = _causal_lm(model)
    _projection(causal_lm.get_output_embeddings())
    _patch(causal_lm)
    return Head(model, causal_lm)


class _Carried:
    """Runs inside of the model and returns tensors alone, as wrappers look for those; the rest goes past them."""

    def __init__(self, inside: Callable[[Tensor, HeadTensors], tuple[dict[str, Tensor], Any]]) -> None:
        self._inside = inside
        self.rest: Any = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
        found, self.rest = self._inside(hidden, tensors)
        return found


class _Patch:
    """What stands on a model beside its patched forward.

    Attributes:
        original: the instance's own forward, e.g. accelerate's; None: that of its class.
        autocasts: those that the original enters, entered around the backbone too.
        removed: the patched forward could not be taken out, as another one was laid around it.
    """

    def __init__(self, original: Any) -> None:
        self.original = original
        self.autocasts = _autocasts(original)
        self.removed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Patch:
        return _Patch(copy.deepcopy(self.original, memo))

    def __reduce__(self) -> Any:
        return type(None), ()  # a pickled model comes back with the forward of its class


def _patch(causal_lm: nn.Module) -> None:
    patch = getattr(causal_lm, _PATCH, None)
    if patch is not None:
        patch.removed = False
        return
    setattr(causal_lm, _PATCH, _Patch(vars(causal_lm).get("forward")))
    causal_lm.forward = types.MethodType(_patched(type(causal_lm).forward), causal_lm)


def _unpatch(causal_lm: nn.Module) -> None:
    patch = getattr(causal_lm, _PATCH, None)
    if patch is None:
        return
    if not hasattr(vars(causal_lm).get("forward"), _PATCH):
        patch.removed = True
        return
    delattr(causal_lm, _PATCH)
    del causal_lm.forward
    if patch.original is not None:
        causal_lm.forward = patch.original


def _is_patched(causal_lm: nn.Module) -> bool:
    patch = getattr(causal_lm, _PATCH, None)
    return patch is not None and not patch.removed


def _patched(like: Callable[..., Any]) -> Callable[..., Any]:
    """The patched forward; to those who look (`generate`, `Trainer`) its signature is that of `like`."""

    def forward(self: Any, *args: Any, fused: Inside | None = None, **kwargs: Any) -> Any:
        patch = getattr(self, _PATCH)
        if fused is None:
            return (
                type(self).forward(self, *args, **kwargs) if patch.original is None else patch.original(*args, **kwargs)
            )
        if patch.removed:
            raise RuntimeError("fused: the head was removed from this model; call prefuse.head(model) again")
        run = _fused_forward
        for autocast in patch.autocasts:
            run = autocast(run)
        return run(self, fused, args, kwargs)

    forward.__doc__ = like.__doc__
    # Not through __wrapped__, along which accelerate unwraps a forward past this one.
    forward.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    setattr(forward, _PATCH, True)
    return forward


def _fused_forward(causal_lm: Any, inside: Inside, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The backbone, then `inside` in the place of the LM head."""
    if kwargs.pop("logits_to_keep", 0) != 0:
        raise TypeError("logits_to_keep: given beside fused; mark what is not to be scored in the labels")
    config = causal_lm.config.get_text_config()
    labels = kwargs.pop("labels", None)
    kwargs |= {"use_cache": False, "return_dict": True}
    if getattr(config, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    # The parts are looked up at each call: FSDP and PEFT replace them after patching.
    outputs = _backbone(causal_lm)(*args, **kwargs)
    hidden = outputs.last_hidden_state
    weight, bias, lora = _projection(causal_lm.get_output_embeddings(), hidden)
    aux_loss = _load_balancing(causal_lm, outputs, kwargs) if kwargs.get("output_router_logits") else None
    softcap, scale = _transform(causal_lm)
    return inside(
        hidden.to(weight.device),  # with a model in parts, the backbone may end on another device than its head
        HeadTensors(
            weight,
            bias,
            lora,
            softcap,
            scale,
            labels if labels is None else labels.to(weight.device),
            outputs,
            None if aux_loss is None else getattr(config, "router_aux_loss_coef", 0.0) * aux_loss.to(weight.device),
            aux_loss,
        ),
    )


def _labels(tensors: HeadTensors) -> Tensor:
    if tensors.labels is None:
        raise TypeError("labels: missing")
    return tensors.labels


def _causal_lm(model: Any) -> Any:
    """The transformers model inside of all wrappers."""
    inner, seen = model, []
    while True:
        if not isinstance(inner, nn.Module):
            raise TypeError(f"model: expected a transformers causal LM, got {type(inner).__name__}")
        seen.append(type(inner).__name__)
        if isinstance(inner, nn.DataParallel):
            raise TypeError("model: torch.nn.DataParallel copies the model at each call; use DistributedDataParallel")
        if (wrapped := next((inner._modules[name] for name in _WRAPPED if name in inner._modules), None)) is not None:
            inner = wrapped
        elif "peft" in sys.modules and isinstance(inner, sys.modules["peft"].PeftModel):
            inner = inner.get_base_model()
        else:
            break
    embeddings = getattr(inner, "get_output_embeddings", None)
    config = getattr(inner, "config", None)
    if embeddings is None or config is None or embeddings() is None or getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"model: expected a transformers causal LM, or one that is wrapped, got {' around '.join(seen)}, which has "
            "no LM head over a decoder's hidden states"
        )
    return inner


def _backbone(causal_lm: Any) -> Any:
    """All of the model but its head. Before transformers 5, `base_model` of vision-language models was not it."""
    backbone = getattr(causal_lm, "model", None)
    return causal_lm.base_model if backbone is None else backbone


def _transform(causal_lm: Any) -> tuple[float | None, float]:
    """Soft cap and scale of the logits: the configuration's numbers that the model's own forward names.

    Some configurations hold a number that the forward does not use (Aya Vision's text model has a ``logit_scale``).
    """
    config = causal_lm.config.get_text_config()
    named = _names(causal_lm)

    def number(forward_name: str, config_name: str) -> float | None:
        return getattr(config, config_name, None) if forward_name in named else None

    caps = [cap for names in _SOFTCAPS.items() if (cap := number(*names)) is not None]
    scales = [scale for name in _MULTIPLIERS if (scale := number(name, name)) is not None]
    if (scaling := number("logits_scaling", "logits_scaling")) is not None:
        # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies.
        scales.append(scaling if config.model_type == "hyperclovax" else 1 / scaling)
    return next(iter(caps), None), next(iter(scales), 1.0)


def _names(causal_lm: nn.Module) -> set[str]:
    """What the forward passes of a model's classes name."""
    names: set[str] = set()
    for cls in type(causal_lm).__mro__:
        code = getattr(inspect.unwrap(vars(cls).get("forward", len)), "__code__", None)
        if code is not None:
            names.update(code.co_names, (constant for constant in code.co_consts if isinstance(constant, str)))
    return names


def _load_balancing(causal_lm: Any, outputs: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The load-balancing loss that the model's own module has, of the router logits; None where it has none."""
    modules = [sys.modules.get(cls.__module__) for cls in type(causal_lm).__mro__]
    functions = [found for module in modules if (found := getattr(module, "load_balancing_loss_func", None))]
    if not functions:
        return None
    config = causal_lm.config.get_text_config()
    experts, per_token = (
        getattr(causal_lm, name, None) or getattr(config, name) for name in ("num_experts", "num_experts_per_tok")
    )
    loss: Tensor = functions[0](outputs.router_logits, experts, per_token, kwargs.get("attention_mask"))
    return loss


def _projection(module: Any, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None, Lora | None]:
    """Weight, bias and adapter of an LM head, in the dtype of `hidden`.

    Raises:
        ValueError: the head is not one that `head` takes.
    """
    adapter = None
    if "peft" in sys.modules:
        module, adapter = _without_peft(module)
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        dtype = getattr(getattr(module, "weight", None), "dtype", None)
        raise ValueError(
            f"model: expected an LM head that is an nn.Linear of floating-point weights, alone, with LoRA, or as "
            f"PEFT's module to save, got {type(module).__name__}{f' of {dtype}' if dtype else ''}"
        )
    if hidden is not None and module.weight.is_meta and not hidden.is_meta:
        raise ValueError("model: its LM head is offloaded; keep it on a device")
    weight, bias = module.weight, module.bias
    if hidden is not None and weight.dtype != hidden.dtype:  # FSDP's mixed precision, where the head is its own unit
        weight, bias = weight.to(hidden.dtype), bias if bias is None else bias.to(hidden.dtype)
    if adapter is None:
        return weight, bias, None
    return weight, *_lora(adapter, bias, hidden)


def _without_peft(module: Any) -> tuple[Any, Any]:
    """The head inside of PEFT's wrappers, and the LoRA layer around it if there is one."""
    from peft.tuners.lora.layer import Linear as LoraLinear
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        trained = bool(active) and not module.disable_adapters
        return (module.modules_to_save[active[0]] if trained else module.original_module), None
    if isinstance(module, LoraLinear):
        return module.get_base_layer(), module
    return module, None


def _lora(layer: Any, bias: Tensor | None, hidden: Tensor | None) -> tuple[Tensor | None, Lora | None]:
    """The bias and the adapter of a LoRA layer as it stands: active, disabled or merged."""
    if layer.disable_adapters and layer.merged:
        layer.unmerge()  # as its own forward does
    if layer.disable_adapters or layer.merged or hidden is None:
        return bias, None
    found = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in getattr(layer, "lora_variant", {}):
            raise ValueError(f"model: adapter {name!r} of the LM head is a variant of LoRA (DoRA, …); use plain LoRA")
        if layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0:
            raise ValueError(
                f"model: adapter {name!r} of the LM head has dropout, and the fused head has none; set lora_dropout=0 "
                "or leave the head out of target_modules"
            )
        first, second, scaling = layer.lora_A[name].weight, layer.lora_B[name], layer.scaling[name]
        if second.bias is not None:
            own = (second.bias * scaling).to(hidden.dtype)
            bias = own if bias is None else bias + own
        found.append((first.to(hidden.dtype), second.weight.to(hidden.dtype), scaling))
    if len(found) < 2:
        return bias, next(iter(found), None)
    first = torch.cat([first * scaling for first, _, scaling in found])
    return bias, (first, torch.cat([second for _, second, _ in found], dim=1), 1.0)


def _autocasts(forward: Any) -> list[torch.autocast]:
    """The autocasts around a wrapped forward, outermost first."""
    found: list[torch.autocast] = []
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        found += [content for content in cells if isinstance(content, torch.autocast)]
        forward = getattr(function, "__wrapped__", None)
    return found
