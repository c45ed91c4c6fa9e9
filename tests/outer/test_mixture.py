"""The geometric mixture, alone and inside `generate`."""

import math

import pytest
import torch

from prefuse.outer import ReferenceMixture, geometric_mixture

transformers = pytest.importorskip("transformers")


def test_a_known_mixture():
    policy, reference = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.2, 0.8]).log()
    torch.testing.assert_close(geometric_mixture(policy, reference, 0.5).exp(), torch.tensor([0.5, 0.5]))
    third = geometric_mixture(policy, reference, 1 / 3).exp()
    odds = (0.8 / 0.2) ** (2 / 3) * (0.2 / 0.8) ** (1 / 3)
    assert third[0].item() == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("weight", [0.0, 0.125, 1.0])
def test_ends_shifts_and_bans(weight):
    torch.manual_seed(0)
    policy, reference = torch.randn(3, 7), torch.randn(3, 7)
    mixed = geometric_mixture(policy, reference, weight)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(geometric_mixture(policy + 5.0, reference - 3.0, weight), mixed)
    if weight in (0.0, 1.0):
        torch.testing.assert_close(mixed, (reference if weight else policy).log_softmax(-1))
    banned = policy.clone()
    banned[:, 2] = -math.inf
    result = geometric_mixture(banned, reference, weight)
    assert not result.isnan().any()
    assert weight == 1.0 or (result[:, 2] == -math.inf).all()


def test_what_a_mixture_refuses():
    with pytest.raises(ValueError, match="weight"):
        geometric_mixture(torch.zeros(2), torch.zeros(2), 1.1)
    with pytest.raises(ValueError, match="reference"):
        geometric_mixture(torch.zeros(2), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="weight"):
        ReferenceMixture(torch.nn.Linear(1, 1), -0.1)


def model(seed):
    """With absolute positions, so that a wrong one shows."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=24,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


PROMPTS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
MASK = (PROMPTS != 0).long()


def by_hand(policy, reference, weight, tokens):
    """Greedy decoding, every prefix from scratch, one row at a time and without padding."""
    rows = []
    for prompt in PROMPTS:
        row = prompt[prompt != 0]
        for _ in range(tokens):
            logits = [net(input_ids=row[None]).logits[0, -1] for net in (policy, reference)]
            row = torch.cat([row, geometric_mixture(*logits, weight).argmax()[None]])
        rows.append(row[-tokens:])
    return torch.stack(rows)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@torch.no_grad()
def test_generate_samples_from_the_mixture_of_padded_prompts(weight):
    policy, reference = model(0), model(1)
    processor = ReferenceMixture(reference, weight, attention_mask=MASK)
    arguments = {"do_sample": False, "max_new_tokens": 6, "logits_processor": [processor]}
    for _ in range(2):  # the second time with what the first left in the processor
        out = policy.generate(PROMPTS, attention_mask=MASK, **arguments)
        assert torch.equal(out[:, 4:], by_hand(policy, reference, weight, 6))


@torch.no_grad()
def test_other_sequences_of_one_more_token_do_not_meet_the_cache():
    """As where beams change places, or another prompt follows."""
    reference = model(1)
    processor, scores = ReferenceMixture(reference, 1.0), torch.zeros(2, 24)
    before = torch.randint(1, 24, (2, 5), generator=torch.Generator().manual_seed(0))
    processor(before, scores)
    swapped = torch.cat([before.flip(0), torch.tensor([[3], [4]])], 1)
    torch.testing.assert_close(processor(swapped, scores), reference(input_ids=swapped).logits[:, -1].log_softmax(-1))


def test_a_mask_of_other_rows_is_refused():
    processor = ReferenceMixture(model(1), 0.5, attention_mask=MASK)
    with pytest.raises(ValueError, match="attention_mask"):
        processor(torch.ones(4, 5, dtype=torch.int64), torch.zeros(4, 24))
