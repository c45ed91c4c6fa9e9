"""Attention along the paths of a tree, beside a dense mask in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefuse.packing import PrefixTree, TreeMask, tree_attention
from prefuse.packing import attention as packed
from tests.packing.test_tree import PAIR

pytest.importorskip("transformers")

HEADS, KEY_HEADS, SIZE = 6, 2, 16
WINDOWS = (None, 1, 2, 4, 12, 40)
GROUPS = PrefixTree((7, 5, 5, 5, 9, 6, 3, 3, 2, 2, 2), (-1, 0, 0, 0, -1, 4, 5, 5, 4, -1, -1))
"""Responses of one length, at once and one by one; a response that branches again; rows that share nothing."""


class Layer(nn.Module):
    """What transformers' attention functions read of a layer."""

    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def inputs(tree: PrefixTree, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def made(heads: int) -> Tensor:
        values = torch.randn(1, tree.tokens, heads, SIZE, generator=generator, dtype=torch.float64)
        return values.to(dtype).transpose(1, 2).requires_grad_()

    return made(HEADS), made(KEY_HEADS), made(KEY_HEADS)


def allowed(tree: PrefixTree, window: int | None) -> Tensor:
    """[N, N], token by token from the definition."""
    owner = [segment for segment, length in enumerate(tree.lengths) for _ in range(length)]
    depth = [tree.depths[s] + place - tree.starts[s] for place, s in enumerate(owner)]
    found = torch.zeros(tree.tokens, tree.tokens, dtype=torch.bool)
    for query in range(tree.tokens):
        for key in range(query + 1):
            near = window is None or depth[query] - depth[key] < window
            found[query, key] = owner[key] in tree.path(owner[query]) and near
    return found


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None = None) -> Tensor:
    query, key, value = (
        query.double(),
        *(each.double().repeat_interleave(HEADS // KEY_HEADS, 1) for each in (key, value)),
    )
    scores = query @ key.mT * SIZE**-0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def eager(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any) -> Any:
    """An attention of a model's own, with a cap of the scores, and a mask that is added."""
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (key, value))
    scores = query @ key.mT * SIZE**-0.5
    if given.get("softcap") is not None:
        scores = given["softcap"] * torch.tanh(scores / given["softcap"])
    return ((scores + mask).softmax(-1) @ value).transpose(1, 2), None


def flash_attention_forward(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **given: Any) -> Any:
    """Stands for flash attention with lengths of its own: causal to the lower right, with a window."""
    assert mask is None
    assert given["position_ids"] is None
    parts = []
    ends = zip(given["cu_seq_lens_q"].tolist()[1:], given["cu_seq_lens_k"].tolist()[1:], strict=True)
    first = first_key = 0
    for last, last_key in ends:
        rows, keys = last - first, last_key - first_key
        assert rows <= given["max_length_q"]
        assert keys <= given["max_length_k"]
        distance = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)
        window = given["sliding_window"] or keys
        span = slice(first_key, last_key)
        mask = (distance >= 0) & (distance < window)
        parts.append(reference(query[:, :, first:last], key[:, :, span], value[:, :, span], mask).to(query.dtype))
        first, first_key = last, last_key
    return torch.cat(parts, 1), None


