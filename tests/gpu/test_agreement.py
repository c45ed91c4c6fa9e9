"""The CUDA backend against the CPU backend: the same calls, the same numbers up to rounding."""

import pytest
import torch

from prefuse import objectives, squared_errors
from prefuse.functional import STATISTICS, response_lengths, sequence_logps
from prefuse.losses.preference import preference_loss
from tests.gpu.making import DTYPES, batch, gradient, statistics
from tests.objectives import lists_and_tokens
from tests.objectives.pairs_and_points import VARIANTS, column_names, random_columns, variant_id

pytestmark = pytest.mark.needs_cuda

OPTIONS = [{}, {"temperature": 0.7, "scale": 0.5, "softcap": 30.0}, {"temperature": torch.tensor([0.5, 1.0, 2.0])}]


def close(got, expected, roundings, what=""):
    """Within some roundings of the arithmetic, of the larger of 1 and the largest number, and one of the dtype."""
    got, expected = got.cpu(), expected.cpu()
    arithmetic = torch.finfo(torch.float64 if expected.dtype == torch.float64 else torch.float32).eps
    largest = max(1.0, expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0)
    rounding = 0.0 if expected.dtype in (torch.float32, torch.float64) else torch.finfo(expected.dtype).eps
    torch.testing.assert_close(
        got,
        expected,
        rtol=rounding,
        atol=roundings * arithmetic * largest,
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "transformed", "per token"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 7, 1000, 32003, 151936])
def test_rows(vocabulary, dtype, options):
    rows = batch(4, 3, vocabulary=vocabulary, dtype=dtype)
    elsewhere = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    expected, got = statistics(rows, **options), statistics(rows.to("cuda"), **elsewhere)
    for at, name in enumerate(STATISTICS):
        close(got[at], expected[at], 64, name)
    close(gradient(rows.to("cuda"), **elsewhere), gradient(rows, **options), 256, "gradient")


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_sequences(average, shift):
    rows = batch(5, 9, vocabulary=130, dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, 7, 7, 30, 45])
    packed = {"cu_seqlens": cu_seqlens, "average": average, "shift": shift}
    for lead, options in (((5, 9), {"average": average, "shift": shift}), ((1, 45), packed)):
        here = (rows.logits.view(*lead, -1), rows.labels.view(lead))
        there = [tensor.cuda() for tensor in here]
        elsewhere = {
            name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in options.items()
        }
        close(sequence_logps(*there, **elsewhere), sequence_logps(*here, **options), 64)
        del options["average"], elsewhere["average"]
        assert response_lengths(there[1], **elsewhere).tolist() == response_lengths(here[1], **options).tolist()


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "ipo"])
@pytest.mark.parametrize("inplace", [False, True])
def test_preference_loss(name, inplace):
    rows = batch(8, 11, vocabulary=517, dtype=torch.bfloat16)
    needs_reference = any(column.startswith("ref_") for column in objectives.get(name).columns)
    results = []
    for device in ("cpu", "cuda"):
        x = rows.logits.to(device).requires_grad_()
        score = preference_loss(
            name,
            logits=1.0 * x,
            labels=rows.labels.to(device),
            mask=rows.mask.to(device),
            reference=rows.reference.to(device) if needs_reference else None,
            shift=True,
            inplace=inplace,
        )
        score.loss.backward()
        assert score.loss.device.type == score.losses.device.type == device
        results.append((score.loss.detach(), score.losses.detach(), x.grad, score.metrics, score.rewards))
    (loss, losses, grad, metrics, rewards), (got, got_losses, got_grad, got_metrics, got_rewards) = results
    torch.testing.assert_close(got.cpu(), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_losses.cpu(), losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got_grad.cpu().float(), grad.float(), rtol=2**-7, atol=1e-4 * grad.abs().max().item())
    assert got_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    for role, reward in rewards.items():
        torch.testing.assert_close(got_rewards[role].cpu(), reward, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [1, 6, 3000])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_every_objective(variant, size):
    name, parameters = variant
    columns = random_columns(size, seed=1)
    agree_on(name, parameters, {column: columns[column] for column in column_names(name, parameters)})


@pytest.mark.parametrize("variant", lists_and_tokens.VARIANTS, ids=variant_id)
def test_every_objective_of_lists_and_tokens(variant):
    name, parameters = variant
    agree_on(name, parameters, lists_and_tokens.random_columns(name, parameters, seed=1))


def agree_on(name, parameters, columns):
    """Losses, gradients and metrics are the same on both devices."""
    results = []
    for device in ("cpu", "cuda"):
        given = {column: torch.from_numpy(value).to(device) for column, value in columns.items()}
        leaves = [value.requires_grad_() for value in given.values() if value.is_floating_point()]
        score = objectives.get(name)(**parameters)(**given)
        grads = torch.autograd.grad(score.loss, leaves, allow_unused=True)
        results.append((score.loss, score.losses, grads, score.metrics))
    (loss, losses, grads, metrics), (got, got_losses, got_grads, got_metrics) = results
    torch.testing.assert_close(got.cpu(), loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_losses.cpu(), losses, rtol=1e-10, atol=1e-10)
    assert got_metrics == pytest.approx(metrics, rel=1e-9, abs=1e-9, nan_ok=True)
    for mine, theirs in zip(got_grads, grads, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [1, 7, 8192, 100_003])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_squared_errors(dtype, target, size):
    generator = torch.Generator().manual_seed(0)
    here = [
        torch.randn(6, size, generator=generator, dtype=torch.float64).to(kind).requires_grad_()
        for kind in (dtype, target)
    ]
    there = [x.detach().cuda().requires_grad_() for x in here]
    expected, got = squared_errors(*here), squared_errors(*there)
    close(got, expected, 16)
    pairs = zip(torch.autograd.grad(got.sum(), there), torch.autograd.grad(expected.sum(), here), strict=True)
    for on_device, of_cpu in pairs:
        close(on_device, of_cpu, 1)
    assert torch.equal(got[2:3], squared_errors(there[0][2:3], there[1][2:3]))
