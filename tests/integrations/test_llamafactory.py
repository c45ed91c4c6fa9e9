"""`prefuse.integrations.llamafactory` on a stand-in with LLaMA-Factory's semantics, and its errors."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
import torch

import prefuse.integrations.llamafactory as integration
from prefuse.trl.gathered import Gathered
from tests.devices import integers, normal
from tests.integration.models import IMAGE, VOCABULARY, causal_lm, vision_language_model
from tests.integrations import frontends

pytest.importorskip("transformers")


@pytest.fixture
def modules(monkeypatch):
    made = frontends.llamafactory()
    frontends.install(monkeypatch, "llamafactory", "0.9.5", made)
    return made


@pytest.fixture
def dpo(modules):
    return modules["llamafactory.train.dpo.trainer"]


@pytest.fixture
def kto(modules):
    return modules["llamafactory.train.kto.trainer"]


def batch(prefix="", seed=1):
    """Four rows, padded on the right, with responses of different lengths."""
    tokens = integers(VOCABULARY - 5, 4, 10, seed=seed) + 5
    mask, labels = torch.ones_like(tokens), tokens.clone()
    for row, (start, end) in enumerate([(3, 10), (2, 6), (4, 7), (1, 9)]):
        labels[row, :start] = labels[row, end:] = -100
        mask[row, end:] = 0
    found = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    return {prefix + name: value for name, value in found.items()}


def gradient(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(ours, theirs):
    """To 2e-5 of the largest number of each tensor."""
    for name, value in theirs.items():
        scale = max(1.0, float(value.detach().float().abs().max()))
        torch.testing.assert_close(ours[name], value, atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_dpo(dpo, family, ld_alpha):
    model, trainer = causal_lm(family), dpo.CustomDPOTrainer()
    trainer.ld_alpha = ld_alpha
    theirs = trainer.concatenated_forward(model, batch())
    expected = gradient(model, theirs["logps"].square().sum())
    with integration.accelerate(fallback="error"):
        ours = trainer.concatenated_forward(model, batch())
        assert_close(gradient(model, ours["logps"].square().sum()), expected)
        with torch.no_grad():
            reference = trainer.concatenated_forward(model, batch(), is_ref_model=True)
    assert_close(ours, theirs)
    trainer.ld_alpha = None
    assert_close(reference, trainer.concatenated_forward(model, batch()))


def test_images(dpo):
    model, trainer, given = vision_language_model(), dpo.CustomDPOTrainer(), batch()
    image = torch.full((4, 4), IMAGE)  # two patches by two
    for name, front in (("input_ids", image), ("attention_mask", torch.ones_like(image)), ("labels", -100 + 0 * image)):
        given[name] = torch.cat([front, given[name]], dim=1)
    given["pixel_values"] = normal(4, 3, 8, 8, seed=3)
    theirs = trainer.concatenated_forward(model, given)
    with integration.accelerate(fallback="error"):
        assert_close(trainer.concatenated_forward(model, given), theirs)


def test_kto(kto):
    model, trainer = causal_lm("llama"), kto.CustomKTOTrainer()
    given = {**batch(), **batch("kl_", seed=5)}
    tags = torch.tensor([True, False, True, True])
    for prefix in ("", "kl_"):
        logits, *theirs = trainer.forward(model, given, prefix)
        with integration.accelerate(fallback="error"):
            gathered, *ours = trainer.forward(model, given, prefix)
        assert isinstance(gathered, Gathered)
        torch.testing.assert_close(ours, theirs)
        for chosen in (tags, ~tags):
            expected = logits[chosen].nansum()
            torch.testing.assert_close(gathered[chosen].nansum(), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo"])
def test_the_loss_is_the_one_that_was_asked_for(dpo, name):
    trainer, logps = dpo.CustomDPOTrainer(), torch.zeros(4).unbind()
    trainer.loss_type = name
    assert trainer.loss(*logps) == "sigmoid"
    with integration.accelerate() as made:
        assert trainer.loss(*logps) == name
        assert trainer.dpo_loss(*logps, "robust") == trainer.dpo_loss(*logps, loss_type="robust") == "robust"
        assert "CustomDPOTrainer.dpo_loss (pref_loss)" in made.places
    assert trainer.loss(*logps) == "sigmoid"


def test_an_older_trl_reads_the_name_itself(dpo, monkeypatch):
    def dpo_loss(self, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
        return self.loss_type

    monkeypatch.setattr(dpo.CustomDPOTrainer, "dpo_loss", dpo_loss)
    with integration.accelerate() as made:
        assert "CustomDPOTrainer.dpo_loss (pref_loss)" not in made.places
        assert dpo.CustomDPOTrainer.dpo_loss is dpo_loss


def test_everything_is_put_back(dpo, kto):
    places = [dpo, kto, dpo.CustomDPOTrainer, kto.CustomKTOTrainer]
    before = [dict(vars(place)) for place in places]
    model, trainer = causal_lm("llama"), dpo.CustomDPOTrainer()
    forward = model.forward
    made, again = integration.accelerate(), integration.accelerate()
    trainer.concatenated_forward(model, batch())
    held = trainer.concatenated_forward
    made.remove()
    again.remove()
    again.remove()
    assert [dict(vars(place)) for place in places] == before
    assert model.forward == forward
    # What was taken in between runs as LLaMA-Factory's own.
    assert_close(held(model, batch()), trainer.concatenated_forward(model, batch()))


def test_logits_that_somebody_else_made(dpo):
    logits, labels = torch.randn(2, 5, 9), torch.tensor([[-100, 1, 2, -100, 4], [-100, -100, 3, 3, 3]])
    theirs = dpo.get_batch_logps(logits, labels)
    with integration.accelerate():
        torch.testing.assert_close(dpo.get_batch_logps(logits, labels), theirs)


def test_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    message = "prefuse.integrations.llamafactory: llamafactory is not installed; tried with 0.9.5"
    with pytest.raises(ImportError, match=message):
        integration.accelerate()
    assert integration.fit() == message


def test_another_version(dpo, monkeypatch):
    before = dict(vars(dpo))

    def concatenated_forward(self, model, batch): ...

    monkeypatch.setattr(dpo.CustomDPOTrainer, "concatenated_forward", concatenated_forward)
    with pytest.raises(RuntimeError, match=r"not found is .*concatenated_forward\(self, model, batch, is_ref_model\)"):
        integration.accelerate()
    assert "Nothing was changed" in integration.fit()
    assert dict(vars(dpo)) == before


def test_a_part_that_is_not_there(modules, kto, monkeypatch):
    monkeypatch.delattr(kto, "CustomKTOTrainer")
    with pytest.raises(RuntimeError, match=r"not found is llamafactory\.train.kto.trainer.CustomKTOTrainer"):
        integration.accelerate()
    monkeypatch.setitem(sys.modules, "llamafactory.train.dpo.trainer", None)
    with pytest.raises(RuntimeError, match=r"the module llamafactory\.train\.dpo.trainer"):
        integration.accelerate()


def test_what_cannot_be_imported(modules, monkeypatch, tmp_path):
    """Other versions of what LLaMA-Factory imports make it raise all sorts of errors."""
    name = "llamafactory.train.kto.trainer"
    monkeypatch.delitem(sys.modules, name)
    modules["llamafactory.train.kto"].__path__ = [str(tmp_path)]
    (tmp_path / "trainer.py").write_text("import sys\nsys.nothing_of_this_name\n")
    with pytest.raises(RuntimeError, match=r"the module llamafactory\.train\.kto\.trainer \(AttributeError: "):
        integration.accelerate()
    assert "AttributeError" in integration.fit()


def test_a_wrong_fallback(modules):
    with pytest.raises(ValueError, match="fallback: expected 'logits' or 'error', got 'none'"):
        integration.accelerate(fallback="none")
