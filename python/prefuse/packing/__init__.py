"""Every prompt computed once: batches whose responses share their prompts, packed into one row, and attention for them.

`pack` takes prompts and responses, `share` a padded batch as trainers make it; both find the prefixes that rows have in
common, token by token, and return a `PackedBatch`, or say that there is nothing to share. A token of a packed row
attends to its own path only (`tree_attention`), and its position is that of its row.

``prefuse.head(model, share_prompts=True)`` does all of it; here are the parts.
"""

from prefuse.packing.attention import TreeMask, tree_attention
from prefuse.packing.batch import PackedBatch, pack, plan_batches, share
from prefuse.packing.tree import PrefixTree

__all__ = ["PackedBatch", "PrefixTree", "TreeMask", "pack", "plan_batches", "share", "tree_attention"]
