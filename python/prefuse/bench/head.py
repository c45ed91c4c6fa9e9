"""The LM head of a preference step by several hands: from hidden states and weight to a loss and back.

A hand is, per task, a function of (`hidden` [R, T, H], `weight` [V, H], `labels` [R, T]) that returns a loss. Chosen
responses come first, then the rejected ones; tokens whose label is `IGNORED` count for nothing. The tasks:

- `DPO`: the policy's pass of a DPO step. The log-probabilities of the reference are 0, as Liger's loss takes no others.
- `NLL`: the mean negative log-probability. Its upstream gradient is one number for all tokens, which is all that some
  libraries can pull back without the whole logits.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prefuse.linear.functions import linear_token_logps
from prefuse.linear.plans import Plan, default_workspace
from prefuse.linear.sparse import Sparse
from prefuse.losses.preference import explain, preference_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""([N, H], [V, H], [N]) → [N]; what it gives for ignored labels is not looked at."""

DPO, NLL = "dpo", "nll"
IGNORED = -100
BETA = 0.1
WIDE_BYTES = 1 << 30

PREFUSE = "prefuse"
PREFUSE_WIDE = "prefuse, 1 GiB workspace"
PREFUSE_LOGPS = "prefuse, log-probs alone"
EAGER = "log_softmax + gather"
CROSS_ENTROPY = "cross_entropy"
TORCH_LINEAR = "torch linear_cross_entropy"
TRL = "TRL ChunkedLogProbFunction"
LIGER = "Liger chunked loss"
LIGER_SCALED = "Liger scaled cross_entropy"
CCE = "CCE linear_cross_entropy"
QUACK = "QuACK linear_cross_entropy"
VERL = "verl linear_cross_entropy"

SPARSE = {f"prefuse, sparse=2**-{digits}": 2.0**-digits for digits in (10, 12, 14)}
"""Our hand with sparse gradients, and its eps; for probabilities like a model's."""

OURS = {PREFUSE: None, PREFUSE_LOGPS: None, PREFUSE_WIDE: WIDE_BYTES}
"""Our hands and their `workspace_bytes`; None: what is taken where nobody says."""

_CHECKED_TOKENS = 16
_PEER_ERROR = 2**-4  # relative; some libraries make log-probabilities in bfloat16, 8 bits of a number around 10
_TRL_CHUNK = 32768  # classes of a tile, as TRL's trainers have it
_QUACK_CHUNK = 4096  # rows of a tile, as QuACK's documentation has it


class Batch(NamedTuple):
    """Inputs of a hand; `weight` requires grad if it is trained."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor

    @property
    def trainable(self) -> bool:
        """Whether the weight is trained."""
        return self.weight.requires_grad

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that a step makes gradients of."""
        return [tensor for tensor in (self.hidden, self.weight) if tensor.requires_grad]

    @property
    def output_bytes(self) -> int:
        """Bytes of these gradients."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)

    @property
    def scored(self) -> int:
        """How many tokens count."""
        return int((self.labels != IGNORED).sum())


def inputs(
    pairs: int,
    tokens: int,
    features: int,
    classes: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    masked: float = 0.0,
    trainable: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Batch:
    """Random inputs whose logits have a standard deviation of 1, so that DPO's sigmoid stays off its flat ends.

    The first `masked` of every response is its prompt: ignored.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, deviation: float) -> Tensor:
        empty = torch.empty(*shape, dtype=dtype, device=device)
        return empty.normal_(0.0, deviation, generator=generator)

    hidden = normal(2 * pairs, tokens, features, deviation=1.0).requires_grad_()
    weight = normal(classes, features, deviation=1 / math.sqrt(features)).requires_grad_(trainable)
    labels = torch.randint(classes, (2 * pairs, tokens), generator=generator, device=device)
    labels[:, : round(masked * tokens)] = IGNORED
    return Batch(hidden, weight, labels)


