"""Attention along the paths of a `PrefixTree`: no mask, no block computed that is not needed.

Of each segment two blocks are attended to: itself, causally, and, by all that continues it, as a whole. Softmaxes over
several blocks are put together by their log-sum-exps, forward and backward (as in Dao et al., 2022, arXiv:2205.14135).
Where no kernel returns these, every segment's queries meet the keys of their path in the model's own attention.

`tree_attention` teaches transformers' attention to do so where it is given a `TreeMask`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse._arguments.transforms import compiler_disabled
from prefuse.packing.tree import PrefixTree


class TreeMask(Tensor):
    """Stands where a model takes an attention mask [1, 1, N, N], takes no memory, and holds the tree instead.

    `tree_attention` must be on: an attention that does not know it finds every token hidden.

    Attributes:
        tree: along whose paths tokens attend.
        windows: what each attention layer that has met this mask kept to: its sliding window, or None.
    """

    tree: PrefixTree
    windows: list[int | None]

    @staticmethod
    def of(tree: PrefixTree, device: torch.device | None = None) -> TreeMask:
        """The mask of a tree."""
        hidden = torch.zeros((), dtype=torch.bool, device=device).expand(1, 1, tree.tokens, tree.tokens)
        mask: TreeMask = hidden.as_subclass(TreeMask)
        mask.tree, mask.windows = tree, []
        return mask

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A moved or sliced mask holds the same tree."""
        made = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        source = next((value for value in args if isinstance(value, TreeMask)), None)
        if isinstance(made, TreeMask) and source is not None and hasattr(source, "tree"):
            made.tree, made.windows = source.tree, source.windows
        return made


def dense_mask(
    tree: PrefixTree, device: torch.device | None, dtype: torch.dtype = torch.bool, window: int | None = None
) -> Tensor:
    """The mask [1, 1, N, N] of a tree: see `PackedBatch.dense_mask`."""
    allowed = torch.zeros(tree.tokens, tree.tokens, dtype=torch.bool, device=device)
    places = _places(tree, device)
    for segment, (start, length) in enumerate(zip(tree.starts, tree.lengths, strict=False)):
        keys = torch.cat([places[tree.starts[each] : tree.starts[each + 1]] for each in tree.path(segment)])
        allowed[start : start + length, keys] = _lower_right(length, len(keys), window, device)
    if dtype == torch.bool:
        return allowed[None, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)[
        None, None
    ]


@contextlib.contextmanager
def tree_attention() -> Iterator[None]:
    """Teaches transformers' attention the mask of packed batches; other masks go where they went.

    Raises:
        RuntimeError: transformers is not loaded, or has no attention interface.
    """
    if not install():
        raise RuntimeError(
            "tree_attention: expected transformers to be imported, with an attention interface (version 5); "
            "PackedBatch.dense_mask gives any attention the mask"
        )
    try:
        yield
    finally:
        uninstall()


_ORIGINAL = "_prefuse_original"
_installed = 0
_kept = False


def install() -> bool:
    """Patches transformers' attention interface; again: counts it once more. Whether there is one to patch."""
    global _installed
    interface = _interface()
    if interface is None:
        return False
    _installed += 1
    if not hasattr(interface, _ORIGINAL):
        original = interface.get_interface
        setattr(interface, _ORIGINAL, original)

        def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            return _Attention(original(self, *args, **kwargs))

        interface.get_interface = get_interface
    return True


def install_for_good() -> None:
    """Patches it, and leaves it so: a layer that is run again in a backward pass meets the same masks."""
    global _kept
    _kept = _kept or install()


def is_installed() -> bool:
    """Whether transformers' attention knows packed batches."""
    return hasattr(_interface(), _ORIGINAL)


def uninstall() -> None:
    """Undoes one `install`."""
    global _installed
    _installed = max(0, _installed - 1)
    interface = _interface()
    if not _installed and hasattr(interface, _ORIGINAL):
        interface.get_interface = getattr(interface, _ORIGINAL)
        delattr(interface, _ORIGINAL)


def _interface() -> Any:
    found = getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
    return found if hasattr(found, "get_interface") else None


