"""What cannot be looked at without waiting: values out of range make a row NaN; with PREFUSE_DEBUG=1, an error."""

import pytest
import torch

from prefuse.functional import sequence_logps, token_logps, token_stats

pytestmark = pytest.mark.needs_cuda


@pytest.fixture
def rows():
    logits = torch.randn(2, 4, 700, generator=torch.Generator().manual_seed(0)).cuda()
    return logits, torch.arange(8, device="cuda").view(2, 4)


@pytest.mark.parametrize("label", [-1, 700, 2**31, -(2**40)])
def test_a_label_out_of_range_makes_its_row_nan(rows, label, monkeypatch):
    monkeypatch.delenv("PREFUSE_DEBUG", raising=False)
    x, y = rows[0].requires_grad_(), rows[1].clone()
    clean = token_logps(x, y)
    y[1, 2] = label
    got = token_stats(x, y, ("logp", "lse", "entropy"))
    got.logp.sum().backward()
    others = torch.ones(2, 4, dtype=torch.bool, device="cuda")
    others[1, 2] = False
    assert got.logp[1, 2].isnan()
    assert torch.equal(got.logp[others], clean[others])
    assert x.grad[1, 2].isnan().all()
    assert x.grad[others].isfinite().all()


@pytest.mark.parametrize("label", [-1, 700])
def test_debugging_makes_it_an_error(rows, label, monkeypatch):
    monkeypatch.setenv("PREFUSE_DEBUG", "1")
    x, y = rows
    y[1, 2] = label
    with pytest.raises(ValueError, match=rf"^labels: {label} at \[1, 2\], expected 0 <= label < 700"):
        token_logps(x, y)
    assert token_logps(x, y, ignore_index=label)[1, 2] == 0
    with pytest.raises(ValueError, match=rf"^labels: {label} at \[1, 2\]"):
        sequence_logps(x, y)


def test_a_temperature_that_is_no_positive_number(rows, monkeypatch):
    monkeypatch.delenv("PREFUSE_DEBUG", raising=False)
    temperature = torch.ones(2, 4, device="cuda")
    temperature[0, 1] = 0
    got = token_logps(*rows, temperature=temperature)
    assert got.isnan().nonzero().tolist() == [[0, 1]]
    monkeypatch.setenv("PREFUSE_DEBUG", "1")
    with pytest.raises(ValueError, match=r"^temperature: 0.0 at \[0, 1\]"):
        token_logps(*rows, temperature=temperature)


def test_arguments_on_different_devices(rows):
    with pytest.raises(ValueError, match="labels: expected device cuda:0, like the other arguments, got cpu"):
        token_logps(rows[0], rows[1].cpu())
