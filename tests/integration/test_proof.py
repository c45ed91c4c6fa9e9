"""The head is fused where its product is the model's own logits; elsewhere the numbers are those of the logits."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prefuse

from .models import FAMILIES, causal_lm

pytest.importorskip("transformers")


def tokens() -> Tensor:
    return torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(2))


def right(model: nn.Module, ids: Tensor, **inputs: object) -> Tensor:
    """log p [B, T − 1] from the model's own logits."""
    logits = model(input_ids=ids, **inputs).logits[:, -ids.shape[1] : -1].double()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def gradients(model: nn.Module, logps: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    (logps * weights).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def check(model: nn.Module, said: str | None, **inputs: object) -> None:
    """The numbers and all gradients are the model's; `said` stands in the one warning, None: there is none."""
    ids = tokens()
    expected = right(model, ids, **inputs)
    trained = any(parameter.requires_grad for parameter in model.parameters()) and expected.requires_grad
    wanted = gradients(model, expected) if trained else {}
    head = prefuse.head(model)
    given = {"input_ids": ids, **inputs}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = head.token_logps(ids, inputs=given)[:, 1:]
        sums = head.sequence_logps(ids, inputs=given)
        loss = head.preference_loss("simpo", labels=ids, inputs=given).losses.mean()  # without a router loss
    messages = [str(each.message) for each in caught if "by its logits" in str(each.message)]
    assert len(messages) == (said is not None), messages
    assert said is None or said in messages[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.double(), expected.sum(1), rtol=1e-5, atol=1e-4)
    means = expected.mean(1)
    torch.testing.assert_close(
        loss.double(), -nn.functional.logsigmoid(2 * (means[0] - means[1]) - 1), rtol=1e-4, atol=1e-5
    )
    if trained:
        made = gradients(model, found)
        assert made.keys() == wanted.keys()
        for name, gradient in made.items():
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6 + 1e-4 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_heads_are_fused(family: str):
    check(causal_lm(family).eval(), None)


def modernbert(**changes: object) -> nn.Module:
    """Dense, activation and norm come before its decoder."""
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    torch.manual_seed(0)
    config = ModernBertDecoderConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        **changes,
    )
    model = ModernBertDecoderForCausalLM(config)
    with torch.no_grad():
        model.decoder.weight.mul_(8)
    return model.eval()


def test_a_transform_before_the_head_is_the_models_own():
    check(modernbert(), None)
    check(modernbert(tie_word_embeddings=False), None)


def test_a_transform_before_the_head_makes_no_logits():
    model, ids = modernbert(), tokens()
    head = prefuse.head(model)
    head.token_logps(ids, inputs={"input_ids": ids})
    seen: list[int] = []
    model.decoder.register_forward_hook(size_of(seen))
    head.token_logps(ids, inputs={"input_ids": ids})
    assert seen[-1] == 0


def size_of(seen: list[int]) -> Callable[..., None]:
    """A hook that changes nothing and passes for one of torch's own."""

    def hook(_module: object, _args: object, output: Tensor) -> None:
        seen.append(output.numel())

    hook.__module__ = "torch.distributed.fsdp"
    return hook


