"""A policy's step whose responses share their prompts: each row computed whole, and every prompt once.

A hand is a way to the log-probabilities of the responses [R] of a batch; a step is that and the
backward pass of a weighed sum of them. All hands run the same model with the same head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from prefuse._display import tables
from prefuse.linear.functions import linear_sequence_logps
from prefuse.models.head import head
from prefuse.packing import share

from . import timing

WHOLE = "prefuse, rows whole"
SHARED = "prefuse, share_prompts"
DENSE = "prefuse, share_prompts by a dense mask"
TRL = "TRL's fused head"
EAGER = "logits of the model"

HANDS = (WHOLE, SHARED, DENSE, TRL, EAGER)


class Shape(NamedTuple):
    """Of a batch: `groups` prompts of `prompt` tokens with `responses` responses each, of `response` tokens."""

    prompt: int
    response: int
    responses: int
    groups: int

    @property
    def whole(self) -> int:
        """Tokens of all rows."""
        return self.groups * self.responses * (self.prompt + self.response)

    @property
    def packed(self) -> int:
        """Tokens with every prompt once."""
        return self.groups * (self.prompt + self.responses * self.response)

    @property
    def pairs_whole(self) -> int:
        """Pairs of a query and a key of all rows."""
        return self.groups * self.responses * _causal(self.prompt + self.response)

    @property
    def pairs_packed(self) -> int:
        """Those with every prompt once."""
        own = self.responses * (_causal(self.response) + self.prompt * self.response)
        return self.groups * (_causal(self.prompt) + own)


def _causal(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


class Batch(NamedTuple):
    """Tokens [R, T], and labels with −100 at prompts; the first responses of all prompts come first."""

    ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.labels.to(device))


class Size(NamedTuple):
    """Of what is measured on a device: a random model's layers and width, and the batches."""

    layers: int
    width: int
    shapes: tuple[Shape, ...]


FULL = Size(4, 4096, (Shape(1024, 1024, 2, 4), Shape(4096, 1024, 2, 2), Shape(1024, 1024, 8, 1)))
QUICK = Size(2, 512, (Shape(256, 256, 2, 2),))


