"""Shared prompts computed once: a model's backbone run on packed rows, once that is proven to be the same.

Rows of a batch that begin alike go through the backbone as one `PackedBatch`; its hidden states are laid out again as
if every row had gone through alone. Nothing after that knows of it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefuse._arguments.transforms import compiler_disabled
from prefuse.models import proof
from prefuse.packing import PackedBatch, TreeMask, attention, share

_log = logging.getLogger(__name__)

States = Callable[..., tuple[Tensor, Any]]
"""Runs a backbone: its arguments in, the last hidden states [B, T, H] and all that it returns out."""

_LEAST = 0.03
"""Of a batch's tokens: where sharing spares fewer, packing is not worth its calls."""

_TOKENS = ("input_ids", "attention_mask", "position_ids")

_LINEAR_LAYERS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "rwkv", "hybrid")
"""Kinds of layers that pass a state from token to token."""


@dataclass
class Counts:
    """Tokens of the batches that a model was called with for a shared head.

    Attributes:
        given: tokens of all rows, padding among them.
        computed: those that went through the backbone.
    """

    given: int = 0
    computed: int = 0

    @property
    def spared(self) -> float:
        """The share of tokens that was not computed."""
        return 1 - self.computed / self.given if self.given else 0.0

    def since(self, before: Counts) -> Counts:
        """Those that have come since an earlier state."""
        return Counts(self.given - before.given, self.computed - before.computed)


@dataclass(frozen=True)
class Way:
    """How a model shares prompts.

    Attributes:
        reason: why it does not; "" where it does.
        dense: whether it needs the mask itself, as its attention is its own.
        absolute: whether its positions count padding.
        limit: the longest path, or packed row for a dense mask, that is known to be right; None: any.
    """

    reason: str = ""
    dense: bool = False
    absolute: bool = False
    limit: int | None = None


_COUNTS: weakref.WeakKeyDictionary[nn.Module, Counts] = weakref.WeakKeyDictionary()
_WAYS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Way]] = weakref.WeakKeyDictionary()
_SAID: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def counts(causal_lm: nn.Module) -> Counts:
    """How many tokens a model was given for shared heads, and how many of them it computed."""
    return _COUNTS.setdefault(causal_lm, Counts())


def way_of(causal_lm: nn.Module) -> list[Way]:
    """How a model was found to share prompts, in each state in which it was tried."""
    return list(_WAYS.get(causal_lm, {}).values())


@compiler_disabled
def shared_states(
    causal_lm: Any, states: States, args: tuple[Any, ...], kwargs: Mapping[str, Any], labels: Tensor | None
) -> tuple[Tensor, Any]:
    """What `states` returns, every shared prompt computed once where that is the same.

    Args:
        causal_lm: the transformers model.
        states: its backbone.
        args, kwargs: of the model's own forward.
        labels: [B, T] or None; where one is scored beside padding, the padding is computed as well.
    """
    inputs = _named(causal_lm, args, kwargs)
    # Every process of a sharded model comes here at its first call, whatever its batch holds.
    way = _way(causal_lm, states, inputs)
    reason = way.reason or _why_not(inputs)
    batch = None if reason else _packed(inputs, way, labels)
    if reason:
        _say(causal_lm, reason)
    elif batch is not None and way.limit is not None:
        longest = _longest(batch, way)
        if longest > way.limit:
            _say(causal_lm, f"its attention has windows of {way.limit} tokens, and a row has {longest}")
            batch = None
    if batch is None:
        given = inputs.get("input_ids")
        _count(causal_lm, *2 * (0 if given is None else given.numel(),))
        return states(*args, **kwargs)
    _count(causal_lm, inputs["input_ids"].numel(), batch.tree.tokens)
    return _unpacked(batch, *states(**_packed_inputs(batch, inputs, way, causal_lm)))


def _count(causal_lm: nn.Module, given: int, computed: int) -> None:
    total = counts(causal_lm)
    first = not total.given
    total.given += given
    total.computed += computed
    if first:
        _log.info("prompts are shared: %d of the first batch's %d tokens are computed", computed, given)


def _say(causal_lm: nn.Module, reason: str) -> None:
    """Warns once per model and reason."""
    said = _SAID.setdefault(causal_lm, set())
    if reason not in said:
        said.add(reason)
        name = type(causal_lm).__name__
        warnings.warn(f"share_prompts: the rows of {name} are computed whole: {reason}", stacklevel=4)