def like_a_model(
    pairs: int,
    tokens: int,
    features: int,
    classes: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    trainable: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Batch:
    """Inputs whose probabilities are spread as a trained model's, and labels drawn from them.

    A class's logit is −1.2·log of its rank, in a random order of the classes, and normal noise whose deviation rises
    from 2.8 to 5.2 over the tokens. With 49 152 classes a token has 20, 55, 145, 366 and 852 of them above 2^-8, 2^-10,
    …, 2^-16 in the mean, where SmolLM2-135M-Instruct has 18, 49, 132, 330 and 757 on prose, code and chat.
    """
    made: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    rows = 2 * pairs * tokens
    order = torch.randperm(classes, **made)
    weight = torch.randn(classes, features, **made) / math.sqrt(features - 1)
    common = (order + 1).log()
    weight[:, 0] = -1.2 * (common - common.mean())
    hidden = torch.randn(rows, features, **made)
    hidden *= torch.linspace(2.8, 5.2, rows, device=device)[torch.randperm(rows, **made), None]
    hidden[:, 0] = 1.0
    weight, hidden = weight.to(dtype), hidden.to(dtype)
    draws = []
    for some in torch.split(hidden, 64):
        sums = (some.float() @ weight.float().t()).softmax(-1).cumsum(-1)
        draws.append(torch.searchsorted(sums, sums[:, -1:] * torch.rand(len(some), 1, **made)))
    labels = torch.cat(draws).clamp(max=classes - 1).reshape(2 * pairs, tokens)
    return Batch(hidden.reshape(2 * pairs, tokens, features).requires_grad_(), weight.requires_grad_(trainable), labels)


def dpo(logps: Tensor) -> Tensor:
    """The loss from the log-probabilities [R, T] of all tokens."""
    chosen, rejected = logps.float().sum(-1).chunk(2)
    return -functional.logsigmoid(BETA * (chosen - rejected)).mean()


def through(logps: LogProbs, task: str) -> Loss:
    """The hand that gathers log-probabilities, and leaves the rest to PyTorch."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        found = logps(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1)).reshape(labels.shape)
        scored = labels != IGNORED
        found = torch.where(scored, found, 0.0)
        return dpo(found) if task == DPO else -found.float().sum() / scored.sum()

    return loss


def hand(name: str, task: str) -> Loss:
    """The hand of that name.

    Raises:
        ValueError: a name that is none of `HANDS`, or a task that it has nothing for.
        ImportError: the library is not installed; what else its import may raise is its own.
    """
    if name not in HANDS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(HANDS)}")
    if task not in (DPO, NLL):
        raise ValueError(f"task: got {task!r}, expected {DPO!r} or {NLL!r}")
    return HANDS[name](task)


def available(names: tuple[str, ...], task: str) -> tuple[list[str], dict[str, str]]:
    """Those of `names` whose library is there, and of the others why they are not."""
    found, absent = [], {}
    for name in names:
        try:
            hand(name, task)
        except Exception as error:  # a library that is there but broken raises whatever it likes
            absent[name] = first_line(error)
        else:
            found.append(name)
    return found, absent


def step(name: str, task: str, batch: Batch) -> Callable[[], tuple[Tensor, ...]]:
    """A hand with its inputs: forward and backward, to be run as often as one likes; returns the gradients."""
    loss, leaves = hand(name, task), batch.leaves
    return lambda: torch.autograd.grad(loss(*batch), leaves)


def bare(batch: Batch) -> Callable[[], None]:
    """The GEMMs that no hand can do without, into memory that is there: logits, d(hidden), d(weight) if it is trained.

    Only rows that count enter. The gradient of the logits is played by the logits.
    """
    with torch.no_grad():
        rows = batch.hidden[batch.labels != IGNORED]
        weight = batch.weight.detach()
    logits = rows.new_empty(rows.shape[0], weight.shape[0])
    of_rows = torch.empty_like(rows)
    of_weight = torch.empty_like(weight) if batch.trainable else None

    def run() -> None:
        torch.mm(rows, weight.t(), out=logits)
        torch.mm(logits, weight, out=of_rows)
        if of_weight is not None:
            torch.mm(logits.t(), rows, out=of_weight)

    return run


def disagreement(name: str, task: str, batch: Batch) -> str | None:
    """Why a hand is not to be measured: it fails, or loss or gradients are not those of float64; None if it does well.

    A few tokens of every response are looked at: the last of its prompt, if it has one, and the first of the rest.
    """
    few = _few(batch)
    try:
        got = _loss_and_gradients(hand(name, task), few)
    except Exception as error:  # whatever a library raises on this machine
        return first_line(error)
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (few.hidden, few.weight)]
    wanted = _loss_and_gradients(through(log_softmax_gather, task), Batch(exact[0], exact[1], few.labels))
    for what, mine, theirs in zip(("the loss", "d(hidden)", "d(weight)"), got, wanted, strict=False):
        off = float((mine.double() - theirs).norm() / theirs.norm())
        if not off <= _PEER_ERROR:
            return f"disagrees: {what} is off by {off:.2g} of its size"
    return None


def first_line(error: Exception) -> str:
    """What went wrong, in short."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"


def plan(batch: Batch) -> Plan:
    """How `PREFUSE` runs `DPO`; it is printed too."""
    return explain("dpo", **_for_preference_loss(*batch))


def allowed_bytes(name: str, batch: Batch) -> int | None:
    """How much memory beside gradients one of our hands may take; None for others."""
    if name not in OURS:
        return None
    weight = batch.weight
    summed = 4 * weight.numel() if weight.requires_grad and weight.itemsize == 2 else 0
    workspace = OURS[name] or default_workspace(weight.device.type == "cuda", summed)
    return workspace + batch.hidden.numel() * torch.float32.itemsize


def run(name: str, **arguments: Any) -> Callable[[], object]:
    """DPO by a hand, or by nobody (`bare`), with inputs of its own: for `prefuse.bench.memory` in a fresh process."""
    batch = inputs(**arguments)
    return bare(batch) if name == bare.__name__ else step(name, DPO, batch)


def log_softmax_gather(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits and their whole logarithm."""
    log_p = (hidden @ weight.t()).log_softmax(-1)
    return log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits and PyTorch's own loss, negated."""
    return -functional.cross_entropy(hidden @ weight.t(), labels, reduction="none", ignore_index=IGNORED)


def logps_by_trl() -> LogProbs:
    """TRL's function, called as TRL's own trainers do: without Triton, ignored rows are scored like all others."""
    from trl.kernels import ChunkedLogProbFunction

    def logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        if not hidden.is_cuda:
            return apply(hidden, weight, labels.clamp(min=0))
        scored = labels != IGNORED
        found = apply(hidden[scored], weight, labels[scored])
        return found.new_zeros(labels.shape).masked_scatter(scored, found)

    def apply(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, _TRL_CHUNK, None, 1.0, ())[0]
        return found

    return logps


def _few(batch: Batch) -> Batch:
    tokens = batch.labels.shape[1]
    first = int((batch.labels[0] == IGNORED).sum()) - _CHECKED_TOKENS // 2
    first = max(0, min(first, tokens - _CHECKED_TOKENS))
    some = slice(first, first + _CHECKED_TOKENS)
    return Batch(batch.hidden[:, some].detach().requires_grad_(), batch.weight, batch.labels[:, some])


def _loss_and_gradients(loss: Loss, batch: Batch) -> list[Tensor]:
    value = loss(*batch)
    return [value.detach(), *torch.autograd.grad(value, batch.leaves)]


def _for_preference_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Any]:
    reference = hidden.new_zeros(len(labels), dtype=torch.float32)
    return {"hidden": hidden, "weight": weight, "labels": labels, "reference": reference, "beta": BETA}


def _prefuse(task: str, workspace_bytes: int | None, sparse: Sparse | None = None) -> Loss:
    if task == NLL:
        return _prefuse_logps(task, workspace_bytes, sparse)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        arguments = _for_preference_loss(hidden, weight, labels)
        value: Tensor = preference_loss("dpo", workspace_bytes=workspace_bytes, sparse=sparse, **arguments).loss
        return value

    return loss


def _prefuse_logps(task: str, workspace_bytes: int | None, sparse: Sparse | None = None) -> Loss:
    return through(functools.partial(linear_token_logps, workspace_bytes=workspace_bytes, sparse=sparse), task)


def _torch_linear(task: str) -> Loss:
    if not hasattr(functional, "linear_cross_entropy"):
        raise ImportError("torch.nn.functional has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    reduction = "none" if task == DPO else "mean"
    cross_entropy = functools.partial(functional.linear_cross_entropy, reduction=reduction, options=options)
    if task == DPO:
        return through(lambda *flat: -cross_entropy(*flat), task)
    return lambda hidden, weight, labels: cross_entropy(hidden.flatten(0, 1), weight, labels.flatten())


def _trl(task: str) -> Loss:
    return through(logps_by_trl(), task)


def _liger(task: str) -> Loss:
    if task == NLL:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as cross_entropy

        return lambda hidden, weight, labels: cross_entropy(hidden.flatten(0, 1), weight, labels.flatten())
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    liger = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False)
    return lambda hidden, weight, labels: liger(weight, hidden, labels)[0]


def _liger_scaled(task: str) -> Loss:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Function

    return through(lambda hidden, weight, labels: -Function.apply(hidden, weight, labels), task)


def _cce(task: str) -> Loss:
    library = importlib.import_module("cut_cross_entropy").linear_cross_entropy

    def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, **options: str) -> Tensor:
        implementation = {} if hidden.is_cuda else {"impl": "torch_compile"}  # its kernels are Triton's
        found: Tensor = library(hidden, weight, labels, **implementation, **options)
        return found

    if task == NLL:
        return cross_entropy
    return through(lambda *flat: -cross_entropy(*flat, reduction="none"), task)


