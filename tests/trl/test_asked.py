"""Models that are asked for statistics while a method runs: what TRL's trainers before 1.15 are given, on stand-ins.

`tests/trl/versions` has the trainers themselves, where such a TRL is installed.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from trl.trainer.utils import entropy_from_logits, selective_log_softmax, selective_log_softmax_and_entropy

from prefuse._patches import patch
from prefuse.trl import asked, fused, gathered
from tests.integration.models import VOCABULARY, causal_lm
from tests.trl.running import no_logits

pytestmark = pytest.mark.filterwarnings("ignore")


class Trainer:
    """Scores a batch as DPO and KTO do, and completions as GRPO does; every number that these look at."""

    def __init__(self, model: str = "llama", **attributes: Any) -> None:
        self.model, self.ref_model = causal_lm(model), causal_lm(model, seed=1)
        self.temperature = 0.7
        self.use_liger_kernel = False
        vars(self).update(attributes)

    def _compute_loss(self, model, inputs, return_outputs):
        ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:]
        outputs = model(input_ids=ids, attention_mask=inputs["attention_mask"], use_cache=False)
        logits = outputs.logits[..., :-1, :].contiguous()
        logps = selective_log_softmax(logits, ids[:, 1:])
        logps[mask == 0] = 0.0
        with torch.no_grad():
            reference = self.ref_model(ids, attention_mask=inputs["attention_mask"]).logits[:, :-1]
            logps_of_reference = selective_log_softmax(reference, ids[:, 1:]) * mask
            other = self.ref_model(**inputs["mismatched"]).logits[:, :-1]
            rest = (
                selective_log_softmax(other, inputs["mismatched"]["input_ids"][:, 1:])
                * inputs["KL_completion_mask"][:, 1:]
            )
        loss = nn.functional.softplus((logps - logps_of_reference).sum(-1) - rest.sum()).mean()
        shown = logits.detach()
        seen = {
            "entropy": (entropy_from_logits(shown) * mask).sum(),
            "mean": shown[mask.bool()].mean(-1).sum(),
            "all": outputs.logits.index_select(0, torch.tensor([1])).nansum(),
            "right": ((shown.argmax(dim=-1) == ids[:, 1:]) & mask.bool()).sum(),
            "likelihood": nn.functional.cross_entropy(shown[mask.bool()], ids[:, 1:][mask.bool()]),
            "size": torch.tensor(logits.size(0)),
        }
        return (loss, outputs) if return_outputs else (loss, seen)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=2, compute_entropy=False
    ):
        found = []
        for start in range(0, len(input_ids), batch_size):
            ids = input_ids[start : start + batch_size]
            mask = attention_mask[start : start + batch_size]
            logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=logits_to_keep + 1).logits
            logits = logits[:, :-1, :][:, -logits_to_keep:, :]
            rows = {"temperature": self.temperature, "row_mask": mask[:, -logits_to_keep:]}
            found.append(selective_log_softmax_and_entropy(logits, ids[:, -logits_to_keep:], True, **rows))
        logps, entropies = zip(*found, strict=True)
        return torch.cat(logps), torch.cat(entropies)


@contextlib.contextmanager
def running(running=fused.AS_ALWAYS):
    models = asked.Models(running)
    with contextlib.ExitStack() as stack:
        for name, make in gathered.FUNCTIONS.items():
            stack.callback(patch(sys.modules[__name__], name, make).remove)
        stack.callback(models.remove)
        for name, make in (("_compute_loss", asked._loss), ("_get_per_token_logps_and_entropies", asked._completions)):
            method = make(getattr(Trainer, name), models)
            stack.callback(patch(Trainer, name, lambda _, method=method: method).remove)
        yield


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids, other = torch.randint(5, VOCABULARY, (2, 4, 9), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, 6:] = 0
    mask = attention.clone()
    mask[:, :3] = 0
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "completion_mask": mask,
        "mismatched": {"input_ids": other, "attention_mask": torch.ones_like(other)},
        "KL_input_ids": other,
        "KL_completion_mask": mask,
    }


def scored(trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The loss and everything seen, and the gradients."""
    loss, seen = trainer._compute_loss(trainer.model, batch(), False)
    loss.backward()
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return {"loss": loss, **seen}, gradients


