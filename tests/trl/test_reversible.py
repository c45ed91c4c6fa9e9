"""What `accelerate` changes and puts back, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import trl
from trl.experimental.cpo import cpo_trainer
from trl.trainer import dpo_trainer, utils

import prefuse.trl
from prefuse.compat.trl import ChunkedLogProbFunction
from prefuse.trl import compatibility, fused, gathered
from tests.integration.models import causal_lm
from tests.trl import running
from tests.trl.running import make

pytestmark = pytest.mark.filterwarnings("ignore")


def everything() -> dict[str, Any]:
    """All attributes of all modules and classes that are touched."""
    homes = [
        compatibility.module(name)
        for name in (
            compatibility.UTILITIES,
            *compatibility.KERNELS,
        )
    ]
    homes += [home for place in compatibility.places() for home in (place.home, place.cls)]
    return {
        f"{home.__name__}.{name}": value
        for home in homes
        for name, value in vars(home).items()
        if not name.startswith("__")
    }


def test_of_all():
    before = everything()
    with prefuse.trl.accelerate() as handle:
        inside = everything()
        changed = {name for name in before if inside[name] is not before[name]}
        assert "trl.trainer.dpo_trainer.add_fused_lm_head" in changed
        assert "trl.trainer.utils._ChunkedLogProbFunction" in changed
        assert "TPOTrainer._compute_loss" in changed
        assert repr(handle).startswith("Acceleration(DPOTrainer, KTOTrainer, ")
    assert everything() == before
    handle.remove()  # a second time does nothing
    assert everything() == before and repr(handle) == "Acceleration(removed)"


def test_handles_in_any_order():
    before = everything()
    first, second = prefuse.trl.accelerate(), prefuse.trl.accelerate()
    inside = everything()
    first.remove()
    assert dpo_trainer.add_fused_lm_head is inside["trl.trainer.dpo_trainer.add_fused_lm_head"]
    second.remove()
    assert everything() == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_models_that_were_called_between_handles(order, tmp_path):
    trainer = make("CPO", tmp_path)
    handles = [prefuse.trl.accelerate(), prefuse.trl.accelerate()]
    handles[order[0]].remove()
    trainer.train()
    assert prefuse.head(trainer.model).fresh is False
    handles[order[1]].remove()
    assert "forward" not in vars(trainer.model)


def test_of_models_that_were_built_under_it():
    """TRL's forward is back; what got hold of our functions in between passes on."""
    with prefuse.trl.accelerate():
        model = causal_lm("llama")
        held = dpo_trainer.add_fused_lm_head
        held(model)
        assert fused.is_patched(model)
        theirs = fused.settings_of(model)
    assert not fused.is_patched(model) and fused.settings_of(model) == theirs
    assert model.forward.__func__.__code__.co_name == "_fused_forward"
    other = causal_lm("llama")
    held(other)
    assert fused.settings_of(other) is not None and not fused.is_patched(other)


def test_of_trainers_that_are_there(tmp_path, monkeypatch):
    """TRL's forward, which they have, finds prefuse's function in the place of its kernel."""
    trainer = make("DPO", tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    calls = []
    function = ChunkedLogProbFunction.apply
    with prefuse.trl.accelerate():
        monkeypatch.setattr(ChunkedLogProbFunction, "apply", lambda *a: calls.append(1) or function(*a))
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)
    assert len(calls) == 2  # policy and reference


def test_of_one_trainer(tmp_path):
    before = everything()
    mine, other = make("DPO", tmp_path), make("DPO", tmp_path)
    forwards = [mine.model.forward, mine.ref_model.forward]
    handle = prefuse.trl.accelerate(mine)
    assert fused.is_patched(mine.model) and fused.is_patched(mine.ref_model)
    assert not fused.is_patched(other.model) and not fused.is_patched(other.ref_model)
    assert everything() == before
    assert repr(handle) == "Acceleration(DPOTrainer.model, DPOTrainer.ref_model)"
    handle.remove()
    assert [mine.model.forward, mine.ref_model.forward] == forwards
    assert not any(name.startswith("_prefuse") for model in (mine.model, mine.ref_model) for name in vars(model))


def test_of_one_trainer_that_builds_logits(tmp_path):
    before = everything()
    mine, other = make("CPO", tmp_path), make("CPO", tmp_path)
    with prefuse.trl.accelerate(mine):
        mine.train()
        assert prefuse.head(mine.model).fresh is False
        assert "concatenated_forward" not in vars(other)
    assert everything() == before
    assert "concatenated_forward" not in vars(mine) and not any("prefuse" in name for name in vars(mine))
    assert "forward" not in vars(mine.model)


def test_of_all_and_of_one(tmp_path):
    """They do not wrap each other's."""
    before = everything()
    trainer = make("TPO", tmp_path)
    for outer, inner in ((None, trainer), (trainer, None)):
        with prefuse.trl.accelerate(outer), prefuse.trl.accelerate(inner):
            trainer.train()
    assert everything() == before and "_compute_loss" not in vars(trainer)


