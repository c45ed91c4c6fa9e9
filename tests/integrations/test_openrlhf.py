"""`prefuse.integrations.openrlhf` beside a stand-in of OpenRLHF's modules, or the real ones, and float64."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse.integrations import openrlhf as ours
from prefuse.integrations._places import digest
from tests.devices import integers, normal
from tests.integrations.standins import Modules, install, is_real, modules_of

UTILS, ACTOR, LOSS, RING = (f"openrlhf.models.{name}" for name in ("utils", "actor", "loss", "ring_attn_utils"))


def theirs_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def theirs_entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return logits.logsumexp(-1) - (p * logits).sum(-1)


def unpad_input(tokens: Tensor, mask: Tensor) -> tuple[Any, ...]:
    """flash-attn's, of [B, T, …]: the tokens of the mask, their places, where rows begin, the longest row, lengths."""
    lengths = mask.sum(-1, dtype=torch.int32)
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    places = mask.flatten().nonzero()[:, 0]
    return tokens.flatten(0, 1)[places], places, starts, int(lengths.max()), lengths


def pad_input(tokens: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    """flash-attn's way back: [B, T, …], 0 elsewhere."""
    whole = tokens.new_zeros((batch * length, *tokens.shape[1:])).index_copy(0, places, tokens)
    return whole.unflatten(0, (batch, length))


FLASH = {
    "flash_attn.bert_padding": {
        "unpad_input": unpad_input,
        "pad_input": pad_input,
        "index_first_axis": lambda tokens, places: tokens[places],
        "rearrange": lambda tokens, pattern: tokens.flatten(0, 1),
    },
    "flash_attn.utils.distributed": {"all_gather": None},
    "deepspeed": {},
    "pylatexenc": {"latex2text": None},
}
"""What OpenRLHF imports and needs a GPU, or is not used here."""


class Actor(torch.nn.Module):
    """The whole logits in float32, divided by the temperature; tokens are scored by what follows them."""

    def __init__(self, pretrain_or_model: Any, temperature: float = 1.0, packing_samples: bool = False) -> None:
        super().__init__()
        self.model, self.temperature, self.packing_samples = pretrain_or_model, temperature, packing_samples

    def forward(
        self,
        sequences: Any,
        action_mask: Any = None,
        attention_mask: Any = None,
        return_output: Any = False,
        allgather_logits: Any = False,
        return_logprobs: Any = False,
        ring_attn_group: Any = None,
        packed_seq_lens: Any = None,
        return_entropy: Any = False,
        **mm_inputs: Any,
    ) -> Any:
        indices = None
        if self.packing_samples:
            ids, positions, labels, _, indices = unpad_and_slice(sequences, attention_mask, None)
            mask = None
        else:
            ids, labels, mask = sequences, sequences.roll(-1, 1), attention_mask
            positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 1)
        output = self.model(ids, attention_mask=mask, position_ids=positions, **mm_inputs)
        output["logits"] = output["logits"].float() / self.temperature

        def whole(found: Tensor) -> Tensor:
            return found if indices is None else gather_and_pad(found, None, 0, indices, *sequences.shape)

        if return_entropy:
            assert return_output
            output.entropy = whole(theirs_entropy(output["logits"]))[:, :-1]
        if action_mask is None and not return_logprobs:
            return output
        logps = whole(theirs_logprobs(output["logits"], labels))[:, :-1]
        if action_mask is not None:
            logps = logps[:, -action_mask.shape[1] :] * action_mask.float()
        return (logps, output) if return_output else logps


def unpad_and_slice(sequences: Tensor, mask: Tensor, group: Any) -> tuple[Any, ...]:
    labels = sequences.roll(-1, 1)
    ids, places, *_ = unpad_input(sequences, mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0).flatten()[places]
    return ids[None], positions[None], labels.flatten()[places][None], 0, places


def gather_and_pad(found: Tensor, group: Any, pad: int, places: Tensor, batch: int, length: int) -> Tensor:
    return pad_input(found[0], places, batch, length)


