"""A trie of token sequences as one forward pass: every shared prefix is computed once.

Nodes are laid out so that a parent stands before its children. A node sees its ancestors and itself, and its position
is its depth, so what is computed along a path is what the path alone would give, whatever else is in the tree.
"""

# N nodes  V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids, parents (-1 for a root), depths, and which nodes each node sees."""

    ids_N: Tensor
    parent_N: Tensor
    depth_N: Tensor
    sees_NN: Tensor
    """Boolean; row i is true at the ancestors of i and at i."""

    def __len__(self) -> int:
        return len(self.ids_N)


def plant(paths: Sequence[Sequence[int]]) -> tuple[Tree, list[Tensor]]:
    """The trie of the paths, and for each path the nodes along it."""
    ids: list[int] = []
    parent: list[int] = []
    depth: list[int] = []
    child: dict[tuple[int, int], int] = {}
    routes: list[Tensor] = []
    for path in paths:
        if not path:
            raise ValueError("an empty path has no nodes")
        node, route = -1, []
        for level, token in enumerate(path):
            below = child.get((node, token))
            if below is None:
                below = child[node, token] = len(ids)
                ids.append(token)
                parent.append(node)
                depth.append(level)
            route.append(below)
            node = below
        routes.append(torch.tensor(route))
    sees = np.zeros((len(ids), len(ids)), dtype=bool)
    for node, up in enumerate(parent):
        if up >= 0:
            sees[node] = sees[up]
        sees[node, node] = True
    tree = Tree(torch.tensor(ids), torch.tensor(parent), torch.tensor(depth), torch.from_numpy(sees))
    return tree, routes
