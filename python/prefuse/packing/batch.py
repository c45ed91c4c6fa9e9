"""Packed batches: a row of tokens in which every shared prefix stands once, and the way back to the rows it is of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefuse.packing.attention import TreeMask, dense_mask
from prefuse.packing.tree import MINIMUM, PrefixTree, prefix_tree

Tokens = Sequence[int] | Tensor | NDArray[np.integer[Any]]
"""The token ids of a prompt or a response, one-dimensional."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows that share prefixes, as one row of N tokens.

    Attributes:
        tree: which tokens continue which.
        source: [N] integers, where each token stands in the rows it came from, these laid end to end (of a padded
            batch [R, T]: its place in the batch, flattened).
        index: where each token of the rows stands in the packed row: [R, T] of a padded batch, with 0 for padding; of
            prompts and responses [1, M], all rows end to end.
        position_ids: [1, N], positions along each token's own row.
        input_ids: [1, N], where the batch was made of tokens.
        given: how many tokens the rows have, padding left out.
        labels: [1, M] token ids of the responses, end to end; None for a batch made by `share`.
        predictors: [M] integers, where the hidden state that predicts each label stands in the packed row.
        cu_seqlens: [R + 1] integers, where each response begins in `labels`, and the last ends.
    """

    tree: PrefixTree
    source: Tensor
    index: Tensor
    position_ids: Tensor
    input_ids: Tensor
    given: int
    labels: Tensor | None = field(default=None)
    predictors: Tensor | None = field(default=None)
    cu_seqlens: Tensor | None = field(default=None)

    @property
    def spared(self) -> int:
        """Tokens that need not be computed."""
        return self.given - self.tree.tokens

    def model_inputs(self) -> dict[str, Tensor]:
        """``input_ids``, ``position_ids`` and ``attention_mask`` for a transformers model under `tree_attention`."""
        mask = TreeMask.of(self.tree, self.input_ids.device)
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "attention_mask": mask}

    def dense_mask(self, dtype: torch.dtype = torch.bool, window: int | None = None) -> Tensor:
        """What `tree_attention` computes without, as a mask [1, 1, N, N] for any other attention.

        Args:
            dtype: torch.bool: True where a token attends; a floating type: 0 there, and its least number elsewhere.
            window: tokens that are so many behind on the path are not attended to.
        """
        return dense_mask(self.tree, self.input_ids.device, dtype, window)

    def pack(self, values: Tensor) -> Tensor:
        """Values of the rows, [R, T, …], at the packed tokens, [1, N, …]."""
        return values.flatten(0, 1).index_select(0, self.source.to(values.device))[None]

    def unpack(self, values: Tensor) -> Tensor:
        """Values of the packed tokens, [1, N, …], at those of the rows, in the shape of `index`.

        The gradient of a shared token is the sum over its rows. Padding gets the first token's values.
        """
        index = self.index.to(values.device)
        return values[0].index_select(0, index.reshape(-1)).reshape(*index.shape, *values.shape[2:])

    def response_hidden(self, hidden: Tensor) -> Tensor:
        """Of hidden states [1, N, H] those that predict the labels, [1, M, H]: the last of a prompt for each response.

        Raises:
            ValueError: the batch has no labels, as it was not made of prompts and responses.
        """
        if self.predictors is None:
            raise ValueError("hidden: this batch was made by share(), whose hidden states unpack() lays out again")
        return hidden[0].index_select(0, self.predictors.to(hidden.device))[None]


def pack(
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    *,
    device: torch.device | str | None = None,
    minimum: int = MINIMUM,
) -> PackedBatch:
    """Prompts and responses as one packed row, in which equal prompts, and what else rows begin with, stand once.

    Args:
        prompts: token ids of one prompt per response, [Tᵢ] each; give a shared prompt as often as it has responses.
            Where a tokenizer merges tokens across the border of a prompt, the shared part ends before.
        responses: token ids of each response. Pairs as `prefuse.preference_loss` takes them: all chosen, then all
            rejected.
        device: of the tensors.
        minimum: prefixes of fewer tokens are not shared.

    Returns:
        A `PackedBatch` with `labels`, `predictors` and `cu_seqlens`: ``preference_loss(…,
        hidden=batch.response_hidden(hidden), labels=batch.labels, cu_seqlens=batch.cu_seqlens)`` scores it.

    Raises:
        TypeError: tokens that are no integers.
        ValueError: another number of prompts than of responses, none at all, or an empty prompt or response.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"prompts: expected one per response, {len(responses)}, got {len(prompts)}")
    if not prompts:
        raise ValueError("prompts: expected at least one, got none")
    heads = [_ids(tokens, f"prompts[{row}]") for row, tokens in enumerate(prompts)]
    tails = [_ids(tokens, f"responses[{row}]") for row, tokens in enumerate(responses)]
    rows = [np.concatenate(pair) for pair in zip(heads, tails, strict=True)]
    tree, paths = prefix_tree(rows, minimum)
    offsets = np.cumsum([0, *map(len, rows)])
    index, source, positions = _places(tree, paths, offsets)
    # The label at place t of a row is predicted by the hidden state of t − 1.
    begins = offsets[:-1] + [len(head) for head in heads]
    predictors = [index[begin - 1 : end - 1] for begin, end in zip(begins, offsets[1:], strict=True)]
    flat = torch.from_numpy(np.concatenate(rows))
    places = torch.from_numpy(source)
    batch = PackedBatch(
        tree,
        places.to(device),
        torch.from_numpy(index)[None].to(device),
        torch.from_numpy(positions)[None].to(device),
        flat[places][None].to(device),
        len(flat),
        torch.from_numpy(np.concatenate(tails))[None].to(device),
        torch.from_numpy(np.concatenate(predictors)).to(device),
        torch.from_numpy(np.cumsum([0, *map(len, tails)])).to(device),
    )
    return batch


