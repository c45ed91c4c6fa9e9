"""Whether a causal LM's logits are the product that prefuse computes: proven on a few tokens before the head is fused.

The model's own forward runs once on six tokens. Its logits must be those of the hidden states, the weight and the
numbers that prefuse read off the model, and nothing may happen to the hidden states and logits on the way but what
these numbers say: an operation that changes nothing today (a trained scale that starts at 1) is noticed, too.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOKENS = 6

# Hooks and wrapped forwards of these libraries move, gather or watch tensors; they do not change what a layer computes.
_TRUSTED = ("torch.distributed.", "torch._dynamo.", "deepspeed.", "accelerate.")

# fmt: off
_MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "alias", "detach", "contiguous",
    "clone", "slice", "select", "narrow", "index", "index_select", "split", "split_with_sizes", "t",
    "transpose", "permute", "unsqueeze", "squeeze", "expand", "_to_copy", "to", "lift_fresh",
))
# fmt: on
"""Operators that move or convert numbers."""


def why_not_linear(module: nn.Module, base: nn.Module) -> str:
    """Why calling `module`, which computes with `base`, is more than ``F.linear``; "" where it is not.

    Args:
        module: what the model calls as its head.
        base: the linear layer in it: `module` itself, or what PEFT wraps.
    """
    for each in dict.fromkeys((module, base)):
        if (hook := unknown_hook(each)) is not None:
            return f"{hook} is hooked onto it"
        forward = vars(each).get("forward")
        if forward is not None and not is_trusted(forward):
            return f"its forward was replaced by {full_name(forward)}"
    if not isinstance(base, nn.Linear) or type(base).forward is not nn.Linear.forward:
        return "its class has a forward of its own"
    weight = base.weight
    plain = type(weight) in (Tensor, nn.Parameter) or hasattr(weight, "full_tensor") or hasattr(weight, "ds_id")
    if not plain or weight.dtype not in _FLOATS:
        return f"its weight is a {type(weight).__name__} of {weight.dtype}"
    return ""


def unknown_hook(module: nn.Module) -> str | None:
    """The name of a forward hook on `module` that is not of a library that is known to leave values as they are."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if not is_trusted(hook):
                return full_name(hook)
    return None


def is_trusted(function: Any) -> bool:
    """Whether a hook or a forward belongs to such a library."""
    function = getattr(function, "func", function)  # a functools.partial
    return str(getattr(function, "__module__", "")).startswith(_TRUSTED)


def full_name(function: Any) -> str:
    """Module and name of a function."""
    function = getattr(function, "func", function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


@dataclass
class Claim:
    """What prefuse holds to be the model's logits.

    Attributes:
        backbone: the module whose last hidden states the head reads; None: it reads what the model's own forward
            hands it.
        head: the module that the model calls on them.
        logits: of hidden states, as prefuse computes them.
        hidden: of inputs by name, the last hidden states.
        scales, caps: how many products with a number the logits may meet, and whether there is a soft cap.
    """

    backbone: nn.Module | None
    head: nn.Module
    logits: Callable[[Tensor], Tensor]
    hidden: Callable[[Mapping[str, Any]], Tensor]
    scales: int
    caps: bool


_VERDICTS: weakref.WeakKeyDictionary[nn.Module, dict[Any, str]] = weakref.WeakKeyDictionary()


def identity(value: Any) -> Any:
    """Stands for an object in a key without keeping it, and for no other that comes to lie where it was."""
    try:
        return weakref.ref(value)
    except TypeError:
        return id(value)


def verdict(
    causal_lm: nn.Module, key: Any, claim: Claim, own: Callable[..., Any], inputs: Mapping[str, Any], device: Any
) -> str:
    """Why the claim is not true, or "" where it is; tried once per `key`.

    Args:
        own: the model's own forward.
        inputs: of the call at hand, should the model not take tokens alone.
    """
    known = _VERDICTS.setdefault(causal_lm, {})
    if key not in known:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "model: its head is compared with its own logits at the first call, which cannot be captured in a CUDA "
                "graph; call it once before"
            )
        known[key] = "" if device.type == "meta" else _tried(claim, own, _trials(causal_lm, inputs, device), device)
    return known[key]


def _trials(causal_lm: Any, inputs: Mapping[str, Any], device: Any) -> list[dict[str, Any]]:
    """Tokens that every process takes, then the inputs at hand, unless a trial would write into their cache."""
    tokens = torch.tensor([ordinary_tokens(causal_lm, _TOKENS)], device=device)
    shared: dict[str, Any] = {"use_cache": False, "return_dict": True}
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    at_hand = {name: value for name, value in inputs.items() if name not in ("labels", "output_router_logits")}
    cached = any(at_hand.get(name) is not None for name in ("past_key_values", "cache", "cache_params"))
    return [{**text, **shared}] if cached else [{**text, **shared}, {**at_hand, **shared}]


