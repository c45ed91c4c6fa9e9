"""`share_prompts=True`: the same numbers and gradients as without, for every objective and way of training."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prefuse
from prefuse.models import sharing
from prefuse.models.sharing import Counts, way_of
from prefuse.objectives import get
from tests.linear.test_preference import VARIANTS, columns_for, variant_id

from .models import FAMILIES, causal_lm

pytest.importorskip("transformers")

PROMPT, LONGEST = 24, 9
SHARING = [family for family in FAMILIES if family != "recurrent-gemma"]


def batch(rows: int = 4, prompts: int = 2, left: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and labels: row r answers prompt r modulo their number, and its length differs from the others'."""
    generator = torch.Generator().manual_seed(5)
    heads = torch.randint(5, 90, (prompts, PROMPT), generator=generator)
    ids, mask = torch.zeros(2, rows, PROMPT + LONGEST, dtype=torch.long)
    for row in range(rows):
        length = PROMPT + LONGEST - row % 4
        tokens = torch.cat([heads[row % prompts], torch.randint(5, 90, (length - PROMPT,), generator=generator)])
        place = slice(-length, None) if left else slice(length)
        ids[row, place], mask[row, place] = tokens, 1
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) <= PROMPT), -100)
    return {"input_ids": ids, "attention_mask": mask}, labels


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def same(
    model: nn.Module,
    scored: Callable[[prefuse.Head], Tensor],
    rtol: float = 1e-5,
    spared: bool = True,
    **options: Any,
) -> list[str]:
    """What `scored` makes of the head, and all gradients, with and without; what was warned of."""
    values, grads = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for share in (False, True):
            with prefuse.head(model, share_prompts=share, **options) as head:
                before = copy.copy(head.tokens)
                made = scored(head)
                grads.append(gradients(model, made.sum()))
                values.append(made.detach())
                since = head.tokens.since(before)
                assert (since.computed < since.given) == (share and spared)
    torch.testing.assert_close(*values, rtol=rtol, atol=rtol)
    assert grads[0].keys() == grads[1].keys()
    for name, right in grads[0].items():
        error = float((grads[1][name] - right).norm())
        assert error <= rtol * float(right.norm()) + 1e-7, (name, error)
    return [str(each.message) for each in caught if "share_prompts" in str(each.message)]


def logps(inputs: dict[str, Tensor], labels: Tensor) -> Callable[[prefuse.Head], Tensor]:
    weights = torch.linspace(-1, 1, labels.numel()).view(labels.shape)
    return lambda head: head.token_logps(labels, inputs=inputs) * weights


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", SHARING)
def test_families(family, left):
    assert same(causal_lm(family).eval(), logps(*batch(left=left))) == []


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"sliding_window": 8}),
        ("gemma2", {"sliding_window": 8, "attn_implementation": "eager", "attn_logit_softcapping": 0.5}),
        ("qwen3", {"attn_implementation": "eager"}),
        ("mixtral", {"sliding_window": 6}),
    ],
    ids=str,
)
def test_attentions(family, changes):
    assert same(causal_lm(family, **changes).eval(), logps(*batch())) == []


@functools.cache
def small() -> nn.Module:
    """One layer in float64."""
    return causal_lm("llama", num_hidden_layers=1).double().eval()


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_every_objective(variant):
    name, parameters = variant
    objective = get(name)(**parameters)
    rows, columns = columns_for(objective)
    inputs, labels = batch(rows, 3)
    tokens = labels.shape[1]  # columns by token come for another batch
    options = {name: v.repeat(1, tokens)[:, :tokens] if v.ndim == 2 else v for name, v in columns.items()}
    if any(column.startswith("ref_") and column not in columns for column in objective.columns):
        with torch.no_grad():
            states = small().model(**inputs).last_hidden_state
        options["reference"] = states + 0.1 * states.roll(1, -1)
    scored = functools.partial(
        prefuse.Head.preference_loss, objective=objective, labels=labels, inputs=inputs, **options
    )
    same(small(), lambda head: scored(head).loss, rtol=1e-6)  # their norms are float32


def lora(model: nn.Module, *modules: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=list(modules), task_type="CAUSAL_LM", init_lora_weights=False)
    found: nn.Module = peft.get_peft_model(model, config)
    return found


