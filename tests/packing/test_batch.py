"""Packed batches, and the way back."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse.packing import PackedBatch, pack, plan_batches, share

SEEDED = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(100, (length,), generator=SEEDED).tolist() for length in (20, 31)]
RESPONSES = [[1, 2, 3], [4], [5, 6], [1, 7, 8, 9]]
ROWS = [[*PROMPTS[row % 2], *response] for row, response in enumerate(RESPONSES)]


def padded(rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows)) + 2
    blanks = [[0] * (length - len(row)) for row in rows]
    ids = [[*blank, *row] if left else [*row, *blank] for row, blank in zip(rows, blanks, strict=True)]
    mask = [
        [0] * len(b) + [1] * len(r) if left else [1] * len(r) + [0] * len(b) for r, b in zip(rows, blanks, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def check(batch: PackedBatch, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
    """Every token comes back where it was, with its position."""
    valid = mask.bool()
    assert torch.equal(batch.unpack(batch.input_ids)[valid], ids[valid])
    assert torch.equal(batch.unpack(batch.position_ids)[valid], positions[valid])
    assert torch.equal(batch.pack(ids), batch.input_ids)
    assert batch.given == valid.sum()
    assert batch.spared == batch.given - batch.input_ids.numel() > 0


@pytest.mark.parametrize("left", [False, True])
def test_padded_rows_share_their_prompts(left):
    ids, mask = padded(ROWS, left)
    batch = share(ids, mask)
    assert batch is not None
    assert batch.spared == 51
    check(batch, ids, mask, mask.cumsum(1) - 1)


def test_positions_are_counted_or_given():
    ids, mask = padded(ROWS, left=True)
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    batch = share(ids, mask, absolute=True)
    assert batch is None  # no two rows are of one length, and so no prompt stands in the same columns
    assert share(ids, mask, columns) is None
    given = (mask.cumsum(1) - 1).clamp(min=0) * 2
    batch = share(ids, mask, given)
    assert batch is not None
    check(batch, ids, mask, given)
    right, mask = padded(ROWS)
    batch = share(right, mask, absolute=True)
    assert batch is not None
    check(batch, right, mask, columns)


def test_rows_that_are_packed_already():
    flat = torch.tensor([list(itertools.chain(*ROWS))])
    positions = torch.cat([torch.arange(len(row)) for row in ROWS])[None]
    batch = share(flat, None, positions)
    assert batch is not None
    check(batch, flat, torch.ones_like(flat), positions)
    assert batch.spared == 51
    # With a mask it is one row, whose tokens attend to all that come before.
    assert share(flat, torch.ones_like(flat), positions) is None


def test_nothing_to_share():
    ids, mask = padded([[*range(30)], [*range(1, 31)]])
    assert share(ids, mask) is None
    assert share(ids[:1], mask[:1]) is None
    gap, mask = padded(ROWS)
    mask[0, 3] = 0
    assert share(gap, mask) is None


def test_the_gradient_of_a_shared_token_is_summed():
    ids, mask = padded(ROWS)
    batch = share(ids, mask)
    assert batch is not None
    hidden = torch.randn(1, batch.tree.tokens, 3, requires_grad=True)
    weights = torch.randn(*ids.shape, 3) * mask[..., None]
    (batch.unpack(hidden) * weights).sum().backward()
    wanted = torch.zeros(batch.tree.tokens, 3).index_add_(0, batch.index.reshape(-1), weights.reshape(-1, 3))
    torch.testing.assert_close(hidden.grad[0], wanted)


def test_prompts_and_responses():
    prompts = [PROMPTS[0], torch.tensor(PROMPTS[1]), PROMPTS[0], PROMPTS[1]]
    batch = pack(prompts, RESPONSES)
    assert batch.labels.tolist() == [list(itertools.chain(*RESPONSES))]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6, 10]
    assert batch.unpack(batch.input_ids).tolist() == [list(itertools.chain(*ROWS))]
    # What predicts a label is the token before it on its row.
    before = batch.input_ids[0, batch.predictors]
    assert before.tolist() == list(
        itertools.chain(*(row[-len(r) - 1 : -1] for row, r in zip(ROWS, RESPONSES, strict=True)))
    )
    hidden = torch.randn(1, batch.tree.tokens, 8)
    assert torch.equal(batch.response_hidden(hidden)[0], hidden[0, batch.predictors])


def test_a_packed_batch_is_scored_as_the_padded_one():
    batch = pack([PROMPTS[0], PROMPTS[1]] * 2, RESPONSES)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, batch.tree.tokens, 8, generator=generator)
    weight = torch.randn(101, 8, generator=generator)
    score = prefuse.preference_loss(
        "simpo", hidden=batch.response_hidden(hidden), weight=weight, labels=batch.labels, cu_seqlens=batch.cu_seqlens
    )
    ids, mask = padded(ROWS)
    shared = share(ids, mask)
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) <= torch.tensor([20, 31, 20, 31])[:, None]), -100)
    rows = shared.unpack(hidden)
    assert shared.tree == batch.tree
    other = prefuse.preference_loss("simpo", hidden=rows, weight=weight, labels=labels, shift=True)
    torch.testing.assert_close(score.losses, other.losses)


def test_only_prompts_and_responses_have_labels():
    ids, mask = padded(ROWS)
    with pytest.raises(ValueError, match=r"hidden: this batch was made by share\(\)"):
        share(ids, mask).response_hidden(torch.zeros(1, 1, 1))


@pytest.mark.parametrize(
    ("prompts", "responses", "error", "said"),
    [
        ([[1]], [[1], [2]], ValueError, "prompts: expected one per response, 2, got 1"),
        ([], [], ValueError, "prompts: expected at least one, got none"),
        (
            [[1], []],
            [[1], [2]],
            ValueError,
            r"prompts\[1\]: expected token ids \[T\], at least one, got the shape \(0,\)",
        ),
        ([[1]], [[]], ValueError, r"responses\[0\]: expected token ids"),
        ([[1]], [[[1]]], ValueError, r"responses\[0\]: expected token ids"),
        ([[1]], [[0.5]], TypeError, r"responses\[0\]: expected integers, got float64"),
    ],
)
def test_what_cannot_be_packed_is_refused(prompts, responses, error, said):
    with pytest.raises(error, match=said):
        pack(prompts, responses)


def test_shapes_that_do_not_fit_are_refused():
    ids, mask = padded(ROWS)
    with pytest.raises(ValueError, match=r"input_ids: expected \[R, T\]"):
        share(ids[0])
    with pytest.raises(ValueError, match="attention_mask: expected the shape of input_ids"):
        share(ids, mask[:, 1:])
    with pytest.raises(ValueError, match="position_ids: expected the shape of input_ids"):
        share(ids, mask, mask[:1])


def test_batches_within_a_budget():
    prompts = [PROMPTS[row % 2] for row in range(4)]
    assert plan_batches(prompts, RESPONSES, tokens=61) == [[0, 1, 2, 3]]
    assert sorted(plan_batches(prompts, RESPONSES, tokens=36)) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="tokens: expected at least 36, the length of the prompt of row 1"):
        plan_batches(prompts, RESPONSES, tokens=35)
    with pytest.raises(ValueError, match="prompts: expected one per response"):
        plan_batches(prompts[1:], RESPONSES, tokens=35)
    for rows in plan_batches(prompts, RESPONSES, tokens=36):
        assert pack([prompts[row] for row in rows], [RESPONSES[row] for row in rows]).tree.tokens <= 36


def test_a_budget_counts_what_is_packed():
    """Short prompts stand once per response, and so does what is left of a prompt that begins as another does."""
    generator = torch.Generator().manual_seed(2)

    def made(length: int) -> list[int]:
        return torch.randint(1000, (length,), generator=generator).tolist()

    start = made(20)
    of_prompts = {"short": [made(10) for _ in range(3)], "alike": [start + made(10) for _ in range(3)]}
    for heads in of_prompts.values():
        prompts, responses = [prompt for prompt in heads for _ in range(4)], [made(3) for _ in range(12)]

        def packed(rows, prompts=prompts, responses=responses, **given):
            return pack([prompts[row] for row in rows], [responses[row] for row in rows], **given).tree.tokens

        alone = max(packed(range(first, first + 4)) for first in (0, 4, 8))
        for tokens in range(alone, packed(range(12)) + 1, 5):
            plan = plan_batches(prompts, responses, tokens=tokens)
            assert sorted(itertools.chain(*plan)) == list(range(12))
            assert max(map(packed, plan)) <= tokens
        assert plan_batches(prompts, responses, tokens=packed(range(12))) == [list(range(12))]
    with pytest.raises(ValueError, match="tokens: expected at least 52, the length of the prompt of row 0"):
        plan_batches([made(10)] * 4, [made(3) for _ in range(4)], tokens=30)
    assert plan_batches([[1] * 10] * 2, [[2, 3], [4]], tokens=13, minimum=1) == [[0, 1]]