def ordinary_tokens(causal_lm: Any, count: int) -> list[int]:
    """Token ids spread over the vocabulary, none of which the configuration names as special."""
    config = causal_lm.config.get_text_config()
    special = {value for name, value in {**vars(causal_lm.config), **vars(config)}.items() if isinstance(value, int)}
    classes = min(config.vocab_size, _rows(causal_lm.get_input_embeddings(), config.vocab_size))
    ordinary = [token for token in range(classes // 3, classes) if token not in special] or [0]
    step = max(1, len(ordinary) // (2 * count))
    return [ordinary[(step * i) % len(ordinary)] for i in range(count)]


def _rows(embeddings: Any, default: int) -> int:
    """How many tokens an embedding has; PEFT wraps it."""
    while not hasattr(embeddings, "num_embeddings") and hasattr(embeddings, "base_layer"):
        embeddings = embeddings.base_layer
    return int(getattr(embeddings, "num_embeddings", default))


def _tried(claim: Claim, own: Callable[..., Any], trials: list[dict[str, Any]], device: Any) -> str:
    failure = ""
    for inputs in trials:
        try:
            return _compared(claim, own, inputs, device)
        except Exception as error:  # not every model takes tokens alone
            failure = f"its forward could not be tried: {type(error).__name__}: {first_line(error)}"
    return failure


def first_line(error: Exception) -> str:
    """Of its message, not too much; some have none."""
    return str(error).partition("\n")[0][:120]


@torch.no_grad()
def _compared(claim: Claim, own: Callable[..., Any], inputs: Mapping[str, Any], device: Any) -> str:
    watch = _Watch()
    with same_random_numbers(device), watch.over(claim.backbone, claim.head):
        theirs = own(**inputs).logits
    if (reason := watch.reason(claim)) != "":
        return reason
    with same_random_numbers(device):
        hidden = claim.hidden(inputs)
    ours = claim.logits(hidden)
    if ours.shape != theirs.shape:
        return f"its logits are {tuple(theirs.shape)} where hidden states and weight give {tuple(ours.shape)}"
    error = float((ours.float() - theirs.float()).abs().nan_to_num().max())
    dtype = min((hidden.dtype, ours.dtype, theirs.dtype), key=lambda each: -torch.finfo(each).eps)
    allowed = torch.finfo(dtype).eps * (4 if dtype.itemsize == 2 else 512) * max(1.0, float(theirs.float().abs().max()))
    return "" if error <= allowed else f"its own logits differ from the product by up to {error:.3g}"


@contextlib.contextmanager
def same_random_numbers(device: Any) -> Iterator[None]:
    """Leaves the random state as it is, so that dropout is the same twice and a training goes on as without."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # weights that are cast without gradient must not be met by the call itself
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@dataclass
class _Watch:
    """What happens to the hidden states outside of the backbone and of the head.

    Attributes:
        arithmetic: operators on them that do more than move or convert.
        calls: of the head.
    """

    arithmetic: list[str] = field(default_factory=list)
    calls: int = 0
    left: bool = False

    def __post_init__(self) -> None:
        self._recorder = _Recorder(self)

    @contextlib.contextmanager
    def over(self, backbone: nn.Module | None, head: nn.Module) -> Iterator[None]:
        """Watches while the model's forward runs."""
        recorder = self._recorder
        watching = contextlib.ExitStack()

        def watch() -> None:
            """From here on: inside of the backbone, torch.compile would give up on what a mode watches."""
            if not recorder.on:
                watching.enter_context(recorder)
                recorder.on = True

        def after_backbone(_module: Any, _args: Any, output: Any) -> None:
            hidden = getattr(output, "last_hidden_state", output[0] if isinstance(output, tuple) else output)
            self.left = True
            self.arithmetic.clear()  # of a part of the backbone, if this is the whole of it
            recorder.follow(hidden)
            watch()

        def before_head(_module: Any, args: tuple[Any, ...]) -> None:
            self.calls += backbone is None or recorder.follows(args[0])
            watching.close()
            recorder.on = False

        def after_head(_module: Any, _args: Any, output: Any) -> None:
            recorder.follow(output)
            self.left = self.left or backbone is None
            if self.left:
                watch()

        # OPT and decoders of the BART kind call the decoder in their backbone, past the backbone itself.
        decoder = getattr(backbone, "decoder", None)
        parts = [part for part in (backbone, decoder) if isinstance(part, nn.Module)]
        handles = [
            *(part.register_forward_hook(after_backbone) for part in parts),
            head.register_forward_pre_hook(before_head),
            head.register_forward_hook(after_head),
        ]
        try:
            with watching:
                yield
        finally:
            recorder.on = False
            for handle in handles:
                handle.remove()

    def reason(self, claim: Claim) -> str:
        """Why this is not what the claim says; "" where it is."""
        if not self.left and claim.backbone is not None:
            return f"its forward does not call {type(claim.backbone).__name__} as a whole"
        if self.calls != 1:
            return "its head is not called on the last hidden states"
        products = sum(name in ("mul", "div") for name in self.arithmetic)
        others = [name for name in self.arithmetic if name not in ("mul", "div")]
        if others != ["tanh"] * claim.caps or products > claim.scales + 2 * claim.caps:
            return f"between hidden states and logits it computes more ({', '.join(dict.fromkeys(self.arithmetic))})"
        return ""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows tensors through operators."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on = False
        self._watch = watch
        self._followed: dict[int, Tensor] = {}  # holds them, so that no number is given twice

    def follow(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._followed[id(value)] = value

    def follows(self, value: Any) -> bool:
        return id(value) in self._followed

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        if self.on and any(map(self.follows, flat)):
            name = function.overloadpacket.__name__
            if name not in _MOVES:
                self._watch.arithmetic.append(name.rstrip("_"))
            for value in torch.utils._pytree.tree_leaves(made):
                self.follow(value)
        return made
