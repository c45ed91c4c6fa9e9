"""Transformers' causal LMs: found inside of what wraps them, and run up to the head.

Imports neither transformers nor PEFT; what it needs of them is loaded where a model of theirs is.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefuse._arguments.transforms import compiler_disabled
from prefuse._parallel.sharded_weights import gathered, whole
from prefuse.functional import token_stats
from prefuse.linear.functions import linear_token_stats
from prefuse.linear.operands import Lora
from prefuse.models import proof
from prefuse.models.sharing import shared_states

Inside = Callable[[Tensor, "HeadTensors"], Any]
"""What runs inside of the model: hidden states [B, T, H] and the head in, anything out."""

_WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module")
"""Where torch.compile, DDP and DeepSpeed, and FSDP1 keep what they wrap."""

_WRAPPERS = ("torch.", "deepspeed.", "accelerate.")
"""Whose wrappers return what the model returns."""

_SOFTCAPS = {
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "logits_soft_cap": "logits_soft_cap",
    "output_logit_soft_cap": "output_logit_soft_cap",
}
_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names by which forward passes transform logits, and those of the configuration's numbers."""


_IN_FRONT = (
    "; where the model puts tokens of its own in front (of an image, say), give the labels as many ignored ones, -100, "
    "in front"
)


@dataclass(frozen=True)
class HeadTensors:
    """What makes logits of hidden states, at the time of the call.

    Attributes:
        weight: None where the model makes its logits itself, which then come instead of the hidden states. Otherwise
            [V, H]: a DTensor or a DeepSpeed ZeRO-3 parameter where the model's is one; prefuse's functions gather.
        bias: [V] or None.
        lora: (A [r, H], B [V, r], scaling) of the active adapters of the LM head, or None.
        softcap: the cap of the logits, or None.
        scale: what logits are multiplied by before.
        labels: the labels that the model was called with, in the alignment of the hidden states and of their length
            (prompt tuning of PEFT's puts ignored ones in front), or None.
        outputs: what the backbone returned, or the model itself with logits of no class: router logits, hidden states
            of other layers.
        router_loss: the load-balancing loss of a mixture of experts weighed with the configuration's
            ``router_aux_loss_coef``, where router logits were asked for; else None.
        aux_loss: the same, not weighed.
    """

    weight: Tensor | None
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

    def source(self, hidden: Tensor) -> dict[str, Any]:
        """What `preference_loss` reads, by keyword: hidden states and head, or the logits that the model has made."""
        return {"logits": hidden} if self.weight is None else {"hidden": hidden, **self.arguments}

    def token_stats(self, hidden: Tensor, labels: Tensor, stats: Any, **options: Any) -> Any:
        """`linear_token_stats`, or `token_stats` of the logits that the model has made.

        Raises:
            TypeError: an option that only hidden states have, beside logits.
        """
        if self.weight is not None:
            return linear_token_stats(hidden, labels=labels, stats=stats, **self.arguments, **options)
        wanted = options.get("differentiable")
        made = token_stats(hidden, labels, stats, **of_logits(options))
        if wanted is not None:
            made = type(made)({name: v if name in wanted else v.detach() for name, v in made.items()})
        return made

    def given_labels(self) -> Tensor:
        """The labels.

        Raises:
            TypeError: the model was called without.
        """
        if self.labels is None:
            raise TypeError("labels: missing")
        return self.labels

    def in_float32(self) -> HeadTensors:
        """The same with weight, bias and adapter in float32."""
        return replace(
            self,
            weight=None if self.weight is None else self.weight.float(),
            bias=None if self.bias is None else self.bias.float(),
            lora=None if self.lora is None else (self.lora[0].float(), self.lora[1].float(), self.lora[2]),
        )