class _Attention:
    """An attention function of transformers' that knows packed batches."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not isinstance(attention_mask, TreeMask):
            return self._original(module, query, key, value, attention_mask, *args, **kwargs)
        return attend(self._original, module, query, key, value, attention_mask, **kwargs), None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


@compiler_disabled
def attend(
    original: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: TreeMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> Tensor:
    """What `original` would return for each row alone, at the tokens of the packed batch, [1, N, heads, head size].

    Args:
        original: an attention function of transformers', which takes what else is given.
        module: the attention layer.
        query: [1, heads, N, head size].
        key: [1, key heads, N, head size], of as many heads or of a divisor.
        value: likewise.
        mask: of the batch.
        scaling: of the scores; None: 1/√(head size).
        dropout: of the attention weights.
        sliding_window: how many tokens a token attends to on its path, itself among them; None: all.
        others: further arguments of `original`; such as change the scores are left to it.

    Raises:
        ValueError: keys that are not those of the packed tokens, or a bias of relative positions.
    """
    tree = mask.tree
    if query.shape[2] != tree.tokens or key.shape[2] != tree.tokens or len(query) != 1:
        raise ValueError(
            f"attention: expected queries and keys of {tree.tokens} packed tokens, got {tuple(query.shape)} and "
            f"{tuple(key.shape)}"
        )
    if mask.dtype != torch.bool or any(mask.stride()):
        raise ValueError("attention: the model changes its mask, and the mask of packed rows is none to compute with")
    if others.get("position_bias") is not None:
        raise ValueError("attention: a bias of positions (position_bias) is not known along the paths of packed rows")
    mask.windows.append(sliding_window)
    window = sliding_window if sliding_window is not None and sliding_window < tree.longest_path else None
    name = getattr(original, "__name__", "")
    plain = name == "sdpa_attention_forward" and not dropout and _no_score_changes(others)
    if plain and query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and query.dtype == value.dtype:
        return _Blocks.apply(query, key, value, tree, scaling, window).transpose(1, 2)  # type: ignore[no-any-return]
    if plain and _has_flash(query, value):
        return _by_lengths(query, key, value, tree, scaling, window)
    given = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window, **others, "position_ids": None}
    if name == "flash_attention_forward":
        return _in_one_call(original, module, query, key, value, tree, given)
    if name == "flex_attention_forward":
        return original(module, query, key, value, flex_mask(tree, query.device, window), **given)[0]  # type: ignore[no-any-return]
    return _segment_by_segment(original, module, query, key, value, tree, window, given)


def _no_score_changes(others: dict[str, Any]) -> bool:
    return all(others.get(name) is None for name in ("softcap", "s_aux", "sinks", "head_mask", "attention_bias"))


def _places(tree: PrefixTree, device: torch.device | None) -> Tensor:
    return torch.arange(tree.tokens, device=device)


def _lower_right(queries: int, keys: int, window: int | None, device: torch.device | None) -> Tensor:
    """Which of `keys` tokens the last `queries` of them attend to, [queries, keys]."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _path_keys(tree: PrefixTree, segment: int, window: int | None) -> list[tuple[int, int]]:
    """Where the keys of a segment's path stand, those left out that are behind the window of all of its tokens."""
    seen = 0 if window is None else max(0, tree.depths[segment] - window + 1)
    found = []
    for each in tree.path(segment):
        begin = max(0, seen - tree.depths[each])
        if begin < tree.lengths[each]:
            found.append((tree.starts[each] + begin, tree.starts[each + 1]))
    return found


def _segment_by_segment(
    original: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: PrefixTree,
    window: int | None,
    given: dict[str, Any],
) -> Tensor:
    """The model's own attention for each segment, of the keys of its path."""
    parts = []
    for segment, (start, end) in enumerate(itertools.pairwise(tree.starts)):
        spans = _path_keys(tree, segment, window)
        keys, values = (torch.cat([each[:, :, first:last] for first, last in spans], 2) for each in (key, value))
        allowed = _lower_right(end - start, keys.shape[2], window, query.device)
        bias = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device)
        bias.masked_fill_(~allowed, torch.finfo(query.dtype).min)
        parts.append(original(module, query[:, :, start:end], keys, values, bias[None, None], **given)[0])
    return torch.cat(parts, 1)


def _in_one_call(
    original: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: PrefixTree,
    given: dict[str, Any],
) -> Tensor:
    """Flash attention with lengths of its own: the keys of every path end to end; it is causal to the lower right."""
    index, offsets, key_offsets, longest = _end_to_end(tree, given["sliding_window"], query.device)
    lengths = {
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": key_offsets,
        "max_length_q": max(tree.lengths),
        "max_length_k": longest,
    }
    key, value = key.index_select(2, index), value.index_select(2, index)
    return original(module, query, key, value, None, **{**given, **lengths})[0]  # type: ignore[no-any-return]


def _has_flash(query: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's flash attention with lengths of its own takes these."""
    narrow = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] == value.shape[-1] <= 256
    return query.device.type == "cuda" and torch.version.hip is None and narrow and _varlen() is not None