@pytest.mark.parametrize("model", ["llama", "gemma2", "qwen3-tied"])
def test_a_loss(model):
    trainer = Trainer(model)
    expected = scored(trainer)
    with running(), no_logits(trainer):
        found = scored(trainer)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(trainer.model) and not any("prefuse" in name for name in vars(trainer.model))
    assert scored(trainer)[0]["loss"] == expected[0]["loss"]


@pytest.mark.parametrize("model", ["llama", "gemma2"])
def test_completions(model):
    """Of parts of a batch, with a temperature, a gradient through the entropy and masked rows."""
    trainer, inputs = Trainer(model), batch()

    def answers() -> Any:
        logps, entropies = trainer._get_per_token_logps_and_entropies(
            trainer.model, inputs["input_ids"], inputs["attention_mask"], 5, compute_entropy=True
        )
        (logps.sum() + 0.3 * (entropies * inputs["attention_mask"][:, -5:]).sum()).backward()
        gradients = {name: weight.grad for name, weight in trainer.model.named_parameters()}
        trainer.model.zero_grad()
        return logps, entropies, gradients

    expected = answers()
    with running(), no_logits(trainer):
        torch.testing.assert_close(answers(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [{"use_liger_kernel": True}, {"use_weighting": True}, {"args": types.SimpleNamespace(use_weighting=True)}],
)
def test_what_runs_as_it_is(attributes):
    trainer = Trainer(**attributes)
    expected = scored(trainer)
    with running(), pytest.raises(AssertionError, match="the logits were made"), no_logits(trainer):
        scored(trainer)
    with running():
        torch.testing.assert_close(scored(trainer), expected, rtol=0, atol=0)


def test_outputs_that_are_asked_for():
    trainer = Trainer()
    with running():
        _, outputs = trainer._compute_loss(trainer.model, batch(), True)
    assert isinstance(outputs.logits, torch.Tensor)


def test_tokens_that_are_not_known():
    """A model that is called on other tokens than those of the batch makes logits."""
    trainer, inputs = Trainer(), batch()
    models = asked.Models(fused.AS_ALWAYS)
    ids = inputs["input_ids"]
    with models.asked([trainer.model], asked._known([(ids, ids)])):
        assert isinstance(trainer.model(ids).logits, gathered.Gathered)
        assert isinstance(trainer.model(ids.clone()).logits, gathered.Gathered)
        for other in ({"input_ids": ids + 0 * ids.flip(0) - (ids > 9).long()}, {"input_ids": ids[:, 1:]}):
            assert isinstance(trainer.model(**other).logits, torch.Tensor)
        assert isinstance(trainer.model(input_ids=ids, labels=ids).logits, torch.Tensor)
        assert isinstance(trainer.model(inputs_embeds=trainer.model.get_input_embeddings()(ids)).logits, torch.Tensor)
    assert isinstance(trainer.model(ids).logits, torch.Tensor)
    models.remove()
    assert "forward" not in vars(trainer.model)


def test_a_model_with_a_hook():
    """What a hook makes of the output is not known."""
    trainer = Trainer()
    expected = scored(trainer)
    hook = trainer.model.register_forward_hook(lambda module, given, output: output)
    with running(), pytest.warns(UserWarning, match="may change what the model returns"):
        found = scored(trainer)
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    hook = trainer.model.register_forward_hook(lambda module, given, output: output)
    with running(fused.Running("error")), pytest.raises(ValueError, match="may change what the model returns"):
        scored(trainer)
    hook.remove()


def test_prompts_that_are_shared():
    trainer = Trainer()
    expected = scored(trainer)
    with running(fused.Running(share_prompts=True)), no_logits(trainer):
        torch.testing.assert_close(scored(trainer), expected, rtol=1e-5, atol=1e-5)


def test_an_output_is_made_of_tensors():
    """Wrappers that look into outputs, as those of FSDP and accelerate, find and replace them."""
    from accelerate.utils import convert_outputs_to_fp32
    from torch.utils._pytree import tree_map

    trainer, ids = Trainer(), batch()["input_ids"]
    models = asked.Models(fused.AS_ALWAYS)
    with models.asked([trainer.model], asked._known([(ids, ids)])):
        output = trainer.model(ids)
    models.remove()
    expected = output.logits.log_probs()
    for again in (tree_map(lambda value: value, output), convert_outputs_to_fp32(lambda: output)()):
        assert torch.equal(again.logits.log_probs(), expected)
    doubled = tree_map(
        lambda value: value * 2 if torch.is_tensor(value) and value.is_floating_point() else value, output
    )
    assert torch.equal(doubled.logits.log_probs(), 2 * expected)
