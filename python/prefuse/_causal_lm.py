"""Transformers' causal LMs: found inside of what wraps them, and run up to the head.

Imports neither transformers nor PEFT; what it needs of them is loaded where a model of theirs is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefuse.linear.functions import Lora

Inside = Callable[[Tensor, "HeadTensors"], Any]
"""What runs inside of the model: hidden states [B, T, H] and the head in, anything out."""

_WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module")
"""Where torch.compile, DDP and DeepSpeed, and FSDP1 keep what they wrap."""

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
            weight=self.weight.float(),
            bias=None if self.bias is None else self.bias.float(),
            lora=None if self.lora is None else (self.lora[0].float(), self.lora[1].float(), self.lora[2]),
        )


def run_inside(causal_lm: Any, inside: Inside, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The backbone, then `inside` in the place of the LM head."""
    keep = kwargs.pop("logits_to_keep", None)
    if isinstance(keep, Tensor) or keep:
        raise TypeError("logits_to_keep: given beside fused; mark what is not to be scored in the labels")
    config = causal_lm.config.get_text_config()
    labels = kwargs.pop("labels", None)
    kwargs |= {"use_cache": False, "return_dict": True}
    if getattr(config, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    # The parts are looked up at each call: FSDP and PEFT replace them after patching.
    outputs = _backbone(causal_lm)(*args, **kwargs)
    hidden, weight, bias, lora = _in_one_dtype(outputs.last_hidden_state, causal_lm.get_output_embeddings())
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


def find_causal_lm(model: Any) -> Any:
    """The transformers model inside of all wrappers.

    Raises:
        TypeError: there is none.
        ValueError: its head cannot be fused.
    """
    inner: Any = model
    seen: list[str] = []
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
    config, embeddings = (getattr(inner, name, None) for name in ("config", "get_output_embeddings"))
    output = None if embeddings is None else embeddings()
    if output is None or config is None or getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"model: expected a transformers causal LM, or one that is wrapped, got {' around '.join(seen)}, which has "
            "no LM head over a decoder's hidden states"
        )
    _linear(output)
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
    functions: list[Any] = [found for module in modules if (found := getattr(module, "load_balancing_loss_func", None))]
    if not functions:
        return None
    config = causal_lm.config.get_text_config()
    experts, per_token = (
        getattr(causal_lm, name, None) or getattr(config, name) for name in ("num_experts", "num_experts_per_tok")
    )
    loss: Tensor = functions[0](outputs.router_logits, experts, per_token, kwargs.get("attention_mask"))
    return loss


def _linear(module: Any) -> tuple[nn.Linear, Any]:
    """The linear layer of an LM head, and the LoRA layer around it if there is one.

    Raises:
        ValueError: it is another kind of head.
    """
    adapter = None
    if "peft" in sys.modules:
        module, adapter = _without_peft(module)
    if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        dtype = getattr(getattr(module, "weight", None), "dtype", None)
        raise ValueError(
            "model: expected an LM head that is an nn.Linear of floating-point weights, alone, with LoRA, or as "
            f"PEFT's module to save, got {type(module).__name__}{f' of {dtype}' if dtype else ''}"
        )
    return module, adapter


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