@functools.cache
def _varlen() -> Callable[..., Any] | None:
    """PyTorch's flash attention with lengths of its own, where it has windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa", "scale"} <= known.keys() else None


def _by_lengths(
    query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float | None, window: int | None
) -> Tensor:
    """The same by PyTorch: the keys of every path end to end, in one call."""
    varlen: Any = _varlen()
    index, offsets, key_offsets, longest = _end_to_end(tree, window, query.device)
    rows, keys, values = (each[0].transpose(0, 1) for each in (query, key, value))
    found: Tensor = varlen(
        rows,
        keys.index_select(0, index),
        values.index_select(0, index),
        offsets,
        key_offsets,
        max(tree.lengths),
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=rows.shape[1] != keys.shape[1],
    )
    return found[None]


@functools.lru_cache(maxsize=4)  # of a batch's layers
def _end_to_end(tree: PrefixTree, window: int | None, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """Where the keys of every segment's path stand, where queries and keys of each begin, and the most keys of one."""
    spans = [_path_keys(tree, segment, window) for segment in range(len(tree.lengths))]
    index = torch.cat([torch.arange(first, last) for first, last in itertools.chain(*spans)])
    keys = [sum(last - first for first, last in each) for each in spans]
    offsets, key_offsets = (
        torch.tensor(each, dtype=torch.int32, device=device) for each in (tree.starts, [0, *itertools.accumulate(keys)])
    )
    return index.to(device), offsets, key_offsets, max(keys)


def flex_mask(tree: PrefixTree, device: torch.device, window: int | None = None) -> Any:
    """The tree as a block mask of ``torch.nn.attention.flex_attention``."""
    from torch.nn.attention.flex_attention import create_block_mask

    starts, ends = (torch.tensor(each, device=device) for each in (tree.starts[:-1], tree.ends))
    lengths = torch.tensor(tree.lengths, device=device)
    depth = _places(tree, device) - (starts - torch.tensor(tree.depths, device=device)).repeat_interleave(lengths)
    first, end = starts.repeat_interleave(lengths), ends.repeat_interleave(lengths)

    def allowed(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        # A key is on the path of all that follows it up to the end of what continues its segment.
        seen = (key <= query) & (query >= first[key]) & (query < end[key])
        return seen if window is None else seen & (depth[query] - depth[key] < window)

    return create_block_mask(allowed, 1, 1, tree.tokens, tree.tokens, device=str(device), BLOCK_SIZE=128)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Block:
    """Queries of one span of packed tokens and keys of another.

    Attributes:
        queries, keys: the spans.
        rows: of how many equal parts the queries are, each of which attends to its own part where the spans are the
            same, or to all keys: responses of one length go through the kernel as one batch.
        causal: whether a token attends to those before it only.
        mask: which keys each query attends to, where a window hides some.
    """

    def __init__(self, queries: slice, keys: slice, rows: int, causal: bool, mask: Tensor | None = None) -> None:
        self.queries, self.keys, self.rows, self.causal, self.mask = queries, keys, rows, causal, mask

    @property
    def own(self) -> bool:
        """Whether segments attend to themselves."""
        return self.queries == self.keys

    def of_queries(self, values: Tensor) -> Tensor:
        """What belongs to the queries, [1, heads, N, …], as a view [rows, heads, n, …]."""
        return _parts(values[0, :, self.queries], 1, self.rows).transpose(0, 1)

    def of_keys(self, values: Tensor) -> Tensor:
        """What belongs to the keys, likewise: where they are not the queries' own, every row's are the same memory."""
        if self.own:
            return self.of_queries(values)
        return values[:, :, self.keys].expand(self.rows, -1, -1, -1)


def _parts(values: Tensor, dim: int, count: int) -> Tensor:
    """A dimension in `count` equal parts."""
    return values.view(*values.shape[:dim], count, -1, *values.shape[dim + 1 :])


@functools.lru_cache(maxsize=4)  # of a batch's layers, forward and backward
def _blocks(tree: PrefixTree, window: int | None, dtype: torch.dtype) -> tuple[_Block, ...]:
    """All that is attended to: first every segment by itself, then by what continues it."""
    return (*_own_blocks(tree, window, dtype), *_prefix_blocks(tree, window, dtype))


def _own_blocks(tree: PrefixTree, window: int | None, dtype: torch.dtype) -> Iterator[_Block]:
    segment = 0
    while segment < len(tree.lengths):
        length, rows = tree.lengths[segment], _alike(tree, segment)
        span = slice(tree.starts[segment], tree.starts[segment + rows])
        if window is None or length <= window:
            yield _Block(span, span, rows, True)
        else:
            yield _Block(span, span, rows, False, _bias(_lower_right(length, length, window, None), dtype))
        segment += rows


def _alike(tree: PrefixTree, first: int) -> int:
    """How many segments from this one on are equally long leaves of one parent; 1 where it is none."""
    kind = tree.lengths[first], tree.parents[first]
    for each in range(first, len(tree.lengths)):
        if (tree.lengths[each], tree.parents[each]) != kind or tree.ends[each] != tree.starts[each + 1]:
            return max(1, each - first)
    return len(tree.lengths) - first


def _prefix_blocks(tree: PrefixTree, window: int | None, dtype: torch.dtype) -> Iterator[_Block]:
    for segment, (start, end) in enumerate(itertools.pairwise(tree.starts)):
        if tree.ends[segment] > end and window is None:
            rows = _alike(tree, segment + 1)
            all_alike = tree.starts[segment + 1 + rows] == tree.ends[segment]
            yield _Block(slice(end, tree.ends[segment]), slice(start, end), rows if all_alike else 1, False)
        elif tree.ends[segment] > end:
            yield from _within(tree, segment, window or 0, dtype)


def _within(tree: PrefixTree, segment: int, window: int, dtype: torch.dtype) -> Iterator[_Block]:
    """A segment's keys, as far as each that continues it sees back."""
    last = tree.depths[segment] + tree.lengths[segment]  # the depth after its last token
    for each in range(segment + 1, len(tree.lengths)):
        if tree.starts[each] >= tree.ends[segment]:
            return
        depth = tree.depths[each]
        queries = min(tree.lengths[each], last + window - 1 - depth)  # those whose window reaches its last token
        if queries < 1:
            continue
        first = max(tree.depths[segment], depth - window + 1)
        distance = torch.arange(depth, depth + queries)[:, None] - torch.arange(first, last)
        begin = tree.starts[segment] + first - tree.depths[segment]
        mask = None if bool((distance < window).all()) else _bias(distance < window, dtype)
        seen = slice(begin, tree.starts[segment + 1])
        yield _Block(slice(tree.starts[each], tree.starts[each] + queries), seen, 1, False, mask)


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)[None, None]