def _named(causal_lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(type(causal_lm).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _why_not(inputs: Mapping[str, Any]) -> str:
    """What of a call's inputs cannot be packed; "" where all can."""
    ids, mask, positions = (inputs.get(name) for name in _TOKENS)
    if ids is None or ids.ndim != 2:
        return "it is not called with input_ids [R, T]"
    for name, given in (("attention_mask", mask), ("position_ids", positions)):
        if given is not None and getattr(given, "shape", None) != ids.shape:
            return f"{name} has another shape than input_ids"
    others = [name for name, value in inputs.items() if name not in _TOKENS and _is_data(value)]
    if others:
        return f"{others[0]} is given, too, and may differ between rows of one prompt"
    if inputs.get("output_attentions"):
        return "output_attentions is asked for"
    return ""


def _is_data(value: Any) -> bool:
    """Whether it may hold something of single rows or tokens."""
    if isinstance(value, Tensor):
        return value.ndim > 0
    return not (value is None or isinstance(value, bool | int | float | str))


def _packed(inputs: Mapping[str, Any], way: Way, labels: Tensor | None) -> PackedBatch | None:
    """The batch, packed; None where that spares next to nothing."""
    mask = inputs.get("attention_mask")
    batch = share(inputs["input_ids"], mask, inputs.get("position_ids"), absolute=way.absolute)
    if batch is None or batch.spared < _LEAST * batch.given or _scores_padding(labels, mask):
        return None
    return batch


def _scores_padding(labels: Tensor | None, mask: Tensor | None) -> bool:
    """Whether a label stands at padding, or right after it, where padding predicts it."""
    if labels is None or mask is None or labels.shape != mask.shape:
        return False
    padding = mask == 0
    beside = padding.clone()
    beside[:, 1:] |= padding[:, :-1]
    return bool((beside & (labels.to(mask.device) != -100)).any())


def _longest(batch: PackedBatch, way: Way) -> int:
    return batch.tree.tokens if way.dense else batch.tree.longest_path


def _packed_inputs(batch: PackedBatch, inputs: Mapping[str, Any], way: Way, causal_lm: Any) -> dict[str, Any]:
    """The arguments of the backbone for the packed row."""
    given = {name: value for name, value in inputs.items() if name not in _TOKENS}
    packed = batch.model_inputs()
    if way.dense:
        packed["attention_mask"] = batch.dense_mask(_dtype(causal_lm))
    return {**given, **packed}


def _dtype(causal_lm: Any) -> torch.dtype:
    """Of the scores that a mask is added to."""
    device = next(causal_lm.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = causal_lm.dtype
    return dtype


def _unpacked(batch: PackedBatch, hidden: Tensor, outputs: Any) -> tuple[Tensor, Any]:
    """Hidden states and outputs as the rows' own; router logits, [N, E], come as [R * T, E]."""
    found = batch.unpack(hidden)
    if hasattr(outputs, "last_hidden_state") and outputs.last_hidden_state is not None:
        outputs.last_hidden_state = found
    if getattr(outputs, "hidden_states", None) is not None:
        outputs.hidden_states = tuple(batch.unpack(each) for each in outputs.hidden_states)
    if getattr(outputs, "router_logits", None) is not None:
        outputs.router_logits = tuple(_unpacked_router(batch, each) for each in outputs.router_logits)
    return found, outputs


def _unpacked_router(batch: PackedBatch, logits: Tensor | None) -> Tensor | None:
    """A layer's router logits, each prompt token's as often as it is used."""
    if logits is None:
        return None
    return batch.unpack(logits.reshape(1, batch.tree.tokens, -1)).flatten(0, 1)


def _way(causal_lm: Any, states: States, inputs: Mapping[str, Any]) -> Way:
    """How this model shares prompts, tried once per state of it."""
    attention.install_for_good()
    known = _WAYS.setdefault(causal_lm, {})
    device = next(causal_lm.parameters()).device
    config = causal_lm.config.get_text_config()
    key = (
        proof.identity(type(causal_lm).forward),  # that of the object is another each time a head is put on
        *(getattr(config, name, None) for name in ("_attn_implementation", "sliding_window")),
        *(causal_lm.dtype, device.type, torch.is_autocast_enabled(device.type)),
    )
    if key not in known:
        known[key] = _tried(causal_lm, states, device)
        if known[key].reason == "":
            _log.info(
                "%s shares prompts (%s)", type(causal_lm).__name__, "dense mask" if known[key].dense else "no mask"
            )
    return known[key]


def _tried(causal_lm: Any, states: States, device: torch.device) -> Way:
    config = causal_lm.config.get_text_config()
    if reason := _structure(causal_lm, config):
        return Way(reason)
    if device.type == "meta":
        return Way("it is on the meta device")
    failure = ""
    for dense in (False, True):
        if not dense and not attention.is_installed():
            continue
        for absolute in (False, True):
            way, failed = _compared(causal_lm, states, config, Way("", dense, absolute), device)
            if way is not None:
                return way
            failure = failure or failed
    return Way(failure)


def _structure(causal_lm: Any, config: Any) -> str:
    """Why a model cannot share prompts, seen without running it; "" where that is not seen."""
    if "position_ids" not in inspect.signature(type(causal_lm).forward).parameters:
        return "its forward takes no position_ids"
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()}
    if stateful := sorted(kind for kind in kinds if any(name in kind for name in _LINEAR_LAYERS)):
        return f"it has layers that pass a state from token to token ({', '.join(stateful)})"
    if getattr(causal_lm, "_is_stateful", False):
        return "it passes a state from token to token"
    if getattr(config, "alibi", False):
        return "its attention adds ALiBi's biases, which count tokens of the packed row"
    if getattr(config, "index_topk", None) is not None:
        return "its attention picks keys by scores of its own"
    if getattr(config, "attention_type", None) == "block_sparse":
        return "its attention is sparse in blocks"
    return ""


def _windows(config: Any) -> list[int]:
    """Numbers of a configuration that limit how far its attention looks back."""
    found = [
        value for name, value in vars(config).items() if "window" in name or "chunk" in name or "local_att" in name
    ]
    return [each for each in found if isinstance(each, int) and each > 1]  # True is 1, too


def _limit(config: Any, way: Way, windows: list[int | None]) -> int | None:
    """The longest row that is right, where windows are not known to be kept along the paths."""
    if way.dense:
        most = getattr(config, "max_position_embeddings", None)
        return min([*_windows(config), *([most] if isinstance(most, int) else [])], default=None)
    kinds = list(getattr(config, "layer_types", None) or ())
    chunks = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in kinds and chunks:
        return int(chunks)
    slides = sum(kind == "sliding_attention" for kind in kinds)
    kept = sum(window is not None for window in windows)
    return min(_windows(config), default=None) if kept < slides or (not kinds and not kept) else None


@torch.no_grad()
def _compared(causal_lm: Any, states: States, config: Any, way: Way, device: torch.device) -> tuple[Way | None, str]:
    """Whether packed rows come out as whole ones do, and, bit for bit, whatever stands in the others."""
    ids, mask = _trial(causal_lm, device)
    other = ids.clone()
    other[1, -1], other[3, -1] = ids[0, -1], ids[2, -1]
    given = {"use_cache": False, "return_dict": True}
    try:
        with _evaluated(causal_lm), proof.same_random_numbers(device):
            whole, _ = states(input_ids=ids, attention_mask=mask, **given)
            unpadded = ids[:2, mask[0].bool()]  # some models mask rows otherwise where none is padded
            alone, _ = states(input_ids=unpadded, **given)
            made_alone, _ = _through(causal_lm, states, unpadded, None, way, given)
            made, windows = _through(causal_lm, states, ids, mask, way, given)
            changed, _ = _through(causal_lm, states, other, mask, way, given)
    except Exception as error:  # a model may take no mask of four dimensions, among others
        return None, f"it could not be tried on packed rows: {type(error).__name__}: {proof.first_line(error)}"
    if not way.dense and not windows:
        return None, "its attention does not go through transformers' interface"
    valid = mask.bool()
    same = valid.clone()
    same[1, -1] = same[3, -1] = False
    exact = causal_lm.dtype.itemsize > 2 and made.dtype.itemsize > 2 and not torch.is_autocast_enabled(device.type)
    if _difference(changed, made, same) > (1e-6 if exact else 1e-2 * _has_experts(causal_lm)):
        return None, "what it makes of a row depends on the other rows that are packed with it"
    off = max(_difference(made, whole, valid), _difference(made_alone, alone))
    if not off <= (1e-5 if exact else 5e-2):
        return None, f"packed rows come out otherwise than whole ones, by {off:.2g} of their norm"
    return Way("", way.dense, way.absolute, _limit(config, way, windows)), ""


def _difference(left: Tensor, right: Tensor, where: Tensor | None = None) -> float:
    """The norm of the difference over that of `right`."""
    left, right = (each[... if where is None else where.to(each.device)].double() for each in (left, right))
    return float((left - right.to(left.device)).norm() / right.norm().clamp(min=1e-30))


def _has_experts(model: nn.Module) -> bool:
    """Whether which other rows there are changes the shapes of its products, and so the rounding."""
    return any("expert" in name for name, _ in model.named_modules())


def _through(
    causal_lm: Any, states: States, ids: Tensor, mask: Tensor | None, way: Way, given: Mapping[str, Any]
) -> tuple[Tensor, list[int | None]]:
    batch = share(ids, mask, minimum=2, absolute=way.absolute)
    if batch is None:
        raise ValueError("nothing is shared")
    inputs = _packed_inputs(batch, given, way, causal_lm)
    hidden, _ = states(**inputs)
    tree_mask = inputs["attention_mask"]
    return batch.unpack(hidden), tree_mask.windows if isinstance(tree_mask, TreeMask) else []


def _trial(causal_lm: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two prompts with two responses each, padded on the left: [4, 10]."""
    tokens = proof.ordinary_tokens(causal_lm, 16)
    first, second = (0, 1, 2, 3, 4), (7, 3, 9)
    places = [(*first, 10, 11, 12), (*first, 13, 14, 15), (*second, 2, 12, 11, 10), (*second, 6, 1, 13, 4)]
    rows = [[tokens[place] for place in each] for each in places]
    length = max(map(len, rows)) + 1
    ids = torch.tensor([[rows[0][0]] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@contextlib.contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Without dropout, which differs between a packed batch and a whole one."""
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True
