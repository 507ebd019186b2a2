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
from truing.targets.local.memory import out_of_memory, release
from truing.targets.local.rows import NOTHING, Group, Known
from truing.targets.local.tree import Tree, takes_trees

TOKENS = 1024
"""Tokens in a pass, padding among them; a longer path goes by itself."""

Say = Callable[[str], None]
Wanted = tuple[list[int], list[int]]
"""A path in tokens, and the places along it (ascending) whose output is asked for."""


def computed(model: Any, tree: Tree, keep_M: Tensor | None = None) -> int:
    """Tokens that a pass computes for these nodes of a tree, or for all; padding is not counted."""
    if takes_trees(model):
        return len(tree)
    return sum(len(path) for path, _ in _covering(tree, torch.arange(len(tree)) if keep_M is None else keep_M))


def logits_along(model: Any, tree: Tree, keep_M: Tensor, say: Say | None = None) -> Iterator[Tensor]:
    """At nodes of a tree, ascending, each once; some at a time, shape (m, V).

    `say`: is told where memory runs out, and half as many texts go through at once; else that is an error.
    """
    return _passes(_covering(tree, keep_M), lambda ids, at: _logits(model, ids, at), model, say)


def logits_at(model: Any, tree: Tree, keep_M: Tensor) -> Tensor:
    """At nodes of a tree in this order, shape (M, V)."""
    if not len(keep_M):
        return torch.zeros(0, model.get_input_embeddings().weight.shape[0], device=model.device)
    nodes, order = keep_M.unique(return_inverse=True)
    return torch.cat(list(logits_along(model, tree, nodes)))[order.to(model.device)]


def hidden_at(model: Any, tree: Tree) -> Tensor:
    """What is left to the output head at all nodes, shape (T, D)."""

    def states(ids_BT: Tensor, at: Tensor) -> Tensor:
        found: Tensor = model.base_model(ids_BT, use_cache=False).last_hidden_state
        return found[:, at]

    return torch.cat(list(_passes(_covering(tree, torch.arange(len(tree))), states, model)))


def after(model: Any, paths: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each path, shape (B, V)."""
    wanted = [(list(path), [len(path) - 1]) for path in paths]
    return torch.cat(list(_passes(wanted, lambda ids, at: _logits(model, ids, at), model)))


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


def _covering(tree: Tree, keep_M: Tensor) -> list[Wanted]:
    """The fewest paths that go along these nodes. What they are to give, one after the other, is the nodes ascending.

    Depth first, what is below a node comes right after it: the first path through it is the first that ends after it.
    """
    nodes, on_a_path = set(keep_M.tolist()), set[int]()
    paths = []
    for node in sorted(nodes, reverse=True):
        if node not in on_a_path:
            paths.append([*tree.ancestors(node), node])
            on_a_path.update(paths[-1])
    wanted = []
    for path in reversed(paths):
        at = [place for place, node in enumerate(path) if node in nodes]
        nodes.difference_update(path)
        wanted.append((tree.ids_N[path].tolist(), at))
    return wanted


def _passes(
    wanted: Sequence[Wanted], of: Callable[[Tensor, Tensor], Tensor], model: Any, say: Say | None = None
) -> Iterator[Tensor]:
    """What paths give at the places asked for, in turn, those of a pass together: shape (places, X).

    `of`: tokens of some rows (B, T) and places along them -> (B, places, X). `say`: as above.
    """
    for some in _chunks(wanted):
        try:
            yield _pass(some, of, model)
            continue
        except (RuntimeError, MemoryError) as error:
            if say is None or not out_of_memory(error) or len(some) == 1:
                raise
        release()
        half = len(some) // 2
        say(f"out of memory: going on with {half} texts at once")
        for part in (some[:half], some[half:]):
            yield from _passes(part, of, model, say)


def _pass(some: Sequence[Wanted], of: Callable[[Tensor, Tensor], Tensor], model: Any) -> Tensor:
    ids_BT = torch.zeros(len(some), max(len(path) for path, _ in some), dtype=torch.long)
    for row, (path, _) in enumerate(some):
        ids_BT[row, : len(path)] = torch.tensor(path)
    at = torch.tensor(sorted({place for _, places in some for place in places}))
    with alone(model):
        found = of(ids_BT.to(model.device), at.to(model.device))
    rows = torch.tensor([row for row, (_, places) in enumerate(some) for _ in places], device=found.device)
    which = torch.searchsorted(at, torch.tensor([place for _, places in some for place in places]))
    return found[rows, which.to(found.device)]


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