def test_a_transform_before_the_head_in_a_training_with_dropout_and_checkpoints():
    model, ids = modernbert(embedding_dropout=0.2).train(), tokens()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    expected = right(model, ids)
    wanted = gradients(model, expected)
    head = prefuse.head(model, fallback="error")
    torch.manual_seed(5)
    found = head.token_logps(ids, inputs={"input_ids": ids})[:, 1:]
    made = gradients(model, found)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert made.keys() == wanted.keys()
    for name, gradient in made.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_lora_on_the_decoder_behind_a_transform():
    config = peft().LoraConfig(r=2, target_modules=["decoder", "dense"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(4)
    tuned = peft().get_peft_model(modernbert(), config).eval()
    assert type(tuned.get_base_model().get_output_embeddings()).__module__.startswith("peft")
    check(tuned, None)


def test_a_head_that_is_called_on_the_tokens_in_parts():
    model = causal_lm("llama").eval()
    base = type(model)

    class Parts(base):  # type: ignore[misc,valid-type]
        def forward(self, input_ids: Tensor, **_: object) -> object:
            from transformers.modeling_outputs import CausalLMOutput

            hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
            parts = [self.lm_head(part) for part in hidden.split(8, dim=1)]
            return CausalLMOutput(logits=parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    model.__class__ = Parts
    ids = tokens()
    expected = right(model, ids)  # two parts, where six tokens are one
    found = prefuse.head(model).token_logps(ids, inputs={"input_ids": ids})[:, 1:]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_caught_head_that_is_called_in_parts_is_refused():
    model = modernbert()
    base = type(model)

    class Parts(base):  # type: ignore[misc,valid-type]
        def forward(self, input_ids: Tensor, **_: object) -> object:
            from transformers.modeling_outputs import CausalLMOutput

            hidden = self.lm_head(self.model(input_ids=input_ids).last_hidden_state)
            parts = [self.decoder(part) for part in hidden.split(8, dim=1)]
            return CausalLMOutput(logits=parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    model.__class__ = Parts
    ids = tokens()
    with pytest.raises(ValueError, match=r"model: expected Parts to call its LM head once.*got 2 times"):
        prefuse.head(model).token_logps(ids, inputs={"input_ids": ids})


def halved(output: object) -> object:
    return type(output)(logits=output.logits / 2)


def hook_on_the_head(model: nn.Module) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: output / 2)


def hook_before_the_head(model: nn.Module) -> None:
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 2,))


def hook_on_the_model(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, args, output: halved(output))


def forward_of_the_head(model: nn.Module) -> None:
    model.lm_head.forward = lambda hidden: nn.functional.linear(hidden, model.lm_head.weight) / 2


def forward_of_the_model(model: nn.Module) -> None:
    own = model.forward
    model.forward = lambda *args, **kwargs: halved(own(*args, **kwargs))


def own_linear(model: nn.Module) -> None:
    class Halved(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) / 2

    head = Halved(32, 96, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head


def sequence(model: nn.Module) -> None:
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())


def old_weight_norm(model: nn.Module) -> None:
    torch.nn.utils.weight_norm(model.lm_head)


def trained_scale_of_one(model: nn.Module) -> None:
    """Exact today, and another model after a step."""
    base = type(model)

    class Scaled(base):  # type: ignore[misc,valid-type]
        def forward(self, *args: object, **kwargs: object) -> object:
            output = base.forward(self, *args, **kwargs)
            return type(output)(logits=output.logits * self.temperature)

    model.temperature = nn.Parameter(torch.ones(()))
    model.__class__ = Scaled


def masked_classes(model: nn.Module) -> None:
    base = type(model)

    class Masked(base):  # type: ignore[misc,valid-type]
        def forward(self, *args: object, **kwargs: object) -> object:
            output = base.forward(self, *args, **kwargs)
            closed = torch.arange(output.logits.shape[-1]) > 92
            return type(output)(logits=output.logits.masked_fill(closed, -1e9))

    model.__class__ = Masked


MEANS: list[tuple[Callable[[nn.Module], None], str]] = [
    (hook_on_the_head, "is hooked onto it"),
    (hook_before_the_head, "is hooked onto it"),
    (hook_on_the_model, "may change what the model returns"),
    (forward_of_the_head, "its forward was replaced"),
    (forward_of_the_model, "it computes more (div)"),
    (own_linear, "a forward of its own"),
    (sequence, "a forward of its own"),
    (old_weight_norm, "is hooked onto it"),
    (trained_scale_of_one, "it computes more (mul)"),
    (masked_classes, "it computes more (masked_fill)"),
]


@pytest.mark.parametrize(("change", "said"), MEANS, ids=[change.__name__ for change, _ in MEANS])
def test_heads_that_are_more_than_a_product(change: Callable[[nn.Module], None], said: str):
    model = causal_lm("llama").eval()
    change(model)
    check(model, said)


@pytest.mark.parametrize("change", [hook_on_the_head, forward_of_the_head, own_linear, forward_of_the_model])
def test_what_changes_after_the_first_call_is_noticed(change: Callable[[nn.Module], None]):
    model = causal_lm("llama").eval()
    ids = tokens()
    prefuse.head(model).token_logps(ids, inputs={"input_ids": ids})
    change(model)
    with pytest.warns(UserWarning, match="by its logits"):
        found = prefuse.head(model).token_logps(ids, inputs={"input_ids": ids})[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(found.double(), right(model, ids), rtol=1e-5, atol=1e-5)


def test_a_parametrised_weight_is_a_plain_product():
    model = causal_lm("llama").eval()
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    check(model, None)


def test_a_resized_vocabulary_is_proven_anew():
    model = causal_lm("qwen3-tied").eval()
    check(model, None)
    model.resize_token_embeddings(101)
    check(model, None)


def test_the_refusal_names_the_head_and_the_reason():
    model = causal_lm("llama").eval()
    trained_scale_of_one(model)
    with pytest.raises(ValueError, match=r"Scaled cannot be fused: .*computes more \(mul\)"):
        prefuse.head(model, fallback="error").token_logps(tokens(), inputs={"input_ids": tokens()})


def test_a_copy_is_proven_for_itself():
    model = causal_lm("llama").eval()
    check(model, None)
    other = copy.deepcopy(model)
    hook_on_the_head(other)
    check(other, "is hooked onto it")


def test_a_proven_model_is_let_go():
    model = causal_lm("llama").eval()
    prefuse.head(model).token_logps(tokens(), inputs={"input_ids": tokens()})
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_wrappers_of_unknown_classes_are_refused():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(TypeError, match=r"Wrapper around a model, and what it makes of its logits is not known"):
        prefuse.head(Wrapper(causal_lm("llama")))


def test_the_proof_leaves_the_random_numbers_of_a_training_as_they_were():
    model = causal_lm("llama", attention_dropout=0.3).train()
    ids = tokens()
    head = prefuse.head(model)
    head.token_logps(ids, inputs={"input_ids": ids})
    proven = copy.deepcopy(model)
    found = []
    for each in (causal_lm("llama", attention_dropout=0.3).train(), proven):
        torch.manual_seed(1)
        found.append(prefuse.head(each).token_logps(ids, inputs={"input_ids": ids}))
    assert torch.equal(*found)


def test_no_gradient_is_lost_under_autocast():
    """Autocast keeps cast weights: those that were cast for the proof have no gradient."""
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        model = causal_lm("llama")
        made = gradients(model, prefuse.head(model).token_logps(ids, inputs={"input_ids": ids}))
    assert made.keys() == dict(model.named_parameters()).keys()


METHODS: dict[str, Callable[[], object]] = {
    "dora": lambda: peft().LoraConfig(target_modules=["lm_head"], use_dora=True),
    "ia3": lambda: peft().IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
    "vblora": lambda: peft().VBLoRAConfig(target_modules=["lm_head"], vector_length=4, num_vectors=8, topk=1, r=2),
    "randlora": lambda: peft().RandLoraConfig(target_modules=["lm_head"], r=2),
    "gralora": lambda: peft().GraloraConfig(target_modules=["lm_head"], r=4),
    "vera": lambda: peft().VeraConfig(target_modules=["lm_head"], r=2),
    "loha": lambda: peft().LoHaConfig(target_modules=["lm_head"], r=2),
    "lokr": lambda: peft().LoKrConfig(target_modules=["lm_head"], r=2),
}


def peft() -> object:
    return pytest.importorskip("peft")


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_the_head_that_are_no_plain_lora(method: str):
    try:
        config = METHODS[method]()
    except AttributeError:
        pytest.skip(f"this peft has no {method}")
    config.task_type = "CAUSAL_LM"
    model = peft().get_peft_model(causal_lm("llama"), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    check(model, "LM head")


@pytest.mark.parametrize("names", [["default", "second"], ["__base__", "second"]])
def test_an_adapter_for_each_row(names: list[str]):
    config = peft().LoraConfig(
        r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(4)
    model = peft().get_peft_model(causal_lm("llama"), config)
    model.add_adapter("second", config)
    model.eval()
    ids = tokens()
    with torch.no_grad():
        expected = right(model, ids, adapter_names=names)
        with pytest.warns(UserWarning, match="by its logits"):
            found = prefuse.head(model).token_logps(ids, inputs={"input_ids": ids, "adapter_names": names})
    torch.testing.assert_close(found[:, 1:].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options"), [("JetMoe", {"aux_loss_coef": 0.1}), ("Mixtral", {"router_aux_loss_coef": 0.1})]
)
def test_router_losses_take_the_models_own_coefficient(family: str, options: dict[str, float]):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        pad_token_id=0,
        num_key_value_heads=2,
        num_attention_heads=4,
        kv_channels=8,
        num_local_experts=4,
        **{"num_experts_per_tok": 2, "output_router_logits": True, **options},
    )
    torch.manual_seed(0)
    check_router_loss(getattr(transformers, f"{family}ForCausalLM")(config).eval())


def test_the_router_loss_of_dbrx_whose_coefficient_is_in_a_part_of_its_configuration():
    from transformers import DbrxConfig, DbrxForCausalLM

    config = DbrxConfig(
        vocab_size=96,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        pad_token_id=0,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "moe_loss_weight": 0.1},
        output_router_logits=True,
    )
    torch.manual_seed(0)
    check_router_loss(DbrxForCausalLM(config).eval())


def check_router_loss(model: nn.Module) -> None:
    """What is added to the loss is what the model's own loss adds."""
    ids = tokens()
    with torch.no_grad():
        with_router = model(input_ids=ids, labels=ids, output_router_logits=True).loss
        added = with_router - model(input_ids=ids, labels=ids, output_router_logits=False).loss
        score = prefuse.head(model).preference_loss("simpo", labels=ids, inputs={"input_ids": ids})
    assert added > 0.01
    torch.testing.assert_close(score.loss - score.losses.mean(), added, rtol=1e-3, atol=1e-5)


def test_a_cache_is_left_as_it_was_where_the_model_does_not_take_tokens_alone():
    """Of prefix tuning: a trial with the cache at hand would write into it."""
    model = causal_lm("llama").eval()
    base = type(model)

    class Prefixed(base):  # type: ignore[misc,valid-type]
        def forward(self, *args: object, past_key_values: object = None, **kwargs: object) -> object:
            if past_key_values is None:
                raise ValueError("past_key_values: missing")
            return base.forward(self, *args, past_key_values=past_key_values, **kwargs)

    model.__class__ = Prefixed
    tuned = peft().get_peft_model(model, peft().PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    check(tuned.eval(), "could not be tried: ValueError: past_key_values: missing")


def test_an_image_in_front_asks_for_labels_of_its_length():
    from transformers import GitConfig, GitForCausalLM

    torch.manual_seed(0)
    config = GitConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
    )
    model = GitForCausalLM(config).eval()
    ids, pixels = tokens(), torch.randn(2, 3, 8, 8)
    inputs = {"input_ids": ids, "pixel_values": pixels}
    head = prefuse.head(model)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"labels: expected one per position .*\(2, 17, .*got \(2, 12\).*in front"):
            head.token_logps(ids, inputs=inputs)
        labels = nn.functional.pad(ids, (5, 0), value=-100)
        labels[:, 5] = -100
        found = head.token_logps(labels, inputs=inputs)[:, -11:]
        torch.testing.assert_close(found.double(), right(model, ids, pixel_values=pixels), rtol=1e-5, atol=1e-5)
