"""`prefuse.head` beside the logits of the model itself, for families of models and what they are wrapped in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prefuse
from tests.integration.models import FAMILIES, IMAGE, VOCABULARY, causal_lm, vision_language_model

pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(rows: int = 4, length: int = 9) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens with padding in front of every other row, and labels without prompt and padding."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::2, :2] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": tokens, "attention_mask": mask}, labels


def logps_of(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """From the model's own logits, in the alignment of `labels`."""
    logits = model(**inputs).logits[:, -labels.shape[-1] :]
    logps = torch.log_softmax(logits[:, :-1].double(), -1)
    found = logps.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
    return nn.functional.pad(found, (1, 0)).masked_fill(labels == -100, 0)


def simpo_of(logps: Tensor, labels: Tensor, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    means = logps.sum(-1) / (labels != -100).sum(-1)
    chosen, rejected = means.chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected) - gamma).mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected[name], rtol=rtol, atol=atol + rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    model = causal_lm(family).train()
    inputs, labels = batch()
    head = prefuse.head(model)
    expected = logps_of(model, inputs, labels)
    torch.testing.assert_close(head.token_logps(labels, inputs=inputs).double(), expected, rtol=1e-5, atol=1e-5)
    sums = head.sequence_logps(labels, inputs=inputs)
    torch.testing.assert_close(sums.double(), expected.sum(-1), rtol=1e-5, atol=1e-5)

    loss = simpo_of(expected, labels)
    if model.config.to_dict().get("output_router_logits"):
        loss = loss + model.config.router_aux_loss_coef * model(**inputs).aux_loss
    score = head.preference_loss("simpo", labels=labels, inputs=inputs, beta=2.0, gamma=1.0)
    torch.testing.assert_close(score.loss.double(), loss, rtol=1e-5, atol=1e-6, check_dtype=False)
    score.loss.backward()
    found = gradients(model)
    loss.backward()
    same(found, gradients(model))


def test_copies_and_pickles_are_models_of_their_own():
    model = causal_lm("llama")
    inputs, labels = batch()
    head = prefuse.head(model)
    before = head.token_logps(labels, inputs=inputs)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.lm_head.weight)
    uniform = prefuse.head(twin).token_logps(labels, inputs=inputs)
    torch.testing.assert_close(uniform[labels != -100].exp(), torch.full_like(uniform, 1 / VOCABULARY)[labels != -100])
    assert twin(**inputs).logits.abs().max() == 0
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(prefuse.head(loaded).token_logps(labels, inputs=inputs), before)


def test_remove_puts_the_forward_back():
    model = causal_lm("llama")
    inputs, labels = batch()
    with prefuse.head(model) as head:
        assert prefuse.head(model) == head
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
    with pytest.raises(RuntimeError, match=r"removed from its model; call prefuse\.head"):
        head.token_logps(labels, inputs=inputs)
    model.forward = own = lambda *args, **kwargs: type(model).forward(model, *args, **kwargs)
    prefuse.head(model).remove()
    assert model.forward is own


def test_vision_and_language():
    model = vision_language_model()
    inputs, labels = batch()
    inputs["input_ids"][:, 2:6] = IMAGE
    labels[:, :6] = -100
    inputs["pixel_values"] = torch.randn(4, 3, 8, 8)
    head = prefuse.head(model)
    found = head.token_logps(labels, inputs=inputs)
    expected = logps_of(model, inputs, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    mine = gradients(model)
    expected.sum().backward()
    same(mine, gradients(model))


def test_numbers_that_the_forward_does_not_use_are_left_alone():
    """The text configuration of Aya Vision has a logit_scale that the vision-language model does not apply."""
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, SiglipVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=SiglipVisionConfig(**sizes, image_size=8, patch_size=4),
            text_config=Cohere2Config(**sizes, vocab_size=VOCABULARY, num_key_value_heads=2, logit_scale=0.125),
            image_token_index=IMAGE,
        )
    )
    inputs, labels = batch()
    found = prefuse.head(model).token_logps(labels, inputs=inputs)
    torch.testing.assert_close(found.double(), logps_of(model, inputs, labels), rtol=1e-5, atol=1e-5)


