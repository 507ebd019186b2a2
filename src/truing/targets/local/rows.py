"""Rows that go on from prompts which share their beginnings: each beginning is kept, and attended to, once.

A step of generation is bound by reading keys and values. Rows are laid out in groups; the longest common beginning of
a group's prompts is one prefix, and what a row has of its own is its tail. One softmax runs over both, so the result is
that of attention over the whole row.
"""

# B rows  G key-value heads  R query heads to each  E head width  P nodes of a prefix  T slots of the tails

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.attention import beyond, capped, weights

KV = tuple[Tensor, Tensor]

OVERHEAD = 64
"""What another group costs in a step, in tokens whose keys and values could be read instead."""
GROWTH = 64
"""Slots that are added, at least, when the tails are full."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows and how many tokens their prompts share."""

    start: int
    stop: int
    shared: int


@dataclass(frozen=True, slots=True)
class Known:
    """A beginning whose keys and values are there already."""

    layers: Sequence[KV]
    """For every layer, shape (G, P, E)."""
    group: int | None = None
    """The group that has just this prefix, if one has."""

    def __len__(self) -> int:
        return self.layers[0][0].shape[1] if self.layers else 0

    def serves(self, paths: Sequence[Sequence[int]], groups: Sequence[Group]) -> bool:
        """Whether a step reads no more if this is the only prefix of the paths, than in groups of their own."""
        more = OVERHEAD + len(self) if self.group is None else 0
        own = sum(OVERHEAD - (g.stop - g.start - 1) * g.shared for g in groups)
        return len(self) > 0 and more - len(self) * len(paths) <= own


NOTHING = Known(())