class DPOLoss(torch.nn.Module):
    def __init__(self, beta: float, label_smoothing: float = 0.0, ipo: bool = False) -> None:
        super().__init__()
        self.beta, self.label_smoothing, self.ipo = beta, label_smoothing, ipo

    def forward(
        self,
        policy_chosen_logps: Any,
        policy_rejected_logps: Any,
        reference_chosen_logps: Any,
        reference_rejected_logps: Any,
    ) -> Any:
        chosen, rejected = (
            policy_chosen_logps - reference_chosen_logps,
            policy_rejected_logps - reference_rejected_logps,
        )
        margin = chosen - rejected
        likely, unlikely = (torch.nn.functional.logsigmoid(sign * self.beta * margin) for sign in (1, -1))
        losses = -(1 - self.label_smoothing) * likely - self.label_smoothing * unlikely
        if self.ipo:
            losses = (margin - 1 / (2 * self.beta)) ** 2
        return losses.mean(), self.beta * chosen.detach(), self.beta * rejected.detach()


@pytest.fixture
def openrlhf(monkeypatch: pytest.MonkeyPatch) -> Modules:
    if is_real("openrlhf"):
        missing = {root for root in ("flash_attn", "deepspeed", "pylatexenc") if not is_real(root)}
        for path, module in modules_of(FLASH).items():
            if path.partition(".")[0] in missing:
                monkeypatch.setitem(sys.modules, path, module)
        import peft  # noqa: F401  before transformers looks for DeepSpeed

        return {path: importlib.import_module(path) for path in (UTILS, ACTOR, LOSS)}
    monkeypatch.setattr(ours, "_FORWARDS", {digest(Actor.forward)})
    parts = {"unpad_and_slice_tensor": unpad_and_slice, "gather_and_pad_tensor": gather_and_pad}
    contents: dict[str, dict[str, Any]] = {
        UTILS: {"log_probs_from_logits": theirs_logprobs, "compute_entropy": theirs_entropy},
        ACTOR: {"Actor": Actor, "log_probs_from_logits": theirs_logprobs, **parts},
        LOSS: {"DPOLoss": DPOLoss},
    }
    return install(monkeypatch, "openrlhf", "0.11.2", contents)


def small_model(**changes: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "use_cache": False,
    }
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **changes)
    if "num_experts" in changes:
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, moe_intermediate_size=16, head_dim=8))
    return Qwen2ForCausalLM(Qwen2Config(**sizes, initializer_range=0.3))


def actor_of(modules: Modules, model: Any, temperature: float = 1.0, packing: bool = False) -> Any:
    actor = modules[ACTOR].Actor(model, temperature=temperature)
    actor.packing_samples = packing  # the real one sets it for models by name alone
    return actor


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [3, 9] with padding on both sides, their mask, and which of the last 5 are actions."""
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = mask[1, 7:] = 0
    actions = torch.ones(3, 5, dtype=torch.bool)
    actions[1, 3:] = False
    actions[2, 0] = False
    return integers(97, 3, 9, seed=5), mask, actions


def run(actor: Any, up: Tensor | None, *args: Any, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Results and the gradients of all parameters."""
    actor.zero_grad()
    found = actor(*args, **kwargs)
    logps, output = found if isinstance(found, tuple) else (found, types.SimpleNamespace())
    entropy, aux_loss = (getattr(output, name, None) for name in ("entropy", "aux_loss"))
    loss = (logps * (normal(*logps.shape, seed=7) if up is None else up)).sum()
    loss = loss + (0 if entropy is None else (entropy * normal(*entropy.shape, seed=8)).sum())
    loss = loss + (0 if aux_loss is None else aux_loss)
    loss.backward()
    gradients = [p.grad.clone() for p in actor.parameters() if p.grad is not None]
    return [each.detach() for each in (logps, entropy, aux_loss) if each is not None], gradients