def with_peft(family: str = "llama", **options: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    model = causal_lm(family)
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "lora_bias": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["body", "head", "head with bias", "saved head"],
)
def test_peft(options):
    model = with_peft(**options)
    inputs, labels = batch()
    head = prefuse.head(model)
    expected = logps_of(model, inputs, labels)
    found = head.token_logps(labels, inputs=inputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    mine = gradients(model)
    assert mine
    expected.sum().backward()
    same(mine, gradients(model))
    with model.disable_adapter():
        base = head.token_logps(labels, inputs=inputs)
        torch.testing.assert_close(base.double(), logps_of(model, inputs, labels), rtol=1e-5, atol=1e-5)
    assert (base - found).abs().max() > 0.01


def test_several_adapters_on_the_head_and_merged_ones():
    peft = pytest.importorskip("peft")
    model = with_peft(target_modules=["lm_head"])
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["lm_head"]))
    model.base_model.set_adapter(["default", "other"])
    inputs, labels = batch()
    head = prefuse.head(model)
    expected = logps_of(model, inputs, labels)
    torch.testing.assert_close(head.token_logps(labels, inputs=inputs).double(), expected, rtol=1e-5, atol=1e-5)
    model.merge_adapter()
    torch.testing.assert_close(head.token_logps(labels, inputs=inputs).double(), expected, rtol=1e-5, atol=1e-4)
    with model.disable_adapter():
        head.token_logps(labels, inputs=inputs)
        assert not model.base_model.lm_head.merged  # as in the layer's own forward


def test_prompt_tuning():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        causal_lm("llama"), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    inputs, labels = batch()
    labels[:, 0] = -100
    found = prefuse.head(model).token_logps(labels, inputs=inputs)
    torch.testing.assert_close(found.double(), logps_of(model, inputs, labels), rtol=1e-5, atol=1e-5)
    score = prefuse.head(model).preference_loss("simpo", labels=labels, inputs=inputs)
    torch.testing.assert_close(score.losses.mean(), simpo_of(found, labels), rtol=1e-4, atol=1e-5)


def test_bfloat16_with_float32_adapters():
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(causal_lm("llama").bfloat16(), options)
    assert model.base_model.lm_head.lora_A["default"].weight.dtype == torch.float32
    inputs, labels = batch()
    found = prefuse.head(model).token_logps(labels, inputs=inputs)
    torch.testing.assert_close(found.double(), logps_of(model, inputs, labels), rtol=0.02, atol=0.05)
    found.sum().backward()
    assert model.base_model.lm_head.lora_B["default"].weight.grad.dtype == torch.float32


def test_accelerate_before_and_after(accelerator):
    """Autocast, which accelerate lays around the forward, is on inside the model whichever came first."""
    inputs, labels = batch()
    first, last = causal_lm("llama"), causal_lm("llama")
    prefuse.head(first)
    first, last = accelerator.prepare(first), accelerator.prepare(last)
    seen = [prefuse.head(model).token_logps(labels, inputs=inputs) for model in (first, last)]
    assert torch.equal(*seen)
    dtypes = []
    first(**inputs, fused=lambda hidden, tensors: dtypes.append(torch.is_autocast_enabled("cpu")))
    last(**inputs, fused=lambda hidden, tensors: dtypes.append(torch.is_autocast_enabled("cpu")))
    assert dtypes == [True, True]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(seen[0].double(), logps_of(causal_lm("llama"), inputs, labels), rtol=0.02, atol=0.05)
    head = prefuse.head(first)
    head.remove()  # accelerate's forward lies around the patched one, which stays and does nothing
    with pytest.raises(RuntimeError, match="removed"):
        first(**inputs, fused=print)
    assert first(**inputs).logits.dtype == torch.float32
    bare = accelerator.unwrap_model(first, keep_fp32_wrapper=False)
    plain = prefuse.head(causal_lm("llama")).token_logps(labels, inputs=inputs)
    assert torch.equal(prefuse.head(bare).token_logps(labels, inputs=inputs), plain)


@pytest.fixture
def accelerator() -> Iterator[object]:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_compiled():
    model = causal_lm("llama")
    inputs, labels = batch()
    expected = prefuse.head(model).preference_loss("simpo", labels=labels, inputs=inputs)
    compiled = torch.compile(model, backend="aot_eager")
    head = prefuse.head(compiled)
    for step in range(3):
        score = head.preference_loss("simpo", labels=labels, inputs=inputs)
        score.loss.backward()
        if step == 0:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(score.loss, expected.loss)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # nothing was compiled anew
    torch._dynamo.reset()


def fails(error, match, model, **changes):
    inputs, labels = batch()
    with pytest.raises(error, match=match):
        prefuse.head(model).token_logps(labels, **{"inputs": inputs, **changes})


def test_what_is_no_causal_lm():
    from transformers import LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

    with pytest.raises(TypeError, match=r"model: expected a transformers causal LM.*Linear"):
        prefuse.head(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"got LlamaModel, which has no LM head"):
        prefuse.head(LlamaModel(LlamaConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)))
    with pytest.raises(TypeError, match=r"got T5ForConditionalGeneration"):
        prefuse.head(T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=4, d_ff=4, num_layers=1, num_heads=1)))
    with pytest.raises(TypeError, match=r"got str"):
        prefuse.head("llama")
    with pytest.raises(TypeError, match=r"DataParallel copies"):
        prefuse.head(nn.DataParallel(causal_lm("llama")))


