"""`prefuse.head` beside the logits of the model itself, for families of models and what they are wrapped in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prefuse
from tests.integration.models import FAMILIES, VOCABULARY, causal_lm, vision_language_model

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
    tokens = torch.randint(3, VOCABULARY - 1, (rows, length), generator=generator)
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