def _quack(task: str) -> Loss:
    library = importlib.import_module("quack.linear_cross_entropy")
    if task == NLL:
        chunked = library.chunked_linear_cross_entropy
        return lambda *padded: chunked(*padded, chunk_size=_QUACK_CHUNK)
    unfused = library.linear_cross_entropy_func  # what QuACK has for one upstream gradient per token
    return through(
        lambda hidden, weight, labels: -unfused(hidden, weight, None, labels, ignore_index=IGNORED, reduction="none"),
        task,
    )


def _verl(task: str) -> Loss:
    kernel = importlib.import_module("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy
    return through(
        lambda hidden, weight, labels: kernel(hidden, weight, labels.clamp(min=0), 1.0, "none")[0],
        task,
    )


HANDS: dict[str, Callable[[str], Loss]] = {
    PREFUSE: functools.partial(_prefuse, workspace_bytes=OURS[PREFUSE]),
    PREFUSE_LOGPS: functools.partial(_prefuse_logps, workspace_bytes=OURS[PREFUSE_LOGPS]),
    PREFUSE_WIDE: functools.partial(_prefuse, workspace_bytes=OURS[PREFUSE_WIDE]),
    **{
        name: functools.partial(_prefuse, workspace_bytes=None, sparse=Sparse(eps, seed=0))
        for name, eps in SPARSE.items()
    },
    EAGER: functools.partial(through, log_softmax_gather),
    CROSS_ENTROPY: functools.partial(through, cross_entropy),
    TORCH_LINEAR: _torch_linear,
    TRL: _trl,
    LIGER: _liger,
    LIGER_SCALED: _liger_scaled,
    CCE: _cce,
    QUACK: _quack,
    VERL: _verl,
}
"""Makes a hand for a task; an import error where its library is not there."""

ON_CPU = (PREFUSE, PREFUSE_LOGPS, EAGER, CROSS_ENTROPY, TORCH_LINEAR, TRL, LIGER)
ON_DEVICE = tuple(name for name in HANDS if name not in SPARSE)
