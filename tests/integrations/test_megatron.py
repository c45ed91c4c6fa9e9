"""`prefuse.integrations.megatron` in processes of a group, beside a stand-in of Megatron-core or the real one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from prefuse.integrations.megatron import token_stats, vocab_parallel_cross_entropy
from tests.devices import integers, normal
from tests.distributed.processes import Processes, started
from tests.integrations.standins import Modules, install, is_real

PLAIN = "megatron.core.tensor_parallel.cross_entropy"
FUSED = "megatron.core.fusions.fused_cross_entropy"
STATE = "megatron.core.parallel_state"
HOLDER = "megatron.core.models.common.language_module.language_module"
"""A module that imports the fused function by name."""

POSITIONS, ROWS, FEATURES, CLASSES = 8, 3, 16, 60
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    yield from started(request.param)


class WholeLogits(torch.autograd.Function):
    """The logits of all ranks; back, the gradient of this rank's."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, logits.contiguous(), group=group)
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.chunk(dist.get_world_size(ctx.group), -1)[dist.get_rank(ctx.group)], None


def theirs(vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: Any = 0.0, tp_group: Any = None) -> Tensor:
    whole = WholeLogits.apply(vocab_parallel_logits, tp_group or dist.group.WORLD).float()
    return -whole.log_softmax(-1).gather(-1, target[..., None])[..., 0]


def theirs_fused(vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any) -> Tensor:
    return theirs(vocab_parallel_logits, target, 0.0, tp_group)


@contextmanager
def megatron() -> Iterator[Modules]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if is_real("megatron"):
            modules = {path: importlib.import_module(path) for path in (PLAIN, FUSED, STATE, HOLDER)}
            monkeypatch.setattr(modules[STATE], "get_tensor_model_parallel_group", lambda: dist.group.WORLD)
            yield modules
            return
        name = "vocab_parallel_cross_entropy"
        contents: dict[str, dict[str, Any]] = {
            PLAIN: {name: theirs},
            FUSED: {f"fused_{name}": theirs_fused},
            STATE: {"get_tensor_model_parallel_group": lambda: dist.group.WORLD},
            HOLDER: {f"fused_{name}": theirs_fused},
        }
        yield install(monkeypatch, "megatron-core", "0.19.2", contents)


def part(whole: Tensor, dim: int = 0) -> Tensor:
    """This rank's."""
    return whole.chunk(dist.get_world_size(), dim)[dist.get_rank()].clone()


def problem() -> tuple[Tensor, Tensor]:
    """Logits [S, B, V] of which some tokens are certain, and targets."""
    logits, target = 5 * normal(POSITIONS, ROWS, CLASSES, seed=0), integers(CLASSES, POSITIONS, ROWS, seed=1)
    logits[0, 0, target[0, 0]] += 60
    logits[1, 1, int(target[1, 1] + 1) % CLASSES] += 90
    return logits, target


def exact(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Megatron's formula over the whole vocabulary."""
    log_p, of_all = logits.log_softmax(-1), smoothing * CLASSES / (CLASSES - 1)
    own = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return torch.where(target == -100, 0.0, -(1 - of_all) * own - of_all * log_p.mean(-1))


def check_loss(dtype: torch.dtype, smoothing: float) -> None:
    logits, target = problem()
    target[2, 0] = target[POSITIONS - 1] = -100
    up, logits = normal(POSITIONS, ROWS, seed=2), logits.to(dtype)
    right = logits.double().requires_grad_()
    loss = exact(right, target, smoothing)
    (expected,) = torch.autograd.grad((loss * up).sum(), right)
    own = part(logits, -1).requires_grad_()
    kept = own.detach().clone()
    found = vocab_parallel_cross_entropy(own, target, smoothing, dist.group.WORLD)
    (gradient,) = torch.autograd.grad((found * up).sum(), own)
    assert torch.equal(own, kept) and gradient.dtype == dtype
    assert found.dtype == (F64 if dtype == F64 else F32)
    assert found[2, 0] == 0 and not gradient[2, 0].any()
    tight = {F64: 1e-12, F32: 4e-6, BF16: 4e-6, torch.float16: 4e-6}[dtype]
    torch.testing.assert_close(found.double(), loss.detach(), rtol=tight, atol=10 * tight)
    torch.testing.assert_close(
        gradient, part(expected, -1).to(dtype), rtol=0.01 if dtype.itemsize == 2 else 1e-5, atol=tight
    )
    everyone = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, found.detach())
    assert all(torch.equal(each, found) for each in everyone)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, torch.float16])