def test_heads_that_cannot_be_fused_are_refused_where_that_is_asked_for():
    peft = pytest.importorskip("peft")
    model = causal_lm("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"expected an LM head that is an nn\.Linear.*got torch.*Sequential"):
        prefuse.head(model, fallback="error")
    with pytest.raises(ValueError, match=r"fallback: expected 'logits' or 'error', got 'yes'"):
        prefuse.head(model, fallback="yes")
    inputs, labels = batch()
    refused = [
        ("has dropout", with_peft(target_modules=["lm_head"], lora_dropout=0.1).train()),
        ("variant of LoRA", with_peft(target_modules=["lm_head"], use_dora=True)),
    ]
    for match, model in refused:
        with pytest.raises(ValueError, match=match):
            prefuse.head(model, fallback="error").token_logps(labels, inputs=inputs)
    ia3 = peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"got peft\.tuners\.ia3"):
        prefuse.head(peft.get_peft_model(causal_lm("llama"), ia3), fallback="error")


def test_dropout_on_the_heads_adapter_is_no_matter_in_evaluation():
    model = with_peft(target_modules=["lm_head"], lora_dropout=0.1).eval()
    inputs, labels = batch()
    found = prefuse.head(model).token_logps(labels, inputs=inputs)
    torch.testing.assert_close(found.double(), logps_of(model, inputs, labels), rtol=1e-5, atol=1e-5)


def test_arguments_are_checked():
    inputs, labels = batch()
    model = causal_lm("llama")
    fails(TypeError, "inputs: expected the model's arguments by name, got Tensor", model, inputs=inputs["input_ids"])
    fails(TypeError, "inputs: holds labels", model, inputs={**inputs, "labels": labels.clone()})
    for keep in (2, torch.arange(3)):
        fails(TypeError, "logits_to_keep: given with fused", model, inputs={**inputs, "logits_to_keep": keep})
    prefuse.head(model).token_logps(labels, inputs={**inputs, "labels": labels})  # the same ones
    with pytest.raises(TypeError, match="softcap"):  # the head gives it
        prefuse.head(model).token_logps(labels, inputs=inputs, softcap=2.0)


def test_packed_responses():
    """Responses end to end in one row, each with positions of its own: the same numbers as padded ones."""
    model = causal_lm("llama", attn_implementation="eager")
    tokens = torch.randint(3, VOCABULARY, (2, 6))
    labels = tokens.clone()
    labels[:, :2] = -100
    head = prefuse.head(model)
    expected = head.token_logps(labels, inputs={"input_ids": tokens})
    alone = torch.block_diag(*[torch.ones(6, 6)] * 2).tril().bool()
    inputs = {
        "input_ids": tokens.reshape(1, -1),
        "position_ids": torch.arange(6).repeat(2)[None],
        "attention_mask": torch.zeros(1, 1, 12, 12).masked_fill(~alone, -torch.inf),
    }
    packed = {"labels": labels.reshape(1, -1), "inputs": inputs, "cu_seqlens": torch.tensor([0, 6, 12])}
    torch.testing.assert_close(head.token_logps(**packed), expected.reshape(1, -1))
    torch.testing.assert_close(head.sequence_logps(**packed), expected.sum(-1))
    losses = [
        head.preference_loss("simpo", **given).loss
        for given in (packed, {"labels": labels, "inputs": {"input_ids": tokens}})
    ]
    torch.testing.assert_close(*losses)


def test_reference_and_gradients_of_losses():
    model, reference = causal_lm("llama"), causal_lm("llama", seed=1)
    inputs, labels = batch()
    with torch.no_grad():
        of_reference = prefuse.head(reference).token_logps(labels, inputs=inputs)
    head = prefuse.head(model)
    score = head.preference_loss(
        "dpo", labels=labels, inputs=inputs, reference=of_reference, beta=0.3, reduction="none"
    )
    margins = (logps_of(model, inputs, labels) - of_reference).sum(-1)
    expected = -nn.functional.logsigmoid(0.3 * (margins[:2] - margins[2:]))
    torch.testing.assert_close(score.losses.double(), expected, rtol=1e-5, atol=1e-5)
    (score.losses * torch.tensor([1.0, 3.0])).sum().backward()
    found = gradients(model)
    (expected * torch.tensor([1.0, 3.0])).sum().backward()
    same(found, gradients(model))
    assert score.metrics["rewards/margins"] == pytest.approx(
        (0.3 * (margins[:2] - margins[2:])).mean().item(), rel=1e-4
    )