CALLS: dict[str, dict[str, Any]] = {
    "log-probs": {"return_logprobs": True},
    "log-probs and output": {"return_logprobs": True, "return_output": True},
    "entropy": {"return_logprobs": True, "return_output": True, "return_entropy": True},
    "actions": {"action_mask": True},
    "actions and entropy": {"action_mask": True, "return_output": True, "return_entropy": True},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["dense", "tied", "experts", "packed"])
def test_actor_as_openrlhf(openrlhf: Modules, call: str, kind: str) -> None:
    changes = {"experts": {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}}
    model = small_model(tie_word_embeddings=kind == "tied", **changes.get(kind, {}))
    actor = actor_of(openrlhf, model, 0.8, kind == "packed")
    tokens, mask, actions = batch()
    kwargs = {**CALLS[call], "attention_mask": mask}
    if "action_mask" in kwargs:
        kwargs["action_mask"] = actions
    theirs, theirs_gradients = run(actor, None, tokens, **kwargs)
    with prefuse.integrations.openrlhf.accelerate() as acceleration:
        assert len(acceleration.places) == 4
        found, gradients = run(actor, None, tokens, **kwargs)
    assert len(found) == len(theirs) and len(gradients) == len(theirs_gradients)
    assert (len(found) == 3) == (kind == "experts" and "entropy" in call)
    for a, b in zip(found, theirs, strict=True):
        assert (a.dtype, a.shape) == (torch.float32, b.shape)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    scale = max(float(b.abs().max()) for b in theirs_gradients)
    for a, b in zip(gradients, theirs_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("packing", [False, True])
def test_actor_makes_no_logits(openrlhf: Modules, packing: bool) -> None:
    model = small_model()
    tokens, mask, actions = batch()
    actor = actor_of(openrlhf, model, packing=packing)
    with prefuse.integrations.openrlhf.accelerate():
        _, output = actor(tokens, actions, attention_mask=mask, return_output=True)
        assert "logits" not in output and prefuse.head(model, fallback="error").fresh is False
        actor(tokens, actions, attention_mask=mask)  # raises where the model makes its logits
    assert "_prefuse_head" not in vars(model)


def test_actor_in_bfloat16_is_no_less_exact(openrlhf: Modules) -> None:
    """OpenRLHF's own rounds logits to 16 bits before it converts them, as the fused head does."""
    model, tokens = small_model(), integers(97, 6, 12, seed=5)
    mask = torch.ones_like(tokens)
    right, _ = run(
        actor_of(openrlhf, small_model().double(), 0.8), None, tokens, attention_mask=mask, return_logprobs=True
    )
    actor = actor_of(openrlhf, model.bfloat16(), 0.8)
    theirs, _ = run(actor, None, tokens, attention_mask=mask, return_logprobs=True)
    with prefuse.integrations.openrlhf.accelerate():
        found, _ = run(actor, None, tokens, attention_mask=mask, return_logprobs=True)
    assert found[0].dtype == torch.float32
    errors = [float((each[0].double() - right[0]).norm()) for each in (found, theirs)]
    assert errors[0] <= 1.02 * errors[1], errors


def test_logits_alone_come_from_openrlhf(openrlhf: Modules) -> None:
    model = small_model()
    tokens, mask, _ = batch()
    actor = actor_of(openrlhf, model, 0.5)
    theirs = actor(tokens, attention_mask=mask, return_output=True).logits
    with prefuse.integrations.openrlhf.accelerate():
        found = actor(tokens, attention_mask=mask, return_output=True, return_entropy=True)
        with pytest.raises(AssertionError):
            actor(tokens, attention_mask=mask, return_entropy=True)
    torch.testing.assert_close(found.logits, theirs, rtol=0, atol=0)
    torch.testing.assert_close(found.entropy, theirs_entropy(theirs)[:, :-1], rtol=1e-5, atol=1e-5)


class Odd(torch.nn.Module):
    """No model of transformers."""

    def forward(self, ids: Tensor, **given: Any) -> dict[str, Tensor]:
        return {"logits": torch.nn.functional.one_hot(ids, 97).float()}


def test_a_model_without_a_head_is_left_to_openrlhf(openrlhf: Modules) -> None:
    actor = actor_of(openrlhf, Odd())
    tokens, mask, actions = batch()
    theirs = actor(tokens, actions, mask)
    with prefuse.integrations.openrlhf.accelerate(), pytest.warns(UserWarning, match="OpenRLHF's own forward runs"):
        found = actor(tokens, actions, mask)
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_log_probs_from_logits_leaves_the_logits(openrlhf: Modules, dtype: torch.dtype) -> None:
    logits, labels = (normal(3, 7, 41, seed=0) * 6).to(dtype), integers(41, 3, 7, seed=1)
    kept, right = logits.clone(), theirs_logprobs(logits.double().clone(), labels, 0.7)
    with prefuse.integrations.openrlhf.accelerate():
        for module in (openrlhf[UTILS], openrlhf[ACTOR]):
            found = module.log_probs_from_logits(logits, labels, temperature=0.7)
            torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-5)
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(logits, kept)
    leaf = kept.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours.log_probs_from_logits(leaf, labels, 0.7).sum(), leaf)
    exact = kept.double().requires_grad_()
    (expected,) = torch.autograd.grad(theirs_logprobs(exact * 1, labels, 0.7).sum(), exact)
    torch.testing.assert_close(gradient, expected.to(dtype))