def run_inside(
    causal_lm: Any,
    inside: Inside,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    own: Callable[..., Any],
    fallback: str = "logits",
    share_prompts: bool = False,
) -> Any:
    """The backbone, then `inside` in the place of the LM head, once that is proven to be right.

    Args:
        own: the model's own forward.
        fallback: "logits": where it is not right, the model makes its logits, which come as hidden states without a
            weight; "error": it is refused.
        share_prompts: compute what rows begin with alike once, where that is proven to be right.
    """
    keep = kwargs.pop("logits_to_keep", None)
    if isinstance(keep, Tensor) or keep:
        raise TypeError("logits_to_keep: given with fused; mark what is not to be scored in the labels")
    config = causal_lm.config.get_text_config()
    labels = kwargs.pop("labels", None)
    kwargs |= {"use_cache": False, "return_dict": True}
    if getattr(config, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    reason, caught = _way(causal_lm, args, kwargs, own)
    if reason:
        refuse_or_warn(causal_lm, reason, fallback)
        outputs = own(*args, **kwargs)
        return inside(outputs.logits, of_outputs(causal_lm, outputs, labels))
    # The parts are looked up at each call: FSDP and PEFT replace them after patching.
    states = functools.partial(_caught_states, causal_lm, own) if caught else functools.partial(_states, causal_lm)
    if share_prompts:
        found, outputs = shared_states(causal_lm, states, args, kwargs, labels)
    else:
        found, outputs = states(*args, **kwargs)
    hidden, weight, bias, lora = _in_one_dtype(found, causal_lm.get_output_embeddings())
    if labels is not None and labels.ndim == 2 and hidden.shape[:2] != labels.shape:
        raise ValueError(
            f"labels: expected one per position of the hidden states of {type(causal_lm).__name__}, "
            f"{tuple(hidden.shape)}, got {tuple(labels.shape)}{_IN_FRONT}"
        )
    aux_loss = _load_balancing(causal_lm, outputs, kwargs) if kwargs.get("output_router_logits") else None
    softcap, scale, _ = _transform(causal_lm)
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
            None if aux_loss is None else _router_coefficient(causal_lm) * aux_loss.to(weight.device),
            aux_loss,
        ),
    )


def of_outputs(causal_lm: Any, outputs: Any, labels: Tensor | None) -> HeadTensors:
    """What goes with logits that the model has made.

    Raises:
        ValueError: they are not one row of classes per token of the labels.
    """
    logits = outputs.logits
    if labels is not None and (logits.ndim != 3 or logits.shape[:2] != labels.shape):
        raise ValueError(
            f"labels: expected one per position of the logits of {type(causal_lm).__name__}, {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)}{_IN_FRONT}"
        )
    aux_loss = getattr(outputs, "aux_loss", None)
    router_loss = None if aux_loss is None else _router_coefficient(causal_lm) * aux_loss
    moved = None if labels is None else labels.to(logits.device)
    return HeadTensors(None, None, None, None, 1.0, moved, outputs, router_loss, aux_loss)


def check_fallback(fallback: str) -> None:
    """Refuses what no head that cannot be fused falls back to.

    Raises:
        ValueError: it is neither "logits" nor "error".
    """
    if fallback not in ("logits", "error"):
        raise ValueError(f"fallback: expected 'logits' or 'error', got {fallback!r}")


def refuse_or_warn(causal_lm: Any, reason: str, fallback: str) -> None:
    """Says once per model that its logits are made, or that this is not wanted.

    Raises:
        ValueError: `fallback` is "error".
    """
    name = f"{type(causal_lm).__module__}.{type(causal_lm).__qualname__}"
    if fallback == "error":
        raise ValueError(f"model: the LM head of {name} cannot be fused: {reason}")
    if not vars(causal_lm).get(_WARNED):
        vars(causal_lm)[_WARNED] = True
        warnings.warn(
            f"prefuse: {name} is scored by its logits, which it makes itself, as its LM head cannot be fused: {reason}"
            '. The numbers are the model\'s own; memory is that of the logits. prefuse.head(model, fallback="error") '
            "refuses instead",
            stacklevel=3,
        )


_WARNED = "_prefuse_warned"