def share(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    minimum: int = MINIMUM,
    absolute: bool = False,
) -> PackedBatch | None:
    """A padded or packed batch with the prefixes that its rows have in common computed once.

    Args:
        input_ids: [R, T] integers.
        attention_mask: [R, T], 0 for padding, left or right; None: every token counts.
        position_ids: [R, T] integers, which must be equal, too, for tokens to be shared. Without a mask,
            positions that start again begin another row, packed end to end. None: counted along each row.
        minimum: prefixes of fewer tokens are not shared.
        absolute: without `position_ids`, count positions from the first column, padding included.

    Returns:
        A `PackedBatch`; None where no two rows share so much, or the mask has gaps.

    Raises:
        ValueError: shapes that do not fit.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: expected [R, T], got {tuple(input_ids.shape)}")
    for name, given in (("attention_mask", attention_mask), ("position_ids", position_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(
                f"{name}: expected the shape of input_ids, {tuple(input_ids.shape)}, got {tuple(given.shape)}"
            )
    bounds = _bounds(input_ids, attention_mask, position_ids)
    if bounds is None or len(bounds) < 2:
        return None
    tokens = input_ids.detach().cpu().numpy().reshape(-1).astype(np.int64, copy=False)
    positions = _positions(bounds, input_ids.shape[1], position_ids, absolute)
    rows = [tokens[first:last] for first, last in bounds]
    if position_ids is not None or absolute:
        rows = [np.stack([row, place], 1) for row, place in zip(rows, positions, strict=True)]
    tree, paths = prefix_tree(rows, minimum)
    count = sum(last - first for first, last in bounds)
    if tree.tokens >= count or not tree.tokens:
        return None
    offsets = np.cumsum([0, *(last - first for first, last in bounds)])
    packed, source, _ = _places(tree, paths, offsets)
    columns = np.concatenate([np.arange(first, last) for first, last in bounds])
    index = np.zeros(input_ids.numel(), dtype=np.int64)
    index[columns] = packed
    device = input_ids.device
    places = torch.from_numpy(columns[source]).to(device)
    return PackedBatch(
        tree,
        places,
        torch.from_numpy(index).view(input_ids.shape).to(device),
        torch.from_numpy(np.concatenate(positions)[source])[None].to(device),
        input_ids.reshape(-1).index_select(0, places)[None],
        count,
    )


def plan_batches(
    prompts: Sequence[Tokens], responses: Sequence[Tokens], *, tokens: int, minimum: int = MINIMUM
) -> list[list[int]]:
    """Which rows to pack together, so that no packed row is longer than a budget; rows of one prompt stay together.

    Args:
        prompts: token ids of one prompt per response.
        responses: token ids of each response.
        tokens: the most that a packed row may hold, as `pack` makes it.
        minimum: as given to `pack`.

    Returns:
        Lists of row numbers, each for one call of `pack`.

    Raises:
        ValueError: another number of prompts than of responses, or a prompt with its responses above the budget.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"prompts: expected one per response, {len(responses)}, got {len(prompts)}")
    heads = [_ids(each, f"prompts[{row}]") for row, each in enumerate(prompts)]
    tails = [_ids(each, f"responses[{row}]") for row, each in enumerate(responses)]
    whole = [np.concatenate(pair) for pair in zip(heads, tails, strict=True)]
    groups: dict[bytes, list[int]] = {}
    for row, head in enumerate(heads):
        groups.setdefault(head.tobytes(), []).append(row)

    def packed(rows: list[int]) -> int:
        return prefix_tree([whole[row] for row in rows], minimum)[0].tokens

    sized = [(packed(rows), rows) for rows in groups.values()]
    found: list[tuple[int, list[int]]] = []
    for size, rows in sorted(sized, key=lambda each: -each[0]):  # first fit, the longest first
        if size > tokens:
            raise ValueError(
                f"tokens: expected at least {size}, the length of the prompt of row {rows[0]} and its responses, "
                f"got {tokens}"
            )
        least = sum(len(tails[row]) for row in rows)  # what they add to any row, were the prompt there already
        for place, (used, others) in enumerate(found):
            # Two prompts that begin alike may take more or fewer tokens than the sum, so the row is tried.
            if used + least <= tokens and (total := packed(others + rows)) <= tokens:
                found[place] = total, others + rows
                break
        else:
            found.append((size, rows))
    return [sorted(rows) for _, rows in found]


