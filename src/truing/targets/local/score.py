"""Passes over trees of any size, block after block: what is held is one path and one block."""

# M kept nodes  V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from truing.targets.local.inside import forward
from truing.targets.local.memory import BLOCK, out_of_memory, release
from truing.targets.local.paths import logits_along
from truing.targets.local.rows import NOTHING, Known
from truing.targets.local.tree import Tree, takes_trees

T = TypeVar("T")


@torch.no_grad()
def walk(
    model: Any,
    tree: Tree,
    keep_M: Tensor,
    take: Callable[[Tensor], T],
    *,
    block: int = BLOCK,
    say: Callable[[str], None] = print,
    known: Known = NOTHING,
) -> Iterator[tuple[T, Any, Tensor]]:
    """What is taken of the logits at the kept nodes (ascending), some at a time; the cache; the nodes that stand in it.

    Depth first, so that a block needs of what was computed before no more than the ancestors of its first node.
    Where memory runs out, the block is halved and computed anew. A model that takes no trees goes along every path to a
    kept node, and neither a cache nor nodes in it are given. `known`: the first nodes, a chain from the root that
    all paths go along, need not be computed.
    """
    from transformers import DynamicCache

    if not takes_trees(model):
        for logits in logits_along(model, tree, keep_M, say):
            yield take(logits), None, torch.empty(0)
        return
    cache, start = DynamicCache(), len(known)
    held = torch.arange(start)
    for layer, (keys, values) in enumerate(known.layers):
        cache.update(keys[None], values[None], layer)
    while start < len(tree):
        stop = min(start + block, len(tree))
        above = torch.tensor(tree.ancestors(start), dtype=torch.long)
        narrow(cache, torch.searchsorted(held, above))
        held = torch.cat([above, torch.arange(start, stop)])
        kept = keep_M[(keep_M >= start) & (keep_M < stop)]
        try:
            taken = take(forward(model, tree, kept, start=start, stop=stop, cache=cache).logits[0])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or block == 1:
                raise
            block = max(1, (stop - start) // 2)
            held = above  # what some layers took of the block is cut off again
            release()
            say(f"out of memory: going on with blocks of {block} tokens")
            continue
        yield taken, cache, held
        start = stop


def narrow(cache: Any, places: Tensor) -> None:
    """Keep these places of a cache alone."""
    for layer in cache.layers:
        if layer.is_initialized and layer.keys.shape[2] > len(places):
            at = places.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[:, :, at], layer.values[:, :, at]
