"""Each of PEFT's methods, on the head, the embedding and inner layers: exact, fused or by the model's own logits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("peft")

import peft

import prefuse
from tests.models.adapters import NO_PLACE, REFUSED, adapted, cases, found, llama, methods
from tests.models.cases import case
from tests.models.sweep import compare, own

CASES = cases()
NOT_HERE = {"ADAMSS"}
"""Methods that ask for another package."""

FUSED_HEADS = ("LORA", "LORA, rsLoRA", "LORA, bias", "LORA, PiSSA")


@pytest.mark.parametrize("method", methods())
def test_method_is_exact_wherever_peft_takes_it(method: str) -> None:
    verdicts = [found(*each, train=not each[2]) for each in CASES if each[0] == method]
    for each in verdicts:
        assert each.what in ("exact, fused", "exact, by logits", REFUSED), each
    taken = [each for each in verdicts if each.what != REFUSED]
    assert taken or method in NOT_HERE, verdicts
    for each in taken:
        plain = method in FUSED_HEADS or (method == "LORA, trained tokens" and not each.tied)
        assert each.place != "head" or (each.what == "exact, fused") == plain, each


VIRTUAL = [method for method, place, tied in CASES if place == NO_PLACE and not tied]


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_before_a_model_that_makes_its_logits(method: str) -> None:
    verdict = found(method, NO_PLACE, False, hooked=True)
    assert verdict.what == "exact, by logits", verdict


@pytest.mark.filterwarnings("ignore:prefuse:UserWarning")
@pytest.mark.parametrize("method", VIRTUAL)
def test_the_first_token_is_scored_where_a_virtual_one_predicts_it(method: str) -> None:
    """The same by hidden states and by logits; prefix tuning and cartridges have no position for it."""
    sums = []
    given = case("no")
    inputs = given.inputs | ({"task_ids": torch.tensor([0, 1])} if "MULTITASK" in method else {})
    for hooked in (False, True):
        model = adapted(method, NO_PLACE, False).eval()
        with torch.no_grad():
            if hooked:
                model.get_base_model().register_forward_hook(lambda *_: None)
            head = prefuse.head(model)
            first = head.token_logps(given.labels, inputs=inputs)[:, 0]
            sums.append(head.sequence_logps(given.labels, inputs=inputs))
        assert bool((first != 0).all()) == (method not in ("PREFIX_TUNING", "CARTRIDGE"))
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("target", "said"), [("v_proj", "exact, fused"), ("lm_head", "exact, by logits")])
def test_a_mixed_model(target: str, said: str) -> None:
    """Two methods at once, of PEFT's own wrapper."""
    model = peft.get_peft_model(
        llama(False), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), mixed=True
    )
    model.add_adapter("second", peft.LoHaConfig(r=4, target_modules=[target], init_weights=False))
    model.set_adapter(["default", "second"])
    model.eval()
    given = [case("left")]
    assert compare(model, given, [own(model, each) for each in given])[0] == said


@pytest.mark.parametrize("method", ["CPT", "PROMPT_TUNING"])
def test_a_disabled_prompt_puts_nothing_in_front(method: str) -> None:
    model = adapted(method, NO_PLACE, False).eval()
    given = case("no")
    head = prefuse.head(model, fallback="error")
    with torch.no_grad(), model.disable_adapter():
        logps = head.token_logps(given.labels, inputs=given.inputs)
        logits = model(**given.inputs).logits[:, :-1].log_softmax(-1)
    assert bool((logps[:, 0] == 0).all())
    expected = logits.gather(-1, given.labels[:, 1:, None])[..., 0]
    torch.testing.assert_close(logps[:, 1:], expected, rtol=1e-5, atol=1e-5)