def _ids(tokens: Tokens, name: str) -> NDArray[np.int64]:
    given = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    if given.ndim != 1 or not given.size:
        raise ValueError(f"{name}: expected token ids [T], at least one, got the shape {given.shape}")
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {given.dtype}")
    return given.astype(np.int64)


def _places(
    tree: PrefixTree, paths: list[tuple[int, ...]], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each token of the rows end to end its packed place; of each packed token one such place, and its depth."""
    starts, lengths, depths = (np.array(values, dtype=np.int64) for values in (tree.starts, tree.lengths, tree.depths))
    index = np.empty(int(offsets[-1]), dtype=np.int64)
    for path, offset in zip(paths, offsets, strict=False):
        for segment in path:
            begin = offset + depths[segment]
            index[begin : begin + lengths[segment]] = np.arange(starts[segment], starts[segment] + lengths[segment])
    source = np.empty(tree.tokens, dtype=np.int64)
    source[index[::-1]] = np.arange(len(index))[::-1]  # of several, the first
    positions = np.concatenate([np.arange(length) for length in lengths]) + np.repeat(depths, lengths)
    return index, source, positions


def _bounds(ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[tuple[int, int]] | None:
    """Where each row begins and ends in the flat batch, without padding; None: a mask with gaps."""
    rows, columns = ids.shape
    if mask is None:
        begins = np.arange(rows * columns) % max(columns, 1) == 0
        if positions is not None:  # as transformers tells rows apart that are packed end to end
            flat = positions.detach().cpu().numpy().reshape(-1)
            begins[1:] |= np.diff(flat) != 1
        return list(itertools.pairwise([*np.flatnonzero(begins).tolist(), rows * columns]))
    valid = mask.detach().cpu().numpy() != 0
    counts = valid.sum(1)
    firsts = valid.argmax(1)
    if not all(row[first : first + count].all() for row, first, count in zip(valid, firsts, counts, strict=True)):
        return None
    starts = np.arange(rows) * columns + firsts
    return [(int(start), int(start + count)) for start, count in zip(starts, counts, strict=True)]


def _positions(
    bounds: list[tuple[int, int]], columns: int, given: Tensor | None, absolute: bool
) -> list[NDArray[np.int64]]:
    """The positions of each row's tokens."""
    if given is not None:
        flat = given.detach().cpu().numpy().reshape(-1).astype(np.int64, copy=False)
        return [flat[first:last] for first, last in bounds]
    return [np.arange(last - first) + (first % columns if absolute else 0) for first, last in bounds]