class _Blocks(torch.autograd.Function):
    """Attention block by block; softmaxes over several blocks are weighed by their log-sum-exps."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float | None, window: int | None
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        heads = query.shape[1]
        out = torch.empty(1, tree.tokens, heads, value.shape[-1], dtype=wide).transpose(1, 2)
        lse = torch.empty(1, heads, tree.tokens, dtype=wide)
        for block in _blocks(tree, window, query.dtype):
            operands = block.of_queries(query), block.of_keys(key), block.of_keys(value)
            made, made_lse = _forward(*operands, 0.0, block.causal, attn_mask=block.mask, scale=scale)
            rows, rows_lse = block.of_queries(out), block.of_queries(lse)
            if block.own:  # these come first
                rows.copy_(made)
                rows_lse.copy_(made_lse)
            else:
                # σ(lse₂ − lse₁) is the share of the second softmax.
                share = torch.sigmoid(made_lse - rows_lse)
                rows.lerp_(made.to(wide), share[..., None])
                torch.logaddexp(rows_lse, made_lse, out=rows_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.given = tree, scale, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        tree, scale, window = ctx.given
        sums = [torch.empty_like(each, dtype=lse.dtype) for each in (query, key, value)]
        for block in _blocks(tree, window, query.dtype):
            made = _block_gradients(
                *(block.of_queries(each) for each in (grad, query)),
                *(block.of_keys(each) for each in (key, value)),
                *(block.of_queries(each) for each in (out, lse)),
                block=block,
                scale=scale,
            )
            for total, part in zip(sums, made, strict=True):
                if block.own:  # these come first
                    block.of_queries(total).copy_(part)
                elif total is sums[0]:
                    block.of_queries(total).add_(part)
                else:
                    total[0, :, block.keys] += part.sum(0, dtype=total.dtype)
        return *(total.to(query.dtype) for total in sums), None, None, None


def _block_gradients(*given: Tensor, block: _Block, scale: float | None) -> tuple[Tensor, ...]:
    """Of a block's queries, keys and values: [rows, heads or key heads, n, head size].

    PyTorch's kernel divides rows and key heads among the threads. Where these do not come out even, as in the single
    row of a prompt, the query heads of a key head become rows of their own, whose gradients of the keys are added up.

    Args:
        given: d(loss)/d(out), query, key, value, out and its log-sum-exps.
        block: what they belong to.
        scale: of the scores.
    """
    rows, heads = given[2].shape[:2]
    shared = given[1].shape[1] // heads
    kernel = functools.partial(_backward, dropout_p=0.0, is_causal=block.causal, attn_mask=block.mask, scale=scale)
    if shared == 1 or rows * heads % torch.get_num_threads() == 0:
        return tuple(kernel(*given))
    grad, query, key, value, out, lse = given
    grad, query, out, lse = (_parts(each, 1, heads).transpose(1, 2).flatten(0, 1) for each in (grad, query, out, lse))
    key, value = (each[:, None].expand(-1, shared, -1, -1, -1).flatten(0, 1) for each in (key, value))
    made, *of_keys = kernel(grad, query, key, value, out, lse)
    summed = (_parts(each, 0, rows).sum(1, dtype=lse.dtype) for each in of_keys)
    return _parts(made, 0, rows).transpose(1, 2).flatten(1, 2), *summed