def test_loss_over_parts(processes: Processes, dtype: torch.dtype, smoothing: float) -> None:
    processes.run(check_loss, dtype, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_of_whole_logits(smoothing: float) -> None:
    logits, target = problem()
    target[3, 1] = -100
    found = vocab_parallel_cross_entropy(logits.requires_grad_(), target, smoothing)
    loss = exact(logits.double(), target, smoothing)
    torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=1e-5)
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (found, loss)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_an_impossible_class() -> None:
    logits, target = torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([2])
    torch.testing.assert_close(vocab_parallel_cross_entropy(logits, target), torch.tensor([2.0]).log())
    assert vocab_parallel_cross_entropy(logits, torch.tensor([1])).isposinf().all()


@pytest.mark.parametrize(
    ("target", "smoothing", "message"),
    [
        (60, 0.0, r"target: expected ids in \[0, 60\) or -100, got 60"),
        (-1, 0.0, r"target: expected ids in \[0, 60\) or -100, got -1"),
        (0, 1.0, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments(target: int, smoothing: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocab_parallel_cross_entropy(torch.zeros(2, 60), torch.tensor([0, target]), smoothing)


def check_places() -> None:
    name = "vocab_parallel_cross_entropy"
    logits, target = problem()
    with megatron() as modules:
        before = getattr(modules[PLAIN], name), getattr(modules[FUSED], f"fused_{name}")
        with prefuse.integrations.megatron.accelerate() as acceleration:
            assert len(acceleration.places) == 2
            own, gap = part(logits, -1), target.clone()
            gap[0] = -100
            kept = own.clone()
            right = exact(logits.double(), gap, 0.0)
            losses = [
                getattr(modules[PLAIN], name)(own, gap),
                getattr(modules[PLAIN], name)(own, gap, tp_group=dist.group.WORLD),
                getattr(modules[FUSED], f"fused_{name}")(own, gap, dist.group.WORLD),
                getattr(modules[HOLDER], f"fused_{name}")(own, gap, dist.group.WORLD),
            ]
            for loss in losses:
                torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=1e-5)
            smoothed = getattr(modules[PLAIN], name)(own, target, label_smoothing=0.1)
            torch.testing.assert_close(smoothed.double(), exact(logits.double(), target, 0.1), rtol=1e-6, atol=1e-5)
            assert torch.equal(own, kept)
        assert before == (getattr(modules[PLAIN], name), getattr(modules[FUSED], f"fused_{name}"))
        assert getattr(modules[HOLDER], f"fused_{name}") is before[1]


def test_in_the_places_of_megatron(processes: Processes) -> None:
    processes.run(check_places)


def head_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [S, B, H], weight [V, H], labels [B, S]."""
    hidden, weight = normal(POSITIONS, ROWS, FEATURES, seed=3), normal(CLASSES, FEATURES, seed=4)
    return hidden.to(dtype), weight.to(dtype), integers(CLASSES, ROWS, POSITIONS, seed=5)


def of_head(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> list[Tensor]:
    """Log-probabilities, entropies [B, S] and the gradients of both, in float64."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_p = (hidden @ weight.T / temperature).log_softmax(-1).transpose(0, 1)
    logp = torch.where(labels == -100, 0.0, log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0])
    entropy = torch.where(labels == -100, 0.0, -(log_p.exp() * log_p).sum(-1))
    total = (logp * normal(ROWS, POSITIONS, seed=6)).sum() + (entropy * normal(ROWS, POSITIONS, seed=7)).sum()
    return [logp.detach(), entropy.detach(), *torch.autograd.grad(total, (hidden, weight))]


def check_head(dtype: torch.dtype, sequence_parallel: bool, dtensor: bool, plan: str | None) -> None:
    hidden, weight, labels = head_problem(dtype)
    labels[0, :2] = -100
    right = of_head(hidden, weight, labels, 0.7)
    own_hidden = (part(hidden) if sequence_parallel else hidden.clone()).requires_grad_()
    leaf = own_weight = part(weight).requires_grad_()
    group: Any = dist.group.WORLD
    if dtensor:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        own_weight = DTensor.from_local(leaf, init_device_mesh("cpu", (dist.get_world_size(),)), (Shard(0),))
        group = None
    stats = token_stats(
        own_hidden,
        own_weight,
        labels,
        ("logp", "entropy"),
        group=group,
        sequence_parallel=sequence_parallel,
        temperature=0.7,
        plan=plan,
    )
    total = (stats.logp * normal(ROWS, POSITIONS, seed=6)).sum() + (
        stats.entropy * normal(ROWS, POSITIONS, seed=7)
    ).sum()
    gradients = torch.autograd.grad(total, (own_hidden, leaf))
    expected = [*right[:2], part(right[2]) if sequence_parallel else right[2], part(right[3])]
    tolerance = {F64: 1e-12, F32: 2e-6, BF16: 4e-2}[dtype]
    for found, each in zip((stats.logp, stats.entropy, *gradients), expected, strict=True):
        assert found.shape == each.shape
        assert (found.double() - each).abs().max() <= tolerance * max(1.0, float(each.abs().max()))


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    ("dtype", "dtensor", "plan"),
    [
        (F64, False, None),
        (F32, True, None),
        (BF16, False, "recompute"),
        (F64, True, "recompute"),
    ],
)
def test_hidden_states(
    processes: Processes, dtype: torch.dtype, sequence_parallel: bool, dtensor: bool, plan: str | None
) -> None:
    processes.run(check_head, dtype, sequence_parallel, dtensor, plan)


def check_no_less_exact(spread: float, options: dict[str, Any]) -> None:
    """Beside Megatron's: a product in bfloat16, its cross entropy, and partial gradients added in bfloat16."""
    hidden, weight, labels = (
        normal(64, 4, 48, seed=3).to(BF16),
        (spread * normal(240, 48, seed=4)).to(BF16),
        integers(240, 4, 64, seed=5),
    )
    up = normal(4, 64, seed=6)
    whole = [each.double().requires_grad_() for each in (hidden, weight)]
    logp = (whole[0] @ whole[1].T).log_softmax(-1).transpose(0, 1).gather(-1, labels[..., None])[..., 0]
    right = [logp.detach(), *torch.autograd.grad((logp * up).sum(), whole)]

    def errors(found: list[Tensor]) -> list[float]:
        pairs = zip(found, [*right[:2], part(right[2])], strict=True)
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs]

    own, rows = hidden.clone().requires_grad_(), part(weight).requires_grad_()
    with megatron() as modules:
        loss = modules[PLAIN].vocab_parallel_cross_entropy(own @ rows.T, labels.T.contiguous(), 0.0, dist.group.WORLD)
        d_hidden, d_rows = torch.autograd.grad((-loss * up.T).sum(), (own, rows))
        dist.all_reduce(d_hidden)
        theirs = errors([-loss.T, d_hidden, d_rows])
    found = token_stats(own, rows, labels, group=dist.group.WORLD, **options).logp
    ours = errors([found, *torch.autograd.grad((found * up).sum(), (own, rows))])
    assert all(a <= 1.001 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("spread", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("options", [{}, {"plan": "recompute"}, {"plan": "recompute", "workspace_bytes": 60_000}])
def test_no_less_exact_than_megatron(processes: Processes, spread: float, options: dict[str, Any]) -> None:
    processes.run(check_no_less_exact, spread, options)


def check_scattered(dtype: torch.dtype) -> None:
    """Sequence-parallel, with options by token: no sum over the ranks is sent whole."""
    hidden, weight, labels = head_problem(dtype)
    mask, up = normal(ROWS, POSITIONS, seed=8) > -1, normal(ROWS, POSITIONS, seed=6)
    options: dict[str, Any] = {"mask": mask, "temperature": torch.linspace(0.5, 2, ROWS)[:, None], "plan": "recompute"}
    group: Any = dist.group.WORLD

    def gradients(given: Tensor, sequence_parallel: bool) -> tuple[list[Tensor], list[str]]:
        own, rows = given.clone().requires_grad_(), part(weight).requires_grad_()
        sent: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            for name in ("all_reduce", "reduce_scatter_tensor"):
                run = getattr(dist, name)
                patch.setattr(dist, name, lambda *a, _run=run, _name=name, **k: sent.append(_name) or _run(*a, **k))
            made = token_stats(own, rows, labels, group=group, sequence_parallel=sequence_parallel, **options)
            found = torch.autograd.grad((made.logp * up).sum(), (own, rows))
        return [made.logp.detach(), *found], sent

    whole, sent = gradients(hidden, False)
    assert sent == ["all_reduce"]
    ours, sent = gradients(part(hidden), True)
    assert sent == ["reduce_scatter_tensor"]
    whole[1] = part(whole[1])
    tolerance = {F64: 1e-12, F32: 1e-5, BF16: 0.02}[dtype]
    for found, right in zip(ours, whole, strict=True):
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_sequence_parallel_gradients_are_scattered(processes: Processes, dtype: torch.dtype) -> None:
    processes.run(check_scattered, dtype)


def check_scatter_refused() -> None:
    hidden, weight, labels = torch.zeros(5, 4), torch.zeros(6, 4), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="scatter_gradient: there is no group to scatter over"):
        prefuse.linear_token_logps(hidden, weight, labels, scatter_gradient=True)
    with pytest.raises(ValueError, match="scatter_gradient: 5 rows have no equal shares for"):
        prefuse.linear_token_logps(hidden, weight, labels, scatter_gradient=True, group=dist.group.WORLD)
    lora = (torch.zeros(1, 4), torch.zeros(6, 1), 1.0)
    with pytest.raises(ValueError, match="lora: its A needs the whole gradient"):
        prefuse.linear_token_logps(hidden, weight, labels, scatter_gradient=True, group=dist.group.WORLD, lora=lora)


def test_what_cannot_be_scattered(processes: Processes) -> None:
    processes.run(check_scatter_refused)


def test_layouts_that_do_not_fit() -> None:
    hidden, weight, labels = head_problem(F32)
    with pytest.raises(ValueError, match=r"labels: expected \[B, S\] = \(3, 8\), got \(8, 3\)"):
        token_stats(hidden, weight, labels.T)
    with pytest.raises(ValueError, match=r"hidden: expected \[S, B, H\], got \(8, 16\)"):
        token_stats(hidden[:, 0], weight, labels)
    with pytest.raises(ValueError, match="need the process group"):
        token_stats(hidden, weight, labels, sequence_parallel=True)


def test_another_megatron_is_refused() -> None:
    with megatron() as modules, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(modules[FUSED], "fused_vocab_parallel_cross_entropy", lambda logits, target: None)
        with pytest.raises(RuntimeError, match=r"(?s)megatron-core 0.19.2.*fused_vocab_parallel_cross_entropy\(vocab"):
            prefuse.integrations.megatron.accelerate()
