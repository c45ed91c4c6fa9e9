"""`prefuse.head` of a tiny Llama with each of PEFT's methods, beside the model's own logits."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.models.cases import case
from tests.models.sweep import PADDINGS, compare, line, own

PLACES: dict[str, list[str]] = {
    "head": ["lm_head"],
    "embedding": ["embed_tokens"],
    "inner layers": ["q_proj", "v_proj", "down_proj"],
}
NO_PLACE = "virtual tokens"

_OTHER_PLACES: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"inner layers": None},
    "SHADOW": {"inner layers": None},
    "LN_TUNING": {**PLACES, "inner layers": ["input_layernorm", "norm"]},
    "XLORA": PLACES,
}
"""Of methods that change other modules than the usual; None: those that PEFT takes by itself."""

_FIELDS: dict[str, Any] = {
    "r": 4,
    "num_virtual_tokens": 3,
    "adapter_len": 3,
    "adapter_layers": 1,
    "block_size": 1,
    "oft_block_size": 8,
    "n_frequency": 20,
    "cpt_token_ids": [5, 6, 7],
    "cpt_mask": [1, 1, 1],
    "cpt_tokens_type_mask": [1, 2, 3],
    "encoder_hidden_size": 16,
    "feedforward_modules": [],
    "num_vectors": 8,
    "vector_length": 1,
    "topk": 1,
    "theta_d_length": 16,
    "num_tasks": 2,
    "n_tasks": 2,
    "group_size": 2,
    "total_step": 10,
    "token_indices": [5, 6, 7, 20],
    "xlora_size": 8,
    "xlora_dropout_p": 0.0,
    "shadow_dropout": 0.0,
    "progressbar": False,
}
"""Small sizes, set wherever a configuration has the field."""

_EXCEPTIONS: dict[str, dict[str, Any]] = {"OFT": {"r": 0}}

_VARIANTS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "aLoRA": {"alora_invocation_tokens": [20]},
    "rsLoRA": {"use_rslora": True},
    "bias": {"lora_bias": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "trained tokens": {"trainable_token_indices": [5, 6, 7]},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "head as parameter": {"target_parameters": ["lm_head.weight"]},
}
"""Of LoRA."""


REFUSED = "PEFT refuses"


@dataclass(frozen=True)
class Found:
    """The verdict on one method at one place: as `Verdict.what`, or `REFUSED`."""

    method: str
    place: str
    tied: bool
    what: str
    why: str = ""


def methods() -> list[str]:
    """All of the installed PEFT, by the names of its own mapping, and LoRA's variants."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return sorted([kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING] + [f"LORA, {name}" for name in _VARIANTS])


def cases() -> list[tuple[str, str, bool]]:
    """(method, place, tied)."""
    return [(method, place, tied) for method in methods() for place in _places(method) for tied in (False, True)]


def _config_class(method: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    name = method.partition(",")[0]
    return next(cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value == name)


def _names(method: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_config_class(method))}


def _places(method: str) -> dict[str, Any]:
    usual = PLACES if "target_modules" in _names(method) else {NO_PLACE: None}
    return _OTHER_PLACES.get(method, usual)


def llama(tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


def adapted(method: str, place: str, tied: bool) -> Any:
    """The model with the method's weights off their first values. Raises whatever PEFT raises."""
    import peft

    names = _names(method)
    options = {name: value for name, value in _FIELDS.items() if name in names} | _EXCEPTIONS.get(method, {})
    options |= _VARIANTS.get(method.partition(", ")[2], {})
    targets = _places(method)[place]
    if targets is not None and "target_modules" in names:
        options["target_modules"] = targets
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        if method == "XLORA":
            options |= {
                "hidden_size": 32,
                "adapters": {str(i): _saved(tied, targets, f"{folder}/{i}") for i in range(2)},
            }
        model: Any = peft.get_peft_model(llama(tied), _config_class(method)(task_type="CAUSAL_LM", **options))
    _shake(model)
    return model


def _saved(tied: bool, targets: list[str], folder: str) -> str:
    """A LoRA in a folder, for methods that mix several."""
    import peft

    model: Any = peft.get_peft_model(llama(tied), peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    _shake(model)
    model.save_pretrained(folder)
    return folder


def _shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def found(method: str, place: str, tied: bool, train: bool = False, hooked: bool = False) -> Found:
    """The verdict on one method at one place.

    Args:
        hooked: a hook on the model halves its logits, so that they alone tell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = adapted(method, place, tied).train(train)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError("nothing is trained")
            if hooked:
                model.get_base_model().register_forward_hook(_halve)
            more = {"task_ids": torch.tensor([0, 1])} if {"num_tasks", "n_tasks"} & _names(method) else {}
            given = [case(padding, **more) for padding in PADDINGS]
            wanted = [own(model, each) for each in given]
        except Exception as error:
            return Found(method, place, tied, REFUSED, line(error))
    return Found(method, place, tied, *compare(model, given, wanted))


def _halve(_module: Any, _args: Any, output: Any) -> Any:
    output.logits = output.logits / 2
    return output


def table() -> list[str]:
    """The verdicts, untied and tied, in eval and train mode, as Markdown."""
    columns = [*PLACES, NO_PLACE]
    lines = [f"| method | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for method in methods():
        places = _places(method)
        cells = [_cell(method, place) if place in places else "" for place in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _cell(method: str, place: str) -> str:
    untied, tied = (
        " / ".join(dict.fromkeys(found(method, place, tied, train).what for train in (False, True)))
        for tied in (False, True)
    )
    return untied if untied == tied else f"{untied}; tied: {tied}"