@pytest.mark.parametrize(("smoothing", "ipo"), [(0.0, False), (0.2, False), (0.0, True), (0.3, True)])
def test_dpo_loss(openrlhf: Modules, smoothing: float, ipo: bool) -> None:
    columns = [normal(6, seed=seed) * 30 - 100 for seed in range(4)]
    loss = openrlhf[LOSS].DPOLoss(0.15, smoothing, ipo)

    def all_of(dtype: torch.dtype) -> list[Tensor]:
        given = [column.to(dtype).requires_grad_(i < 2) for i, column in enumerate(columns)]
        found, chosen, rejected = loss(*given)
        assert not chosen.requires_grad and not rejected.requires_grad
        return [found, chosen, rejected, *torch.autograd.grad(found, given[:2])]

    right = all_of(torch.float64)
    with prefuse.integrations.openrlhf.accelerate():
        found = all_of(torch.float32)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6)


def test_removed(openrlhf: Modules) -> None:
    places = [(openrlhf[ACTOR].Actor, "forward"), (openrlhf[LOSS].DPOLoss, "forward")]
    places += [(openrlhf[path], "log_probs_from_logits") for path in (UTILS, ACTOR)]
    before = [getattr(*place) for place in places]
    acceleration = prefuse.integrations.openrlhf.accelerate()
    assert all(getattr(*place) is not own for place, own in zip(places, before, strict=True))
    acceleration.remove()
    assert [getattr(*place) for place in places] == before


def test_heads_go_with_the_last(openrlhf: Modules) -> None:
    tokens, mask, actions = batch()
    models = [small_model(), small_model()]
    first, second = prefuse.integrations.openrlhf.accelerate(), prefuse.integrations.openrlhf.accelerate()
    actor_of(openrlhf, models[0])(tokens, actions, mask)
    first.remove()
    assert "_prefuse_head" in vars(models[0])
    actor_of(openrlhf, models[1])(tokens, actions, mask)
    own = prefuse.head(small_model())
    second.remove()
    assert not any("_prefuse_head" in vars(model) for model in models)
    assert "_prefuse_head" in vars(own.causal_lm)  # the user's


@pytest.mark.parametrize("name", ["Actor", "unpad_and_slice_tensor"])
def test_another_openrlhf_is_refused(openrlhf: Modules, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(openrlhf[ACTOR], name)
    with pytest.raises(RuntimeError, match=f"(?s)tried with openrlhf 0.11.2.*{name}.*Nothing was changed"):
        prefuse.integrations.openrlhf.accelerate()


def test_another_forward_is_refused(openrlhf: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_FORWARDS", frozenset())
    with pytest.raises(RuntimeError, match=r"Actor\.forward with a source that prefuse knows"):
        prefuse.integrations.openrlhf.accelerate()