def test_after_training_has_begun(tmp_path):
    """accelerate's autocast lies around TRL's forward then."""
    trainer = make("DPO", tmp_path, bf16=True)
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, dict(batch))
    with prefuse.trl.accelerate(trainer):
        assert fused.is_patched(trainer.model)
        made = []
        last = trainer.model.model.layers[-1].mlp.down_proj
        hook = last.register_forward_hook(lambda module, inputs, output: made.append(output.dtype))
        found = trainer.compute_loss(trainer.model, dict(batch))
        hook.remove()
    assert set(made) == {torch.bfloat16}  # so autocast was on
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    assert torch.equal(trainer.compute_loss(trainer.model, dict(batch)), expected)


def test_another_kind_of_trainer():
    with pytest.raises(
        ValueError, match=r"trainer: expected a DPO, KTO.* of trl 1\..*, got SimpleNamespace, which has no"
    ):
        import types

        prefuse.trl.accelerate(types.SimpleNamespace(model=None))
    with pytest.raises(ValueError, match="got SimpleNamespace"):
        prefuse.trl.accelerate(types.SimpleNamespace(model=causal_lm("llama"), ref_model=None))


FUSED = {"DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer", "SFTTrainer"}


@pytest.mark.parametrize(
    ("owner", "name", "value", "left", "reason"),
    [
        (utils, "add_fused_lm_head", lambda model, temperature: None, FUSED, "add_fused_lm_head has other arguments"),
        (utils, "FusedCausalLMOutput", object, FUSED, "utils.FusedCausalLMOutput has other fields than loss, log"),
        (utils, "_ChunkedLogProbFunction", object, FUSED, "utils._ChunkedLogProbFunction has other arguments than"),
        (dpo_trainer, "add_fused_lm_head", None, {"DPOTrainer"}, "DPOTrainer._compute_loss has another source than"),
        (
            cpo_trainer.CPOTrainer,
            "get_batch_logps",
            lambda logits: None,
            {"CPOTrainer"},
            "cpo_trainer.CPOTrainer.get_batch_logps has another source than those that prefuse knows",
        ),
        (
            cpo_trainer.CPOTrainer,
            "get_batch_logps",
            None,
            {"CPOTrainer"},
            "cpo_trainer.CPOTrainer has no get_batch_logps",
        ),
        (
            cpo_trainer,
            "selective_log_softmax",
            lambda logits: None,
            {"CPOTrainer"},
            "cpo_trainer.selective_log_softmax has other arguments than logits, index",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trl_that_has_moved(monkeypatch, owner, name, value, left, reason):
    """What it concerns is left, and named with the reason; the others run."""
    known = {place.trainer.name for place in compatibility.places()}
    if value is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, value)
    before = everything()
    with prefuse.trl.accelerate() as handle:
        assert left <= handle.left.keys() <= left | {"AsyncGRPOTrainer"}
        assert set(handle.places) == known - handle.left.keys()
        assert all(reason in handle.left[trainer] for trainer in left)
        assert reason in repr(handle)
        fits, problem = compatibility.fit()
        assert set(fits.split(", ")) == set(handle.places) and reason in problem
    assert everything() == before and handle.left == {}


def test_a_trl_of_which_nothing_fits(monkeypatch):
    places = [place._replace(reason="it is new") for place in compatibility.places()]
    monkeypatch.setattr(compatibility, "places", lambda: places)
    before = everything()
    with pytest.raises(RuntimeError) as raised:
        prefuse.trl.accelerate()
    assert str(raised.value).startswith(
        f"prefuse.trl was tried with trl {compatibility.TRIED[0]} to {compatibility.TRIED[1]}, and the installed trl "
        f"{trl.__version__} differs where prefuse takes hold of it: DPOTrainer: it is new; KTOTrainer: it is new; "
    )
    assert str(raised.value).endswith("Nothing was changed")
    assert compatibility.fit()[0] == "" and everything() == before


def test_a_moved_trainer_does_not_concern_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(cpo_trainer.CPOTrainer, "get_batch_logps", lambda logits: None)
    prefuse.trl.accelerate(make("DPO", tmp_path)).remove()
    with pytest.raises(RuntimeError, match=r"CPOTrainer: .*Nothing was changed"):
        prefuse.trl.accelerate(make("CPO", tmp_path))


def test_what_is_said(caplog, monkeypatch, tmp_path):
    """One line of the logger, which can be silenced, and of the first process alone."""
    with prefuse.trl.accelerate(make("DPO", tmp_path)):
        pass
    assert caplog.messages == [
        f"prefuse runs the LM heads of trl {trl.__version__}: DPOTrainer.model, DPOTrainer.ref_model"
    ]
    caplog.clear()
    monkeypatch.setattr(cpo_trainer.CPOTrainer, "get_batch_logps", lambda logits: None)
    prefuse.trl.accelerate().remove()
    (said,) = caplog.messages
    assert ", KTOTrainer, " in said and "; left as they are: CPOTrainer (trl.experimental.cpo.cpo_trainer.CPO" in said
    caplog.clear()
    with caplog.at_level("WARNING", "prefuse.trl.acceleration"):
        prefuse.trl.accelerate().remove()
    monkeypatch.setenv("RANK", "1")
    prefuse.trl.accelerate().remove()
    assert caplog.messages == []


def test_what_is_said_where_nobody_has_set_up_logging():
    code = "import prefuse.trl; prefuse.trl.accelerate().remove(); prefuse.trl.accelerate()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("prefuse runs the LM heads of trl ")]
    assert done.returncode == 0 and len(said) == 2 and done.stdout == ""


def test_a_fused_head_without_settings(monkeypatch):
    monkeypatch.setattr(fused, "settings_of", lambda model: None)
    with (
        prefuse.trl.accelerate(),
        pytest.raises(RuntimeError, match="the fused head of LlamaForCausalLM has no settings"),
    ):
        dpo_trainer.add_fused_lm_head(causal_lm("llama"))


def test_a_trainer_without_settings(monkeypatch, tmp_path):
    trainer = make("SFT", tmp_path, train_dataset=running.unpaired())
    monkeypatch.setattr(fused, "settings_of", lambda model: None)
    with pytest.raises(RuntimeError, match="the fused head of SFTTrainer has no settings"):
        prefuse.trl.accelerate(trainer)


def test_without_trl(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"prefuse\.trl: TRL is not installed; pip install trl"):
        prefuse.trl.accelerate()
    assert compatibility.fit()[0] == "" and "not installed" in compatibility.fit()[1]


def test_importing_loads_none_of_them():
    code = (
        "import sys, prefuse, prefuse.trl; "
        "assert prefuse.trl.accelerate; "
        "sys.exit(', '.join(sorted({'trl', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"prefuse\.trl' has no attribute 'acelerate'"):
        prefuse.trl.acelerate  # noqa: B018
    assert "accelerate" in dir(prefuse.trl)


def gathered_logits() -> gathered.Gathered:
    statistics = {"log_probs": torch.arange(6.0), "is_top1": torch.tensor([True, False] * 3)}
    return gathered.Gathered(statistics, torch.arange(6) + 10, torch.arange(6).view(2, 3), classes=50)


def test_gathered_logits_are_indexed_as_logits_are():
    logits = gathered_logits()
    assert logits.shape == (2, 3, 50)
    full = torch.arange(6.0).view(2, 3, 1).expand(2, 3, 50)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    keys = (
        slice(1),
        0,
        (Ellipsis, slice(None, -1), slice(None)),
        (slice(None), slice(1, None)),
        (slice(None), slice(None, -1), slice(None)),
        mask,
        Ellipsis,
    )
    for key in keys:
        assert logits[key].shape == full[key].shape
        assert torch.equal(logits[key].log_probs(), full[key][..., 0])
    assert torch.equal(logits[:, 1:].contiguous().view(-1, 50).log_probs(), full[:, 1:, 0].reshape(-1))
    assert [part.shape for part in logits.chunk(2, dim=0)] == [(1, 3, 50)] * 2
    assert logits.argmax(dim=-1).tolist() == [[10, -1, 12], [-1, 14, -1]]
    labels = torch.tensor([5, -100, 7, -100, -100, 9])
    found = torch.nn.functional.cross_entropy(logits.view(-1, 50), labels)
    torch.testing.assert_close(found, -torch.arange(6.0).sum() / 3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda logits: logits[..., 3], r"classes 3 were asked for"),
        (lambda logits: logits.argmax(0), r"dim=0 of them"),
        (lambda logits: logits.mean(-1), r"their mean_logits were asked for"),
        (lambda logits: logits / 0.7, r"temperature 1\.0, and 0\.7 was asked for"),
        (lambda logits: logits.log_probs(0.7), r"temperature 1\.0, and 0\.7 was asked for"),
        (lambda logits: torch.softmax(logits, -1), r"torch\.softmax was called"),
        (lambda logits: torch.nn.functional.cross_entropy(logits, None, reduction="sum"), r"got reduction='sum'"),
        (lambda logits: torch.nn.functional.cross_entropy(logits, None, label_smoothing=0.1), r"label_smoothing=0\.1"),
    ],
)
def test_gathered_logits_refuse_what_they_do_not_know(asked, said):
    with pytest.raises(TypeError, match=f"prefuse has not made.*{said}"):
        asked(gathered_logits())


def test_statistics_of_a_prompt_that_was_cut_away(tmp_path):
    """Online DPO reads other logits then, and gets them."""
    options = {"train_dataset": running.prompts(), "reward_funcs": running.reward, "max_new_tokens": 5, "max_length": 5}
    runs = [running.train(lambda: make("OnlineDPO", tmp_path, **options), how) for how in ("plain", "after")]
    running.assert_same(*runs)
