"""A trie of token sequences as one forward pass: every shared prefix is computed once.

Nodes are laid out depth first. A node sees its ancestors and itself, and its position is its depth, so what is
computed along a path is what the path alone would give, whatever else is in the tree.
"""

# N nodes  V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_APART = "_truing_apart"


def take_apart(model: Any) -> None:
    """From now on this model, and what is copied from it, is given every path by itself."""
    setattr(model, _APART, True)


def takes_trees(model: Any) -> bool:
    """Whether branches of a tree, and rows that share a prefix, can go through this model at once."""
    return not getattr(model, _APART, False)


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids, parents (-1 for a root) and depths of N nodes, depth first."""

    ids_N: Tensor
    parent_N: Tensor
    depth_N: Tensor

    def __len__(self) -> int:
        return len(self.ids_N)

    def ancestors(self, node: int) -> list[int]:
        """The nodes above one, root first."""
        above: list[int] = []
        while (node := int(self.parent_N[node])) >= 0:
            above.append(node)
        return above[::-1]

    def sees(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Which nodes the nodes from `start` on see: the ancestors of `start` and each other. Boolean (T, P + T).

        In depth-first order no node from `start` on has any other ancestor before it.
        """
        parents = self.parent_N[start:stop].tolist()
        above = int(self.depth_N[start])
        sees = np.zeros((len(parents), above + len(parents)), dtype=bool)
        for row, up in enumerate(parents):
            if up >= start:
                sees[row] = sees[up - start]
            elif up >= 0:
                sees[row, : int(self.depth_N[up]) + 1] = True
            sees[row, above + row] = True
        return torch.from_numpy(sees)


def plant(paths: Sequence[Sequence[int]]) -> tuple[Tree, list[Tensor]]:
    """The trie of the paths in depth-first order, and for each path the nodes along it."""
    ids: list[int] = []
    parent: list[int] = []
    depth: list[int] = []
    route: list[int] = []
    routes: list[Tensor] = [torch.empty(0)] * len(paths)
    before: Sequence[int] = ()
    # Sorted, every path follows one that it shares most with: a node's descendants are the nodes right after it.
    for number in sorted(range(len(paths)), key=lambda number: list(paths[number])):
        path = paths[number]
        if not path:
            raise ValueError("an empty path has no nodes")
        same = next(
            (i for i, (a, b) in enumerate(zip(before, path, strict=False)) if a != b), min(len(before), len(path))
        )
        route = route[:same]
        for token in path[same:]:
            ids.append(token)
            parent.append(route[-1] if route else -1)
            depth.append(len(route))
            route.append(len(ids) - 1)
        routes[number] = torch.tensor(route)
        before = path
    return Tree(torch.tensor(ids), torch.tensor(parent), torch.tensor(depth)), routes
