"""What the processes run: a few steps under DeepSpeed beside plain PyTorch in one process with the whole batch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import prefuse
from tests.devices import integers, normal
from tests.integration.models import VOCABULARY, causal_lm

PAIRS, LENGTH, FEATURES, RANK = 4, 7, 16, 3
BETA = 0.5


class Case(NamedTuple):
    """A training run."""

    stage: int
    head: str
    """Of the model: "tied", "untied", "frozen", or "adapter": frozen, with a trained bias and LoRA matrices."""
    way: str
    """How the loss is made: one of `WAYS`."""
    dtype: str = "float32"
    micro_batches: int = 1
    steps: int = 3


class Small(nn.Module):
    """Hidden states of a causal LM, whose head is at hand and is not used in its forward pass."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, FEATURES)
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.lm_head = nn.Linear(FEATURES, VOCABULARY, bias=head == "adapter")
        self.reference = nn.Linear(FEATURES, VOCABULARY, bias=False)
        if head == "adapter":
            self.first = nn.Parameter(normal(RANK, FEATURES, seed=20))
            self.second = nn.Parameter(normal(VOCABULARY, RANK, seed=21))
        if head == "tied":
            self.lm_head.weight = self.embed.weight
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed) / parameter.shape[-1] ** 0.5)
        self.lm_head.weight.requires_grad_(head in ("tied", "untied"))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.embed(tokens)))

    @property
    def lora(self) -> tuple[Tensor, Tensor, float] | None:
        return (self.first, self.second, 0.5) if hasattr(self, "first") else None


def language_model(head: str) -> nn.Module:
    model = causal_lm("qwen3-tied" if head == "tied" else "qwen3")
    model.get_output_embeddings().weight.requires_grad_(head != "frozen")
    return model


def dpo(logps: Tensor, reference: Tensor) -> Tensor:
    """By its formula, of log-probabilities [2B] of responses, the chosen ones first."""
    chosen, rejected = (logps - reference).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def label_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """[2B, T - 1], of the tokens after the first."""
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def plain_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """By PyTorch alone."""
    if not isinstance(model, Small):
        return model(input_ids=tokens, use_cache=False).logits
    hidden = model(tokens)
    logits = model.lm_head(hidden)
    if model.lora is not None:
        first, second, scaling = model.lora
        logits = logits + scaling * hidden @ first.T @ second.T
    return logits


def plain_preference(model: nn.Module, tokens: Tensor, reference: Tensor) -> Tensor:
    return dpo(label_logps(plain_logits(model, tokens), tokens).sum(-1), reference)


def plain_logps(model: nn.Module, tokens: Tensor, _: Tensor) -> Tensor:
    return -label_logps(plain_logits(model, tokens), tokens).mean()


def plain_kl(model: nn.Module, tokens: Tensor, _: Tensor) -> Tensor:
    policy = plain_logits(model, tokens)[:, :-1].log_softmax(-1)
    with torch.no_grad():
        fixed = model.reference(model(tokens))[:, :-1].log_softmax(-1)
    return (policy.exp() * (policy - fixed)).sum(-1).mean()


def by_head(engine: Any, tokens: Tensor, reference: Tensor) -> Tensor:
    return (
        prefuse.head(engine)
        .preference_loss("dpo", labels=tokens, inputs={"input_ids": tokens}, reference=reference, beta=BETA)
        .loss
    )


def by_weight(engine: Any, tokens: Tensor, reference: Tensor, hidden: Tensor | None = None) -> Tensor:
    model = engine.module
    return prefuse.preference_loss(
        "dpo",
        hidden=engine(tokens) if hidden is None else hidden,
        weight=model.lm_head.weight,
        bias=model.lm_head.bias,
        lora=getattr(model, "lora", None),
        labels=tokens,
        shift=True,
        reference=reference,
        beta=BETA,
    ).loss


