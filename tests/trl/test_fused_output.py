"""One call of a model with TRL's fused head, by TRL and by prefuse: every field, and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

import prefuse.trl
from prefuse.compat.trl import OPTIONAL_OUTPUTS
from prefuse.trl import fused
from tests.integration.models import VOCABULARY, causal_lm

pytestmark = pytest.mark.filterwarnings("ignore")

FIELDS = ("loss", "log_probs", *OPTIONAL_OUTPUTS, "label_mask", "aux_loss")


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(5, VOCABULARY, (3, 8), generator=generator)
    return {"input_ids": tokens, "labels": tokens.masked_fill(torch.rand(3, 8, generator=generator) < 0.3, -100)}


def outcome(model: nn.Module, options: dict[str, Any]) -> dict[str, Tensor]:
    """The output, and the gradients of a sum over what has one."""
    output = model(**{**batch(), **options}, fused_lm_head=True)
    total = output.loss + sum(
        (values * torch.linspace(-1, 2, values.numel()).view_as(values)).sum()
        for values in (output.log_probs, output.entropy)
    )
    total.backward()
    found = {name: getattr(output, name) for name in FIELDS if getattr(output, name) is not None}
    found |= {f"d{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {}),
    "bias": ("phi", {"temperature": 0.6}, {}),
    "softcap": ("gemma2", {"temperature": 1.3}, {"num_items_in_batch": 7}),
    "scale": ("cohere", {}, {"num_items_in_batch": torch.tensor(5)}),
    "divided": ("granite", {}, {}),
    "router loss": ("mixtral", {}, {"attention_mask": torch.ones(3, 8, dtype=torch.long)}),
    "shifted labels": ("qwen3", {}, {"labels": None, "shift_labels": batch()["labels"]}),
    "no label": ("llama", {}, {"labels": torch.full((3, 8), -100)}),
    "head in float32": ("llama", {"cast_lm_head_to_fp32": True}, {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_same_output(call):
    family, settings, options = CALLS[call]
    model = causal_lm(family)
    bf16 = "cast_lm_head_to_fp32" in settings
    if bf16:
        model = model.bfloat16()
    add_fused_lm_head(model, outputs=("log_probs", *OPTIONAL_OUTPUTS), **settings)
    expected = outcome(model, options)
    assert fused.patch(model) is model
    found = outcome(model, options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        scale = value.float().abs().max().item()
        rtol = 1e-2 if bf16 and name.startswith("d") else 1e-5
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=rtol * max(scale, 1), msg=lambda m, n=name: f"{n}: {m}"
        )
    if call == "no label":
        assert all(found[name].abs().max() == 0 for name in found if name not in ("label_mask", "is_top1"))


def test_prompt_tuning():
    peft = pytest.importorskip("peft")
    model = causal_lm("llama")
    add_fused_lm_head(model)
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    given = batch() | {"attention_mask": torch.ones(3, 8, dtype=torch.long)}
    expected = tuned(**given, fused_lm_head=True)
    fused.patch(tuned)
    found = tuned(**given, fused_lm_head=True)
    assert found.log_probs.shape == (3, 10)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.label_mask, expected.label_mask)


def test_only_the_scored_tokens_meet_the_head():
    """Also on the CPU, where TRL scores all: hidden states that are NaN elsewhere do no harm."""
    model = causal_lm("llama")
    add_fused_lm_head(model)
    fused.patch(model)
    given = batch()
    ignored = given["labels"].roll(-1, -1) == -100

    def spoil(_module: nn.Module, _arguments: Any, output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state.masked_fill(ignored[..., None], torch.nan)

    model.model.register_forward_hook(spoil)
    output = model(**given, fused_lm_head=True)
    assert not output.log_probs.isnan().any()
    output.loss.backward()
    assert not model.lm_head.weight.grad.isnan().any()


def test_the_forward_without_the_fused_head_is_the_models():
    model = causal_lm("llama")
    given = batch()
    expected = model(**given)
    add_fused_lm_head(model)
    fused.patch(model)
    found = model(**given)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
    assert torch.equal(
        model.generate(given["input_ids"][:1], max_new_tokens=3, do_sample=False)[:, :8], given["input_ids"][:1]
    )


def test_beside_a_head_of_prefuses():
    """Either may come first, and go first."""
    given = batch()
    for order in ("head first", "head last"):
        model = causal_lm("llama")
        add_fused_lm_head(model)
        trls = model.forward
        if order == "head first":
            head = prefuse.head(model)
        fused.patch(model)
        if order == "head last":
            head = prefuse.head(model)
        found = model(**given, fused_lm_head=True).log_probs
        logps = head.token_logps(given["labels"], inputs={"input_ids": given["input_ids"]})
        torch.testing.assert_close(found, logps[:, 1:])
        fused.unpatch(model)
        assert torch.equal(head.token_logps(given["labels"], inputs={"input_ids": given["input_ids"]}), logps)
        head.remove()
        assert model.forward == trls
        torch.testing.assert_close(model(**given, fused_lm_head=True).log_probs, found, rtol=1e-5, atol=1e-5)