def test_lora_and_its_disabled_adapters_as_reference():
    model = lora(causal_lm("llama"), "q_proj", "lm_head", "down_proj").eval()
    inputs, labels = batch()

    def scored(head: prefuse.Head) -> Tensor:
        with torch.no_grad(), model.disable_adapter():
            reference = head.sequence_logps(labels, inputs=inputs)
        return head.preference_loss("dpo", labels=labels, inputs=inputs, reference=reference).loss

    assert same(model, scored) == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = causal_lm("qwen3").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert same(model, logps(*batch())) == []


def test_a_shared_prompt_has_one_mask_of_dropout():
    """So two rows of one prompt, of which only responses differ, agree in what they make of it."""
    model = causal_lm("phi", resid_pdrop=0.5).train()
    inputs, _ = batch()
    tokens = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)  # prompts, too
    made = []
    for share in (False, True):
        with prefuse.head(model, share_prompts=share) as head, torch.no_grad():
            torch.manual_seed(0)
            made.append(head.token_logps(tokens, inputs=inputs)[:, : PROMPT - 1])
    assert float((made[0][0] - made[0][2]).abs().max()) > 0.1
    assert torch.equal(made[1][0], made[1][2]) and torch.equal(made[1][1], made[1][3])


def error_from_float32(model: nn.Module, share: bool, run: Callable[[nn.Module, bool], Tensor]) -> tuple[float, float]:
    """Of values and gradients, root mean squares beside those of the model in float64."""
    exact = copy.deepcopy(model).double()
    right = run(exact, False)
    wanted = gradients(exact, right.sum())
    found = run(model, share)
    made = gradients(model, found.sum())
    off = sum(float((made[name].double() - value).norm() ** 2) for name, value in wanted.items()) ** 0.5
    return float((found.detach() - right.detach()).norm()), off


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_bf16_is_no_farther_from_exact(autocast):
    inputs, labels = batch(8, 4)
    weights = torch.linspace(-1, 1, labels.numel()).view(labels.shape)

    def run(model: nn.Module, share: bool) -> Tensor:
        narrow = autocast and next(model.parameters()).dtype == torch.float32
        with prefuse.head(model, share_prompts=share) as head, torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return head.token_logps(labels, inputs=inputs).double() * weights

    errors = []
    for seed in range(4):
        model = causal_lm("llama", seed=seed).eval()
        model = model if autocast else model.bfloat16()
        errors.append([error_from_float32(model, share, run) for share in (False, True)])
    for part in range(2):
        whole, shared = (sum(each[way][part] ** 2 for each in errors) ** 0.5 for way in range(2))
        assert shared < 1.15 * whole  # the sums of four draws are that certain


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_the_router_loss_counts_a_prompt_as_often_as_it_is_used(family):
    inputs, labels = batch()
    scored = functools.partial(prefuse.Head.preference_loss, objective="simpo", labels=labels, inputs=inputs)
    model = causal_lm(family).eval()
    assert same(model, lambda head: scored(head).loss) == []
    with prefuse.head(model) as head:  # and it is there
        score = head.preference_loss("simpo", labels=labels, inputs=inputs)
        assert float(score.loss.detach() - score.losses.detach().mean()) > 0.01


def test_rows_packed_end_to_end():
    inputs, labels = batch()
    valid = inputs["attention_mask"].bool()
    lengths = valid.sum(1)
    flat = {
        "input_ids": inputs["input_ids"][valid][None],
        "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
    }
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0))
    scored = functools.partial(
        prefuse.Head.preference_loss, objective="simpo", labels=labels[valid][None], inputs=flat, cu_seqlens=offsets
    )
    assert same(causal_lm("llama").eval(), lambda head: scored(head).loss) == []


def test_one_call_may_differ_from_the_head():
    inputs, labels = batch()
    with prefuse.head(causal_lm("llama").eval()) as head:
        head.preference_loss("simpo", labels=labels, inputs=inputs)
        assert head.tokens.given == 0
        head.preference_loss("simpo", labels=labels, inputs=inputs, share_prompts=True)
        computed = int(inputs["attention_mask"].sum()) - 2 * PROMPT  # neither padding nor a prompt again
        assert head.tokens == Counts(inputs["input_ids"].numel(), computed)


