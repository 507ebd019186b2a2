"""Models that take no trees: every path goes through by itself, in rows that are padded behind.

State-space models, convolutions over the sequence and attention that makes its own mask mix each token with whatever
lies before it in memory, so that branches would see each other. Along a row nothing but its own path lies before a
token, and no token sees the padding behind it: what comes out is what the path alone gives, at the price of computing
shared beginnings again.
"""

# B rows  T tokens of the longest  M nodes  X whatever comes out at a token

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.attention import alone
from truing.targets.local.rows import NOTHING, Group, Known
from truing.targets.local.tree import Tree

_APART = "_truing_apart"
TOKENS = 1024
"""Tokens in a pass, padding among them; a longer path goes by itself."""

Wanted = tuple[list[int], list[int]]
"""A path in tokens, and the places along it (ascending) whose output is asked for."""


def take_apart(model: Any) -> None:
    """From now on this model, and what is copied from it, is given paths."""
    setattr(model, _APART, True)


def takes_trees(model: Any) -> bool:
    """Whether branches of a tree, and rows that share a prefix, can go through this model at once."""
    return not getattr(model, _APART, False)


def computed(model: Any, tree: Tree, keep_M: Tensor | None = None) -> int:
    """Tokens that a pass computes for these nodes of a tree, or for all; padding is not counted."""
    if takes_trees(model):
        return len(tree)
    return sum(len(path) for path, _ in _covering(tree, torch.arange(len(tree)) if keep_M is None else keep_M)[0])


def logits_at(model: Any, tree: Tree, keep_M: Tensor) -> Tensor:
    """At nodes of a tree, shape (M, V)."""
    return _at(model, tree, keep_M, lambda ids, at: _logits(model, ids, at))


def hidden_at(model: Any, tree: Tree) -> Tensor:
    """What is left to the output head at all nodes, shape (T, D)."""

    def states(ids_BT: Tensor, at: Tensor) -> Tensor:
        found: Tensor = model.base_model(ids_BT, use_cache=False).last_hidden_state
        return found[:, at]

    return _at(model, tree, torch.arange(len(tree)), states)


def after(model: Any, paths: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each path, shape (B, V)."""
    wanted = [(list(path), [len(path) - 1]) for path in paths]
    return torch.cat(list(_passes(model, wanted, lambda ids, at: _logits(model, ids, at))))


class Paths:
    """Rows that are written, as tokens alone: every step goes over them anew."""

    def __init__(self, paths: Sequence[Sequence[int]], device: Any) -> None:
        self.paths = [list(path) for path in paths]
        self._device = device

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def groups(self) -> list[Group]:
        """None of them shares anything."""
        return [Group(0, len(self), 0)]

    @property
    def used(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.paths))

    @property
    def position_B(self) -> Tensor:
        """Position of each row's next token."""
        return torch.tensor([len(path) for path in self.paths], device=self._device)

    def longer(self, ids_B: Tensor) -> list[list[int]]:
        """What the rows would be with one token more each."""
        return [[*path, token] for path, token in zip(self.paths, ids_B.tolist(), strict=True)]

    def known(self, _: int, __: int) -> Known:
        """Nothing is kept."""
        return NOTHING

    def keep(self, rows: Tensor) -> None:
        """Let the rows that are not named go."""
        self.paths = [self.paths[row] for row in rows.tolist()]

    def join(self, other: Paths, _: int | None = None) -> int:
        """Take the rows of another in, after these; the place of the first."""
        self.paths += other.paths
        return len(self) - len(other)


def _at(model: Any, tree: Tree, keep_M: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    wanted, order = _covering(tree, keep_M)
    found = torch.cat(list(_passes(model, wanted, of)))
    return found[torch.tensor([order[node] for node in keep_M.tolist()], device=found.device)]


def _covering(tree: Tree, keep_M: Tensor) -> tuple[list[Wanted], dict[int, int]]:
    """The fewest paths that go along these nodes, and for each node its number among all that they are to give."""
    left, order = set(keep_M.tolist()), dict[int, int]()
    wanted = []
    for node in sorted(left, reverse=True):  # depth first: what is below a node comes right after it
        if node not in left:
            continue
        path = [*tree.ancestors(node), node]
        at = [place for place, on in enumerate(path) if on in left]
        for place in at:
            left.discard(path[place])
            order[path[place]] = len(order)
        wanted.append((tree.ids_N[path].tolist(), at))
    return wanted, order


def _passes(model: Any, wanted: Sequence[Wanted], of: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """What each path gives at the places asked for, shape (places, X), in turn.

    `of`: tokens of some rows (B, T) and places along them -> (B, places, X).
    """
    for some in _chunks(wanted):
        ids_BT = torch.zeros(len(some), max(len(path) for path, _ in some), dtype=torch.long)
        for row, (path, _) in enumerate(some):
            ids_BT[row, : len(path)] = torch.tensor(path)
        at = torch.tensor(sorted({place for _, places in some for place in places}))
        with alone(model):
            found = of(ids_BT.to(model.device), at.to(model.device))
        for row, (_, places) in enumerate(some):
            yield found[row, torch.searchsorted(at, torch.tensor(places)).to(found.device)]


def _chunks(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    some: list[Wanted] = []
    for one in wanted:
        longest = max(len(path) for path, _ in [*some, one])
        if some and longest * (len(some) + 1) > TOKENS:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


def _logits(model: Any, ids_BT: Tensor, at: Tensor) -> Tensor:
    more = {"logits_to_keep": at} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found: Tensor = model(ids_BT, use_cache=False, **more).logits
    return found if more else found[:, at]