def sdpa() -> Callable[..., Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def compare(
    original: Callable[..., Any],
    dtype: torch.dtype,
    window: int | None,
    tolerance: float,
    tree: PrefixTree = PAIR,
    **given: Any,
) -> None:
    query, key, value = inputs(tree, dtype)
    mask = TreeMask.of(tree)
    found = packed.attend(original, Layer(), query, key, value, mask, sliding_window=window, **given)
    assert mask.windows == [window]
    wanted = reference(query, key, value, allowed(tree, window), given.get("softcap"))
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = torch.autograd.grad(wanted, (query, key, value), grad)
    made = torch.autograd.grad(found, (query, key, value), grad.to(dtype))
    for mine, theirs in zip((found, *made), (wanted, *right), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]
)
@pytest.mark.parametrize("tree", [PAIR, GROUPS], ids=["pair", "groups"])
def test_blocks_put_together_by_their_sums(window, dtype, tolerance, tree):
    compare(sdpa(), dtype, window, tolerance, tree)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_however_many_threads_share_the_work(threads, monkeypatch):
    """Query heads become rows of their own where key heads do not come out even."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for tree in (PAIR, GROUPS):
        compare(sdpa(), torch.float64, None, 1e-13, tree)


def test_responses_of_one_length_are_one_call():
    tree = PrefixTree((5, 3, 3, 3, 4, 2, 2), (-1, 0, 0, 0, -1, 4, 4))
    found = [(b.queries.start, b.queries.stop, b.keys.start, b.rows) for b in packed._blocks(tree, None, torch.float32)]
    own = [(0, 5, 0, 1), (5, 14, 5, 3), (14, 18, 14, 1), (18, 22, 18, 2)]
    assert found == [*own, (5, 14, 0, 3), (18, 22, 14, 2)]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_models_own_attention_segment_by_segment(window):
    compare(eager, torch.float64, window, 1e-13)
    compare(eager, torch.float64, window, 1e-13, softcap=0.7)


@pytest.mark.parametrize("window", WINDOWS)
def test_flash_attention_in_one_call(window):
    compare(flash_attention_forward, torch.float64, window, 1e-13)


def test_pytorchs_flash_attention_has_the_arguments_that_are_used():
    pytest.importorskip("torch.nn.attention.varlen")
    assert packed._varlen() is not None


@pytest.mark.parametrize("window", WINDOWS)
def test_pytorchs_flash_attention_in_one_call(window, monkeypatch):
    """What is given to it on a GPU, taken by a stand-in that is causal to the lower right."""

    def varlen(query, key, value, starts, key_starts, most, most_keys, *, scale, window_size, enable_gqa):
        assert window_size[1] == 0
        assert enable_gqa
        assert scale == SIZE**-0.5
        back = window_size[0] + 1 if window_size[0] >= 0 else None
        given = {"position_ids": None, "cu_seq_lens_q": starts, "cu_seq_lens_k": key_starts}
        given |= {"max_length_q": most, "max_length_k": most_keys, "sliding_window": back}
        rows = (each.transpose(0, 1)[None] for each in (query, key, value))
        return flash_attention_forward(None, *rows, None, **given)[0][0]

    monkeypatch.setattr(packed, "_varlen", lambda: varlen)
    query, key, value = inputs(PAIR, torch.float64)
    found = packed._by_lengths(query, key, value, PAIR, SIZE**-0.5, window)
    wanted = reference(query, key, value, allowed(PAIR, window))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_of_flex_attention_and_the_dense_one(window):
    from torch.nn.attention.flex_attention import create_mask

    right = allowed(PAIR, window)
    assert torch.equal(packed.dense_mask(PAIR, None, torch.bool, window)[0, 0], right)
    bias = packed.dense_mask(PAIR, None, torch.float32, window)[0, 0]
    assert torch.equal(bias == 0, right)
    assert bias.min() == torch.finfo(torch.float32).min
    made = packed.flex_mask(PAIR, torch.device("cpu"), window)
    assert torch.equal(create_mask(made.mask_mod, 1, 1, PAIR.tokens, PAIR.tokens, device="cpu")[0, 0], right)


def test_dropout_is_left_to_the_models_attention():
    query, key, value = inputs(PAIR, torch.float32)
    layer = Layer().train()
    torch.manual_seed(0)
    found = packed.attend(sdpa(), layer, query, key, value, TreeMask.of(PAIR), dropout=0.5)
    without = packed.attend(sdpa(), layer, query, key, value, TreeMask.of(PAIR))
    assert float((found - without).detach().abs().max()) > 0.1


def test_no_more_is_computed_than_is_seen(monkeypatch):
    """Pairs of queries and keys that the kernels meet, with their causal halves, are those that attend."""
    met = 0
    forward = packed._forward

    def counted(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal met
        rows, keys = query.shape[2], key.shape[2]
        met += len(query) * (rows * (rows + 1) // 2 if args[-1] else rows * keys)
        return forward(query, key, *args, **kwargs)

    monkeypatch.setattr(packed, "_forward", counted)
    for tree in (PAIR, GROUPS):
        met = 0
        packed.attend(sdpa(), Layer(), *inputs(tree, torch.float32), TreeMask.of(tree))
        assert met == int(allowed(tree, None).sum())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v, m: (q[:, :, :-1], k, v, m), "expected queries and keys of 34 packed tokens"),
        (lambda q, k, v, m: (q, k, v, m & True), "the model changes its mask"),
    ],
)
def test_what_does_not_belong_to_the_batch_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        packed.attend(sdpa(), Layer(), *change(*inputs(PAIR, torch.float32), TreeMask.of(PAIR)))


def test_a_bias_of_positions_is_refused():
    with pytest.raises(ValueError, match="position_bias"):
        packed.attend(
            sdpa(), Layer(), *inputs(PAIR, torch.float32), TreeMask.of(PAIR), position_bias=torch.zeros(1, 1, 34, 34)
        )


def test_a_moved_mask_holds_its_tree():
    mask = TreeMask.of(PAIR)
    assert mask.to("meta").tree is PAIR
    assert mask[:, :, :, :34].windows is mask.windows


@pytest.fixture
def uninstalled(monkeypatch) -> Iterator[Any]:
    """The attention interface as transformers has it."""
    from transformers.modeling_utils import AttentionInterface

    original = getattr(AttentionInterface, packed._ORIGINAL, AttentionInterface.get_interface)
    monkeypatch.setattr(AttentionInterface, "get_interface", original)
    monkeypatch.delattr(AttentionInterface, packed._ORIGINAL, raising=False)
    monkeypatch.setattr(packed, "_installed", 0)
    monkeypatch.setattr(packed, "_kept", False)
    yield AttentionInterface


def test_transformers_are_taught_and_left_as_they_were(uninstalled):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = uninstalled.get_interface
    with tree_attention(), tree_attention():
        attention = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
        query, key, value = inputs(PAIR, torch.float64)
        found, _ = attention(Layer(), query, key, value, TreeMask.of(PAIR))
        torch.testing.assert_close(found, reference(query, key, value, allowed(PAIR, None)))
        causal, _ = attention(Layer(), query, key, value, None)  # other masks go where they went
        torch.testing.assert_close(causal, reference(query, key, value, torch.ones(34, 34).tril().bool()))
    assert uninstalled.get_interface is before
    assert not packed.is_installed()
