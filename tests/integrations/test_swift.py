"""`prefuse.integrations.swift` on a stand-in with ms-swift's semantics, and its errors."""

from __future__ import annotations

import pytest
import torch

import prefuse.integrations.swift as integration
from prefuse.trl.gathered import Gathered
from tests.devices import integers
from tests.integration.models import VOCABULARY, causal_lm
from tests.integrations import frontends
from tests.integrations.test_llamafactory import assert_close, batch, gradient

pytest.importorskip("transformers")


@pytest.fixture
def modules(monkeypatch):
    made = frontends.swift()
    frontends.install(monkeypatch, "ms-swift", "4.6.0", made)
    return made


@pytest.fixture
def trainers(modules):
    """Classes by name."""
    found = [value for module in modules.values() for value in vars(module).values() if isinstance(value, type)]
    return {each.__name__: each for each in found}


def compare(model, run):
    """Every tensor that `run` returns and its gradient, the same with prefuse; logits are made once, without it."""
    theirs = run()
    expected = gradient(model, theirs[0].square().sum())
    with integration.accelerate(fallback="error"):
        ours = run()
        assert_close(gradient(model, ours[0].square().sum()), expected)
    assert_close(dict(enumerate(ours)), dict(enumerate(theirs)))


def keeping(labels):
    """`logits_to_keep` of one row: the positions before its labels, and the last."""
    return torch.nn.functional.pad((labels != -100)[0, 1:], (0, 1), value=True)


@pytest.mark.parametrize("keep", [None, 6, 30])
def test_dpo(trainers, keep):
    model, trainer, given = causal_lm("llama"), trainers["DPOTrainer"](), batch()
    if keep == 6:
        given["labels"][:, :5] = -100
    compare(model, lambda: trainer.concatenated_forward(model, {**given, "logits_to_keep": keep or 0}))


def test_dpo_of_one_row_without_padding(trainers):
    model, trainer = causal_lm("gemma2"), trainers["DPOTrainer"]()
    tokens = integers(VOCABULARY - 5, 1, 12, seed=1) + 5
    labels, positions = tokens.clone(), torch.tensor([[*range(5), *range(7)]])
    labels[0, [0, 1, 5, 6, 9]] = -100
    given = {"input_ids": tokens, "labels": labels, "position_ids": positions, "logits_to_keep": keeping(labels)}
    compare(model, lambda: trainer.concatenated_forward(model, given))


def test_kto(trainers):
    model, trainer = causal_lm("llama"), trainers["KTOTrainer"]()
    given = {**batch("completion_"), **batch("KL_completion_", seed=5)}
    compare(model, lambda: [tensor for found in trainer.forward(model, given) for tensor in found])


def test_cpo_and_orpo(trainers):
    model, trainer = causal_lm("llama"), trainers["RLHFTrainerMixin"]()
    compare(model, lambda: trainer.concatenated_forward(model, batch()))


@pytest.mark.parametrize("entropy", [False, True])
def test_grpo(trainers, entropy):
    model, trainer = causal_lm("llama"), trainers["GRPOTrainer"]()
    given = {name: value for name, value in batch().items() if name != "labels"}

    def run():
        made = trainer._get_logps_via_local_forward(model, dict(given), 4, given["input_ids"], entropy)
        assert (made[1] is not None) == entropy
        return [tensor for tensor in made if tensor is not None]

    compare(model, run)


@pytest.mark.parametrize("options", [{"multimodal": True}, {"sequence_parallel_size": 2}])
@pytest.mark.parametrize("name", ["DPOTrainer", "GRPOTrainer"])
def test_what_is_left_makes_its_logits(trainers, name, options):
    model, trainer, given = causal_lm("llama"), trainers[name](**options), batch()

    def run():
        if name == "DPOTrainer":
            return trainer.concatenated_forward(model, given)
        inputs = {key: value for key, value in given.items() if key != "labels"}
        return trainer._get_logps_via_local_forward(model, inputs, 4, given["input_ids"])[:1]

    heads = []
    hook = model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    compare(model, run)
    hook.remove()
    assert len(heads) == 2
    assert set(integration.LEFT) <= set(integration.accelerate().left)


def test_everything_is_put_back(modules, trainers):
    places = [*modules.values(), *trainers.values()]
    before = [dict(vars(place)) for place in places]
    model, trainer = causal_lm("llama"), trainers["DPOTrainer"]()
    forward = model.forward
    made, again = integration.accelerate(), integration.accelerate()
    trainer.concatenated_forward(model, batch())
    made.remove()
    again.remove()
    assert [dict(vars(place)) for place in places] == before
    assert model.forward == forward


def test_labels_of_another_shape(trainers):
    trainer = trainers["DPOTrainer"]()
    rows = {"log_probs": torch.zeros(6), "mean_logits": torch.zeros(6)}
    logits = Gathered(rows, torch.zeros(6), torch.arange(6).view(2, 3), 9)
    with integration.accelerate():
        for labels, options in (
            (torch.zeros(2, 4), {}),
            (torch.zeros(2, 3), {"label_pad_token_id": 0}),
        ):
            with pytest.raises(ValueError, match=r"labels: expected \(2, 3\), ignored where -100, got \(2, "):
                trainer.get_per_token_logps(logits, labels.long(), **options)
        with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum', got 'max'"):
            trainer.get_per_token_logps(logits, torch.zeros(2, 3).long(), reduction="max")


def test_another_version(modules, monkeypatch):
    def forward(self, model): ...

    monkeypatch.setattr(modules["swift.rlhf_trainers.kto_trainer"].KTOTrainer, "forward", forward)
    with pytest.raises(RuntimeError, match=r"ms-swift 4.6.0 differs .* not found is .*KTOTrainer.forward"):
        integration.accelerate()
    assert "Nothing was changed" in integration.fit()


def test_a_wrong_fallback(modules):
    with pytest.raises(ValueError, match="fallback: expected 'logits' or 'error', got 'none'"):
        integration.accelerate(fallback="none")