def after_logits(engine: Any, tokens: Tensor, reference: Tensor) -> Tensor:
    """The head is used in the model's forward pass first."""
    hidden = engine(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return by_weight(engine, tokens, reference, hidden)


def by_logps(engine: Any, tokens: Tensor, _: Tensor) -> Tensor:
    return -_logps(engine, engine(tokens), tokens).mean()


def by_two_calls(engine: Any, tokens: Tensor, _: Tensor) -> Tensor:
    """Each of half the batch, before one backward pass."""
    halves = zip(engine(tokens).chunk(2), tokens.chunk(2), strict=True)
    return -torch.cat([_logps(engine, hidden, part) for hidden, part in halves]).mean()


def under_a_checkpoint(engine: Any, tokens: Tensor, _: Tensor) -> Tensor:
    """PyTorch's check of what is computed again takes a frozen parameter that was partitioned since for another one."""
    return -checkpoint(
        lambda hidden: _logps(engine, hidden, tokens), engine(tokens), use_reentrant=False, determinism_check="none"
    ).mean()


def under_a_reentrant_checkpoint(engine: Any, tokens: Tensor, _: Tensor) -> Tensor:
    return -checkpoint(lambda hidden: _logps(engine, hidden, tokens), engine(tokens), use_reentrant=True).mean()


def _logps(engine: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    model = engine.module
    return prefuse.linear_token_logps(
        hidden[:, :-1], model.lm_head.weight, tokens[:, 1:], bias=model.lm_head.bias, lora=model.lora
    )


def by_kl(engine: Any, tokens: Tensor, _: Tensor) -> Tensor:
    """From the weight of a reference that requires a gradient, and gets none."""
    model, hidden = engine.module, engine(tokens)[:, :-1]
    given = {"reference_hidden": hidden.detach(), "reference_weight": model.reference.weight}
    return prefuse.linear_token_stats(hidden, model.lm_head.weight, tokens[:, 1:], "kl", **given).kl.mean()


Loss = Callable[[Any, Tensor, Tensor], Tensor]
WAYS: dict[str, tuple[Callable[[str], nn.Module], Loss, Loss]] = {
    "prefuse.head(engine)": (language_model, by_head, plain_preference),
    "preference_loss(weight=…)": (Small, by_weight, plain_preference),
    "preference_loss(weight=…), the head used before": (language_model, after_logits, plain_preference),
    "linear_token_logps": (Small, by_logps, plain_logps),
    "two calls": (Small, by_two_calls, plain_logps),
    "checkpoint": (Small, under_a_checkpoint, plain_logps),
    "reentrant checkpoint": (Small, under_a_reentrant_checkpoint, plain_logps),
    "kl": (Small, by_kl, plain_kl),
}
"""By name: the model, the loss under DeepSpeed, and the same by PyTorch."""


def batches(case: Case, own: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and log-probabilities of the reference: the pairs of this process, or those of all."""
    for seed in range(case.steps * case.micro_batches):
        tokens, reference = integers(VOCABULARY - 3, 2 * PAIRS, LENGTH, seed=seed) + 3, normal(2 * PAIRS, seed=seed)
        count = PAIRS // dist.get_world_size() if own else PAIRS
        part = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count) if own else slice(None)
        yield tuple(torch.cat([role[part] for role in given.chunk(2)]) for given in (tokens, reference))


class Step(NamedTuple):
    """What a step showed: losses of micro-batches, then gradients by name before the optimizer's step."""

    losses: list[Tensor]
    gradients: dict[str, Tensor]


def plainly(case: Case) -> tuple[list[Step], dict[str, Tensor]]:
    """Steps, and the parameters after the last."""
    make, _, loss_of = WAYS[case.way]
    model = make(case.head).to(getattr(torch, case.dtype))
    optimizer, steps, losses = _optimizer(model), [], []
    for number, given in enumerate(batches(case, own=False), 1):
        losses.append(loss_of(model, *given))
        (losses[-1] / case.micro_batches).backward()
        if number % case.micro_batches == 0:
            gradients = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}
            steps.append(Step([loss.detach().float() for loss in losses], gradients))
            optimizer.step()
            optimizer.zero_grad()
            losses.clear()
    return steps, {name: parameter.detach().float() for name, parameter in model.named_parameters()}


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def started(stage: int, model: nn.Module, optimizer: torch.optim.Optimizer, **config: Any) -> Any:
    """DeepSpeed's engine, with every parameter cut up that can be."""
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_SIZE=size)
    import deepspeed

    deepspeed.init_distributed("gloo")
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,  # it is 1.0 unless told otherwise
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        **config,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def with_deepspeed(case: Case) -> tuple[list[Step], dict[str, Tensor]]:
    """The same as `plainly`; losses are the means over the processes."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    make, loss_of, _ = WAYS[case.way]
    model = make(case.head)
    options = {"gradient_accumulation_steps": case.micro_batches, "bf16": {"enabled": case.dtype == "bfloat16"}}
    engine = started(case.stage, model, _optimizer(model), **options)
    steps, losses, gradients = [], [], {}
    for number, given in enumerate(batches(case, own=True), 1):
        losses.append(loss_of(engine, *given))
        engine.backward(losses[-1])
        if number % case.micro_batches == 0:
            wanted = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
            gradients = {name: safe_get_full_grad(parameter).float() for name, parameter in wanted}
            steps.append(Step([_mean(loss) for loss in losses], gradients))
            losses.clear()
        engine.step()
    parameters = {name: safe_get_full_fp32_param(p) for name, p in engine.module.named_parameters() if p.requires_grad}
    parameters = {name: value.detach().clone() for name, value in parameters.items()}
    engine.destroy()
    return steps, parameters


def _mean(loss: Tensor) -> Tensor:
    total = loss.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def compare(case: Case, tolerance: float, report: Path) -> None:
    """Losses, gradients of every step and parameters at the end; gradients as fractions of the largest of a tensor."""
    case = Case(*case)
    found, parameters = with_deepspeed(case)
    expected, final = plainly(case)
    assert len(found) == len(expected) == case.steps
    worst = dict.fromkeys(("loss", "gradients", "parameters"), 0.0)
    for step, right in zip(found, expected, strict=True):
        worst["loss"] = max(worst["loss"], (torch.stack(step.losses) - torch.stack(right.losses)).abs().max().item())
        assert right.gradients.keys() <= step.gradients.keys()
        for name, gradient in step.gradients.items():
            true = right.gradients.get(name, torch.zeros_like(gradient))
            scale = true.abs().max().item() or 1.0
            worst["gradients"] = max(worst["gradients"], ((gradient - true).abs().max() / scale).item())
    for name, value in parameters.items():
        worst["parameters"] = max(worst["parameters"], (value - final[name]).abs().max().item())
    assert all(value <= tolerance for value in worst.values()), worst
    if dist.get_rank() == 0:
        report.write_text(json.dumps(worst))