def grouped(paths: Sequence[Sequence[int]]) -> list[Group]:
    """Groups of sorted paths for which a step reads the fewest keys and values; a tail has at least one token."""
    alike = [common(a, b) for a, b in pairwise(paths)]
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # cost up to a row, where its group starts, what that shares
    for stop in range(1, len(paths) + 1):
        options, shared, tokens = [], len(paths[stop - 1]) - 1, 0
        for start in range(stop - 1, -1, -1):
            if start < stop - 1:
                shared = min(shared, alike[start])
            shared = min(shared, len(paths[start]) - 1)
            tokens += len(paths[start])
            options.append((best[start][0] + OVERHEAD + tokens - (stop - start - 1) * shared, start, shared))
        best.append(min(options))
    groups, stop = [], len(paths)
    while stop:
        _, start, shared = best[stop]
        groups.append(Group(start, stop, shared))
        stop = start
    return groups[::-1]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two paths begin with alike."""
    a, b = tuple(a), tuple(b)
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared at once
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


class Rows:
    """Keys and values of B rows, as far as transformers asks a cache for them. Tails end at the same slot."""

    is_compileable = False

    def __init__(self, groups: Sequence[Group], lengths_B: Tensor, known: Known = NOTHING) -> None:
        """Room for rows of these lengths; `put` fills it. `known`: what the only group begins with is there already."""
        self.groups = list(groups)
        shared_B = torch.tensor([group.shared for group in groups for _ in range(group.start, group.stop)])
        own_B = lengths_B - shared_B.to(lengths_B.device)
        self.used = int(own_B.max())
        """Slots that are taken."""
        self.blank_B = self.used - own_B
        """Slots before the beginning of each tail."""
        self.position_B = lengths_B.clone()
        """Position of each row's next token."""
        self.prefix: list[list[KV]] = [[kv] for kv in known.layers]
        """For every layer and group, shape (G, P, E)."""
        self.tails: list[KV] = []
        """For every layer, shape (B, G, T or more, E)."""

    def __len__(self) -> int:
        return len(self.position_B)

    def put(
        self, layer: int, keys: Tensor, values: Tensor, tails: tuple[Tensor, ...], shared: Sequence[tuple[Tensor, ...]]
    ) -> None:
        """Take over nodes from a pass, shapes (G, N, E).

        `tails`: row, slot and node of what goes into tails; `shared`: place and node of what goes into each prefix.
        """
        if len(self.tails) == layer:
            self.tails.append(_blank(len(self), self.used + GROWTH, (keys, values)))
        if len(self.prefix) == layer:
            heads = len(keys)
            self.prefix.append(
                [(keys.new_empty(heads, g.shared, keys.shape[-1]), values.new_empty(heads, g.shared, values.shape[-1]))
                 for g in self.groups]
            )  # fmt: skip
        row, slot, node = tails
        for into, kv in zip(self.tails[layer], (keys, values), strict=True):
            into[row, :, slot] = kv[:, node].transpose(0, 1)
        for both, (place, node) in zip(self.prefix[layer], shared, strict=False):  # none where they are known
            for into, kv in zip(both, (keys, values), strict=True):
                into[:, place] = kv[:, node]

    def keep(self, rows: Tensor) -> None:
        """Let the rows that are not named (ascending) go."""
        blank_B = self.blank_B[rows]
        empty = int(blank_B.min())  # slots that only rows which go had something in
        for layer, (keys, values) in enumerate(self.tails):  # one after the other: each gives back what it had
            self.tails[layer] = (keys[rows, :, empty:], values[rows, :, empty:])
        self.used, self.blank_B, self.position_B = self.used - empty, blank_B - empty, self.position_B[rows]
        left, start, named = [], 0, rows.tolist()
        for group in self.groups:
            count = sum(group.start <= row < group.stop for row in named)
            left.append(Group(start, start + count, group.shared))
            start += count
        alive = [number for number, group in enumerate(left) if group.stop > group.start]
        self.groups = [left[number] for number in alive]
        self.prefix = [[layer[number] for number in alive] for layer in self.prefix]

    def known(self, group: int, size: int) -> Known:
        """The first tokens of a group's prefix."""
        layers = [(keys[:, :size], values[:, :size]) for keys, values in (layer[group] for layer in self.prefix)]
        return Known(layers, group if size == self.groups[group].shared else None)

    def join(self, other: Rows, into: int | None = None) -> int:
        """Take the rows of another in: after these, or at the end of a group that has the one prefix of all of them.

        Returns the place of the first.
        """
        place, more = len(self) if into is None else self.groups[into].stop, len(other)
        used = max(rows.used - int(rows.blank_B.min()) for rows in (self, other))
        self.tails = [
            _merged(mine, self.used, theirs, other.used, used, place)
            for mine, theirs in zip(self.tails, other.tails, strict=True)
        ]
        if into is None:
            self.prefix = [mine + theirs for mine, theirs in zip(self.prefix, other.prefix, strict=True)]
            self.groups += [replace(g, start=g.start + place, stop=g.stop + place) for g in other.groups]
        else:
            self.groups[into:] = [
                replace(g, start=g.start + (more if g.start >= place else 0), stop=g.stop + more)
                for g in self.groups[into:]
            ]
        blank_B, added_B = (rows.blank_B - rows.used + used for rows in (self, other))
        self.blank_B = torch.cat([blank_B[:place], added_B, blank_B[place:]])
        self.position_B = torch.cat([self.position_B[:place], other.position_B, self.position_B[place:]])
        self.used = used
        return place

    def stepped(self) -> None:
        """Every row has one token more."""
        self.used += 1
        self.position_B = self.position_B + 1

    # -- what transformers asks a cache for

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> KV:
        """Write the new keys and values, shape (B, G, 1, E), into the next slot; the tails so far."""
        if self.tails[layer][0].shape[2] == self.used:
            wider = _blank(len(self), self.used + max(GROWTH, self.used // 2), (keys[0], values[0]))
            for into, kv in zip(wider, self.tails[layer], strict=True):
                into[:, :, : self.used] = kv
            self.tails[layer] = wider
        into_k, into_v = self.tails[layer]
        into_k[:, :, self.used], into_v[:, :, self.used] = keys[:, :, 0], values[:, :, 0]
        return into_k[:, :, : self.used + 1], into_v[:, :, : self.used + 1]

    def get_seq_length(self, *_: Any) -> int:
        """Slots that are taken."""
        return self.used

    # -- what its attention is

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, _: Tensor, rules: dict[str, Any]) -> Tensor:
        """One query a row (Q = 1), over the prefix of its group and its own tail."""
        least = torch.finfo(query.dtype).min
        own = capped((query[..., 0, :] @ key.transpose(-2, -1))[..., None, :], rules)  # (B, G, R, 1, T)
        slots = torch.arange(key.shape[2], device=key.device)
        blocked = slots < self.blank_B[:, None]
        if (far := beyond(self.used - slots, rules)) is not None:
            blocked = blocked | far
        own = own.masked_fill(blocked[:, None, None, None], least)
        found = []
        for group, (k, v) in zip(self.groups, self.prefix[layer], strict=True):
            some = slice(group.start, group.stop)
            asked = query[some, :, :, 0].transpose(0, 1)  # (G, B, R, E)
            both = capped((asked.flatten(1, 2) @ k.transpose(1, 2)).unflatten(1, asked.shape[1:3]), rules)
            both = both.transpose(0, 1)[..., None, :]  # (B, G, R, 1, P)
            places = torch.arange(group.shared, device=k.device)
            if (far := beyond(self.position_B[some, None] - places, rules)) is not None:
                both = both.masked_fill(far[:, None, None, None], least)
            left, right = weights(torch.cat([both, own[some]], -1), rules).split([group.shared, own.shape[-1]], -1)
            mean = (left[..., 0, :].transpose(0, 1).flatten(1, 2) @ v).unflatten(1, asked.shape[1:3]).transpose(0, 1)
            found.append((mean + right[..., 0, :] @ value[some])[..., None, :])
        return torch.cat(found)


def _blank(rows: int, width: int, like: KV) -> KV:
    """Tails for so many rows, of so many slots, for keys and values of shape (G, N, E)."""
    keys, values = (kv.new_zeros(rows, kv.shape[0], width, kv.shape[-1]) for kv in like)
    return keys, values


def _merged(mine: KV, mine_used: int, theirs: KV, theirs_used: int, used: int, place: int) -> KV:
    """Tails of both, ending at the same slot; theirs stand from a place on."""
    more = len(theirs[0])
    both = _blank(len(mine[0]) + more, used + GROWTH, (mine[0][0], mine[1][0]))
    for into, a, b in zip(both, mine, theirs, strict=True):
        parts = (
            (into[:place], a[:place], mine_used),
            (into[place : place + more], b, theirs_used),
            (into[place + more :], a[place:], mine_used),
        )
        for rows, kv, had in parts:
            taken = min(had, used)
            rows[:, :, used - taken : used] = kv[:, :, had - taken : had]
    return both