def test_a_line_says_what_was_spared(caplog):
    inputs, labels = batch()
    with caplog.at_level(logging.INFO, "prefuse"), prefuse.head(causal_lm("llama").eval(), share_prompts=True) as head:
        head.token_logps(labels, inputs=inputs)
        head.token_logps(labels, inputs=inputs)
    computed = int(inputs["attention_mask"].sum()) - 2 * PROMPT
    assert caplog.messages == [
        "LlamaForCausalLM shares prompts (no mask)",
        f"prompts are shared: {computed} of the first batch's {labels.numel()} tokens are computed",
    ]


def test_a_model_is_tried_once(monkeypatch):
    """However often heads are put on and taken off."""
    model, (inputs, labels) = causal_lm("llama").eval(), batch()
    tried = []
    monkeypatch.setattr(sharing, "_tried", lambda *given, own=sharing._tried: tried.append(1) or own(*given))
    for _ in range(3):
        with prefuse.head(model, share_prompts=True) as head:
            head.token_logps(labels, inputs=inputs)
    assert len(tried) == 1


# Where rows are computed whole


def test_where_nothing_is_shared():
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(5, 90, (4, 30), generator=generator)
    assert same(causal_lm("llama").eval(), logps({"input_ids": ids}, ids), spared=False) == []


def test_labels_at_padding_keep_their_numbers():
    inputs, labels = batch(left=True)
    first = inputs["attention_mask"].argmax(1)
    labels[1, first[1]] = 7  # padding predicts it
    assert same(causal_lm("llama").eval(), logps(inputs, labels), spared=False) == []


def test_a_number_beside_the_tokens_is_no_hindrance():
    inputs, labels = batch()
    given = {**inputs, "num_items_in_batch": torch.tensor(8)}
    assert same(causal_lm("llama").eval(), logps(given, labels)) == []


def refused(family: str, said: str, inputs: dict[str, Tensor] | None = None, **changes: Any) -> None:
    given, labels = batch()
    messages = same(causal_lm(family, **changes).eval(), logps(given | (inputs or {}), labels), spared=False)
    assert len(messages) == 1
    assert said in messages[0]


def test_states_that_pass_from_token_to_token():
    refused("recurrent-gemma", "RecurrentGemmaForCausalLM are computed whole: it has layers that pass a state")


def test_embeddings_of_the_callers_own():
    model = causal_lm("llama").eval()
    inputs, labels = batch()
    given = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach(), **inputs}
    del given["input_ids"]
    (said,) = same(model, logps(given, labels), spared=False)
    assert "it is not called with input_ids [R, T]" in said


def test_what_a_model_is_given_besides():
    ids = batch()[0]["input_ids"]
    refused("llama", "cache_position is given, too", {"cache_position": torch.arange(ids.shape[1])})


def hooked(kind: str) -> nn.Module:
    """A model whose tokens meet outside of its attention."""
    model = causal_lm("llama").eval()

    def mixes(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + 0.1 * output.cumsum(1) if kind == "sums" else output * (1 + 1e-3 * output.shape[1])

    model.model.layers[0].mlp.register_forward_hook(mixes)
    return model


@pytest.mark.parametrize(
    ("kind", "said"),
    [("sums", "depends on the other rows that are packed with it"), ("counts", "come out otherwise than whole ones")],
)
def test_tokens_that_meet_outside_of_attention(kind, said):
    (message,) = same(hooked(kind), logps(*batch()), spared=False)
    assert said in message


def test_windows_that_are_not_kept_are_not_exceeded():
    """An attention that is not told of its window shares rows that are shorter, and names those that are longer."""
    model = causal_lm("llama").eval()
    model.config.sliding_window = 40
    inputs, labels = batch()
    assert same(model, logps(inputs, labels)) == []
    assert [way.limit for way in way_of(model)] == [40]
    longer = {name: torch.cat([value[:, :PROMPT], value], 1) for name, value in inputs.items()}
    more = torch.cat([labels[:, :PROMPT], labels], 1)
    with prefuse.head(model, share_prompts=True) as head, pytest.warns(UserWarning, match="has windows of 40 tokens"):
        head.token_logps(more, inputs=longer)