@compiler_disabled
def _way(causal_lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any], own: Callable[..., Any]) -> tuple[str, bool]:
    """Why the head is left to the model, or "" where the product is proven; and whether to catch its hidden states.

    Those of the backbone are tried first. Where the model does more to them before its head (a transform as BERT's),
    its own forward runs, with a head that notes what it is called on and multiplies nothing.
    """
    reason = _why_not_fused(causal_lm, args, kwargs, own, caught=False)
    if reason == "" or _why_not_fused(causal_lm, args, kwargs, own, caught=True):
        return reason, False
    return "", True


def _states(causal_lm: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """The last hidden states of the backbone [B, T, H], and all that it returns."""
    outputs = _backbone(causal_lm)(*args, **kwargs)
    return outputs.last_hidden_state, outputs


@compiler_disabled
def _caught_states(causal_lm: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """What the model's own forward calls its head on [B, T, H], and all that it returns, with logits of no class.

    Raises:
        ValueError: it calls its head never, or several times.
    """
    module = causal_lm.get_output_embeddings()
    caught: list[Tensor] = []

    def note(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        return hidden[..., :0]  # logits of no class

    before = vars(module).get("forward")
    module.forward = note
    try:
        outputs = own(*args, **kwargs)
    finally:
        del module.forward
        if before is not None:
            module.forward = before
    if len(caught) != 1:
        name = type(causal_lm).__name__
        raise ValueError(
            f"model: expected {name} to call its LM head once, as on the first tokens, got {len(caught)} times"
        )
    return caught[0], outputs


def _why_not_fused(
    causal_lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any], own: Callable[..., Any], caught: bool
) -> str:
    """Why the product of the hidden states, caught or the backbone's, is not the model's logits; "" where it is."""
    module = causal_lm.get_output_embeddings()
    try:
        linear, adapter = _linear(module)
        softcap, scale, named = _transform(causal_lm)
        weight, _, lora = linear.weight, linear.bias, _lora(adapter, None, linear.weight.dtype)
    except ValueError as error:
        return str(error).removeprefix("model: ")
    if weight.is_meta:
        return "its weight is offloaded" if _device_of(causal_lm, args, kwargs).type != "meta" else ""

    def hidden_of(inputs: Mapping[str, Any]) -> Tensor:
        return (_caught_states(causal_lm, own, **inputs) if caught else _states(causal_lm, **inputs))[0]

    def logits_of(hidden: Tensor) -> Tensor:
        return _logits(causal_lm, hidden.to(weight.device), softcap, scale)

    forward = vars(causal_lm).get("forward")  # a method: what it is of, not the object, which is made at each look
    key = (
        *map(proof.identity, (getattr(forward, "__func__", forward), type(causal_lm).forward, module, linear)),
        *(tuple(weight.shape), weight.dtype, softcap, scale, torch.is_autocast_enabled(weight.device.type)),
        *(_adapters(adapter, lora), caught),
    )
    backbone = None if caught else _backbone(causal_lm)
    claim = proof.Claim(backbone, module, logits_of, hidden_of, named, softcap is not None)
    names = list(inspect.signature(type(causal_lm).forward).parameters)[1:]
    named_inputs = dict(zip(names, args, strict=False)) | kwargs
    return proof.verdict(causal_lm, key, claim, own, named_inputs, _device_of(causal_lm, args, kwargs))


def _adapters(adapter: Any, lora: Any) -> Any:
    if adapter is None:
        return None
    return tuple(adapter.active_adapters), adapter.disable_adapters, adapter.merged, lora[1] is None


def _device_of(causal_lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    tensor: Tensor = next(itertools.chain(given, causal_lm.parameters()))
    return tensor.device


def _logits(causal_lm: Any, hidden: Tensor, softcap: float | None, scale: float) -> Tensor:
    """What prefuse holds to be the logits, by PyTorch."""
    hidden, weight, bias, lora = _in_one_dtype(hidden, causal_lm.get_output_embeddings())
    matrices = () if lora is None else lora[:2]
    with gathered([weight, bias, *matrices]):
        logits = nn.functional.linear(hidden, whole(weight), None if bias is None else whole(bias))
        if lora is not None:
            logits = logits + lora[2] * (hidden @ whole(lora[0]).T @ whole(lora[1]).T)
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _router_coefficient(causal_lm: Any) -> float:
    """The weight of the load-balancing loss: the model's own, or the configuration's."""
    config = causal_lm.config.get_text_config()
    names = ("router_aux_loss_coef", "aux_loss_coef")
    for owner in (causal_lm, config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        for name in (*names, "moe_loss_weight"):
            if isinstance(value := getattr(owner, name, None), (int, float)):
                return float(value)
    return 0.0


def of_logits(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of the head that logits have, too; advice on how to run it is dropped."""
    advice = {"plan", "workspace_bytes", "differentiable", "gradient_dtype", "sparse"}
    kept = {name: value for name, value in options.items() if name not in advice and value is not None}
    if "logits_dtype" in kept:
        raise TypeError("logits_dtype: this model makes its logits itself, in its own dtype; leave it out")
    if kept.pop("label_smoothing", 0.0):
        raise TypeError("label_smoothing: this model makes its logits itself, and they are not smoothed; leave it out")
    return kept


def find_causal_lm(model: Any) -> Any:
    """The transformers model inside of all wrappers.

    Raises:
        TypeError: there is none.
    """
    layers = _layers(model)
    inner: Any = layers[-1]
    config, embeddings = (getattr(inner, name, None) for name in ("config", "get_output_embeddings"))
    output = None if embeddings is None else embeddings()
    if output is None or config is None or getattr(config, "is_encoder_decoder", False):
        names = " around ".join(type(each).__name__ for each in layers)
        raise TypeError(
            f"model: expected a transformers causal LM, or one that is wrapped, got {names}, which has "
            "no LM head over a decoder's hidden states"
        )
    return inner


def _layers(model: Any) -> list[Any]:
    """A model, what it wraps, and so on to the innermost."""
    layers = [model]
    peft = sys.modules.get("peft")
    while True:
        outer = layers[-1]
        if not isinstance(outer, nn.Module):
            raise TypeError(f"model: expected a transformers causal LM, got {type(outer).__name__}")
        if isinstance(outer, nn.DataParallel):
            raise TypeError("model: torch.nn.DataParallel copies the model at each call; use DistributedDataParallel")
        if (wrapped := next((outer._modules[name] for name in _WRAPPED if name in outer._modules), None)) is not None:
            if not type(outer).__module__.startswith(_WRAPPERS):
                raise TypeError(
                    f"model: got {type(outer).__module__}.{type(outer).__qualname__} around a model, and what it "
                    "makes of its logits is not known; pass the causal LM inside of it"
                )
            layers.append(wrapped)
        elif peft is not None and isinstance(outer, peft.PeftModel):
            layers.append(outer.get_base_model())
        elif peft is not None and isinstance(outer, peft.PeftMixedModel):
            layers.append(outer.base_model.model)
        else:
            return layers


@dataclass(frozen=True)
class PeftMethod:
    """What a PEFT model does to a call, beside its adapters.

    Attributes:
        name: of the active adapter's method, "" where there is none.
        virtual_tokens: how many it puts in front of the tokens.
    """

    name: str = ""
    virtual_tokens: int = 0

    def aligned(self, labels: Tensor, length: int) -> Tensor:
        """Labels with as many ignored ones in front as there are virtual tokens, should `length` be with these."""
        front = length - labels.shape[-1]
        return nn.functional.pad(labels, (front, 0), value=-100) if front == self.virtual_tokens else labels


def peft_method(model: Any) -> PeftMethod:
    """The method of the PEFT model among what wraps a causal LM."""
    peft = sys.modules.get("peft")
    for each in _layers(model):
        if peft is not None and isinstance(each, peft.PeftModel):
            config = each.active_peft_config
            name = str(getattr(config.peft_type, "value", config.peft_type))
            in_front = config.is_prompt_learning and name not in ("PREFIX_TUNING", "CARTRIDGE")
            return PeftMethod(name, config.num_virtual_tokens if in_front else 0)
    return PeftMethod()


def check_fusable(causal_lm: Any) -> None:
    """Looks at the head alone; whether the product is right, the first call tells.

    Raises:
        ValueError: it cannot be fused.
    """
    _linear(causal_lm.get_output_embeddings())


def _backbone(causal_lm: Any) -> Any:
    """All of the model but its head. Before transformers 5, `base_model` of vision-language models was not it."""
    backbone = getattr(causal_lm, "model", None)
    return causal_lm.base_model if backbone is None else backbone


def _transform(causal_lm: Any) -> tuple[float | None, float, int]:
    """Soft cap and scale of the logits, and how many scales: the configuration's numbers that its own forward names.

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
    return next(iter(caps), None), next(iter(scales), 1.0), len(scales)


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
    functions: list[Any] = [found for module in modules if (found := getattr(module, "load_balancing_loss_func", None))]
    if not functions:
        return None
    config = causal_lm.config.get_text_config()
    experts, per_token = (
        getattr(causal_lm, name, None) or getattr(config, name) for name in ("num_experts", "num_experts_per_tok")
    )
    if not getattr(outputs, "router_logits", None):  # a dense model that was asked for them
        return None
    loss: Tensor = functions[0](outputs.router_logits, experts, per_token, kwargs.get("attention_mask"))
    return loss


def _linear(module: Any) -> tuple[nn.Linear, Any]:
    """The linear layer of an LM head, and the LoRA layer around it if there is one.

    Raises:
        ValueError: it is another kind of head.
    """
    adapter, linear = None, module
    if "peft" in sys.modules:
        linear, adapter = _without_peft(module)
    if reason := proof.why_not_linear(module, linear):
        name = f"{type(linear).__module__}.{type(linear).__qualname__}"
        dtype = getattr(getattr(linear, "weight", None), "dtype", None)
        raise ValueError(
            "model: expected an LM head that is an nn.Linear of floating-point weights, alone, with LoRA, or as "
            f"PEFT's module to save, got {name}{f' of {dtype}' if dtype else ''}: {reason}"
        )
    return linear, adapter


def _without_peft(module: Any) -> tuple[Any, Any]:
    """The head inside of PEFT's wrappers, and the LoRA layer around it if there is one."""
    from peft.tuners.lora.layer import Linear as LoraLinear
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        trained = bool(active) and not module.disable_adapters
        return (module.modules_to_save[active[0]] if trained else module.original_module), None
    if type(module) is LoraLinear:
        return module.get_base_layer(), module
    return module, None


def _in_one_dtype(hidden: Tensor, module: Any) -> tuple[Tensor, Tensor, Tensor | None, Lora | None]:
    """Hidden states, weight, bias and adapter of a head as they stand at this moment.

    The wider dtype wins, as for a head that is kept in float32 on purpose; only FSDP2's shards are float32 without
    meaning it, where the head is a unit of its own under mixed precision.
    """
    linear, adapter = _linear(module)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if weight.is_meta and not hidden.is_meta:
        raise ValueError("model: its LM head is offloaded; keep it on a device")
    if weight.dtype != hidden.dtype:
        dtype = hidden.dtype if hasattr(weight, "full_tensor") else torch.promote_types(weight.dtype, hidden.dtype)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    return hidden, weight, *_lora(adapter, bias, hidden.dtype)


def _lora(layer: Any, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Lora | None]:
    """The bias and the adapter of a LoRA layer: active, disabled or merged."""
    if layer is None:
        return bias, None
    if layer.disable_adapters and layer.merged:
        layer.unmerge()  # as its own forward does
    if layer.disable_adapters or layer.merged:
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
            own = (second.bias * scaling).to(dtype)
            bias = own if bias is None else bias + own
        found.append((first.to(dtype), second.weight.to(dtype), scaling))
    if len(found) < 2:
        return bias, next(iter(found), None)
    first = torch.cat([first * scaling for first, _, scaling in found])
    return bias, (first, torch.cat([second for _, second, _ in found], dim=1), 1.0)