def measure(size: Size, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Steps on a CUDA device in bfloat16, rows whole and prompts shared, printed and returned."""
    model = _random(size.layers, size.width, 128, max(1, size.width // 512)).to(device, torch.bfloat16).train()
    model.get_output_embeddings().weight.requires_grad_(False)
    cases: list[dict[str, Any]] = []
    for shape in size.shapes:
        made = batch(shape, model.config.vocab_size).to(device)
        steps = {name: step(name, model, made) for name in (WHOLE, SHARED)}
        timings = timing.interleaved_on_device({name: timing.ready(s) for name, s in steps.items()}, rounds)
        cases += [
            {"shape": shape._asdict(), "tokens_whole": shape.whole, "tokens_packed": shape.packed, "hand": name}
            | {"seconds": found.as_dict(), "speed_up": timings[WHOLE].median / found.median}
            for name, found in timings.items()
        ]
    rows = [
        (
            str(tuple(case["shape"].values())),
            case["hand"],
            f"{case['seconds']['median'] * 1e3:.1f}",
            f"{case['speed_up']:.2f}",
        )
        for case in cases
    ]
    tables.show("prompt, response, responses, prompts", ("shape", "hand", "ms", "speed-up (higher is better)"), rows)
    return cases


def causal_lm(folder: str | None = None, layers: int | None = None, trained_head: bool = False) -> Any:
    """A model from a folder, or one of random weights in the shape of SmolLM2-135M."""
    from transformers import AutoModelForCausalLM

    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = _random(layers or 30, 576, 64, 3)
    model.get_output_embeddings().weight.requires_grad_(trained_head)
    return model.train()


def _random(layers: int, width: int, head_size: int, key_heads: int) -> Any:
    """A Llama of random weights with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // head_size,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def most(shape: Shape, model: Any, scored: bool = True) -> float:
    """The speed-up by multiplications alone, were all of them equally fast and nothing else took time.

    A weight of the layers takes part in three products per token (forward, and the gradients of its input and of
    itself), a weight of the frozen head in two per token of a response, and a pair of a query and a key in seven
    of a head's size per head (two forward, five backward). Of the head nothing is shared, of attention less than of
    the layers.
    """
    config, head = model.config, model.get_output_embeddings()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    weights = layers - head.weight.numel()
    of_head = 2 * head.weight.numel() * shape.groups * shape.responses * shape.response * scored
    pair = 7 * config.num_hidden_layers * config.num_attention_heads * size
    whole = 3 * weights * shape.whole + of_head + pair * shape.pairs_whole
    return whole / (3 * weights * shape.packed + of_head + pair * shape.pairs_packed) if shape.prompt else 1.0


def batch(shape: Shape, vocabulary: int, seed: int = 0) -> Batch:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(vocabulary, (shape.groups, shape.prompt), generator=generator)
    answers = torch.randint(vocabulary, (shape.responses, shape.groups, shape.response), generator=generator)
    ids = torch.cat([torch.cat([prompts, each], 1) for each in answers])
    labels = ids.clone()
    labels[:, : shape.prompt] = -100
    return Batch(ids, labels)


def step(name: str, model: Any, made: Batch, scored: bool = True) -> Callable[[], Tensor]:
    """One step of a hand, which returns the log-probabilities.

    Args:
        name: of `HANDS`; without a head `WHOLE` or `SHARED`.
        model: a causal LM.
        made: its batch.
        scored: False: the layers alone, of whose last hidden states one number is returned per row.
    """
    logps = _logps(name, model, made) if scored else functools.partial(_by_layers, model, made, name == SHARED)
    weights = torch.linspace(-1, 1, len(made.ids), device=made.ids.device)

    def run() -> Tensor:
        model.zero_grad()
        found = logps()
        (found * weights).sum().backward()  # type: ignore[no-untyped-call]
        return found.detach()

    return run


def run(name: str, folder: str | None, layers: int | None, shape: list[int]) -> Callable[[], Tensor]:
    """For `memory.peak_extra_bytes`."""
    model = causal_lm(folder, layers)
    return step(name, model, batch(Shape(*shape), model.config.vocab_size))


def _logps(name: str, model: Any, made: Batch) -> Callable[[], Tensor]:
    if name == TRL:
        return _by_trl(model, made)
    if name in (EAGER, DENSE):
        return functools.partial(_by_logits if name == EAGER else _by_dense_mask, model, made)
    return functools.partial(_by_prefuse, model, made, name == SHARED)


def _by_prefuse(model: Any, made: Batch, share_prompts: bool) -> Tensor:
    return head(model, share_prompts=share_prompts).sequence_logps(made.labels, inputs={"input_ids": made.ids})


def _by_layers(model: Any, made: Batch, share_prompts: bool) -> Tensor:
    counted = (made.labels != -100).float()

    def means(hidden: Tensor, _tensors: Any) -> Tensor:
        one = torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)
        return (hidden @ one * counted).sum(1) / counted.sum(1)

    found: Tensor = head(model, share_prompts=share_prompts).run(
        means, labels=made.labels, inputs={"input_ids": made.ids}
    )
    return found


def _by_dense_mask(model: Any, made: Batch) -> Tensor:
    packed = share(made.ids)
    if packed is None:
        return _by_prefuse(model, made, False)
    inputs = {**packed.model_inputs(), "attention_mask": packed.dense_mask(torch.float32)}
    hidden = packed.unpack(model.model(**inputs, use_cache=False).last_hidden_state)
    return linear_sequence_logps(hidden, model.get_output_embeddings().weight, labels=made.labels, shift=True)


def _by_trl(model: Any, made: Batch) -> Callable[[], Tensor]:
    from trl.trainer.utils import add_fused_lm_head

    forward = vars(model).get("forward")
    add_fused_lm_head(model)
    fused = model.forward
    if forward is None:
        del model.forward
    else:
        model.forward = forward

    def logps() -> Tensor:
        found: Tensor = fused(input_ids=made.ids, labels=made.labels, fused_lm_head=True, use_cache=False).log_probs
        return found.sum(1)

    return logps


def _by_logits(model: Any, made: Batch) -> Tensor:
    hidden = model.model(input_ids=made.ids, use_cache=False).last_hidden_state[:, :-1]
    logits = linear(hidden, model.get_output_embeddings().weight)
    logps = logits.log_softmax(-1).gather(-1, made.labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return logps.masked_fill(made.labels[:, 1:] == -100, 0.0).sum(1)
