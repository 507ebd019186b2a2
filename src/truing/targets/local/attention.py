"""Attention over trees and rows, for every architecture that lets its attention be replaced.

Windows, capped scores and sinks are those that the architecture's own modules ask for. What a query sees is a matter of
positions along its path, not of places in memory, so a window reaches back over ancestors alone.
"""

# B batch  G key-value heads  R query heads to each  Q queries  K keys  E head width  T nodes

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby, pairwise
from threading import RLock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "truing"
PART, BROAD, BROADEST = 64, 128, 512
"""Nodes that are attended to at once: on the cpu, there with gradients, on an accelerator."""
WORTH = 0.4
"""Share of all pairs up to which, with gradients, parts are computed apart: what each sees is kept for the way back."""


class Layout(Protocol):
    """What the attention of one pass goes over."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]
    ) -> Tensor:
        """Queries (B, G, R, Q, E), scaled; key and value (B, G, K, E); mask (B, 1, Q, K); the result as the queries."""


_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_layout: ContextVar[Layout] = ContextVar("layout")


def alone(model: Any) -> Any:
    """A lock, held around every pass: hooks and replaced attention belong to the pass of one thread."""
    return _locks.setdefault(model, RLock())


def kept(model: Any) -> Callable[[], tuple[Any, Any]]:
    """For checkpointing: contexts around a pass, and around computing it again, over what it went over."""

    def contexts() -> tuple[Any, Any]:
        layout = _layout.get(None)
        return nullcontext(), nullcontext() if layout is None else over(model, layout)

    return contexts


@contextmanager
def over(model: Any, layout: Layout) -> Iterator[None]:
    """The model's attention goes over this."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)
        model.set_attn_implementation(before)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **rules: Any
) -> tuple[Tensor, None]:
    """The signature of transformers: query (B, G * R, Q, E); result (B, Q, G * R, E)."""
    scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    found = _layout.get().attend(module.layer_idx, scaled.unflatten(1, (key.shape[1], -1)), key, value, mask, rules)
    return found.flatten(1, 2).transpose(1, 2), None


def capped(scores: Tensor, rules: dict[str, Any]) -> Tensor:
    """Scores under a soft cap, where the architecture has one (Gemma 2)."""
    cap = rules.get("softcap")
    return scores if cap is None else torch.tanh(scores / cap) * cap


def weights(scores: Tensor, rules: dict[str, Any]) -> Tensor:
    """Softmax over the keys of scores (B, G, R, Q, K), beside a sink of each head where there are sinks (gpt-oss)."""
    sinks = rules.get("s_aux")
    if sinks is None:
        return scores.softmax(-1)
    beside = sinks.to(scores.dtype).view(scores.shape[1], scores.shape[2], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, beside], -1).softmax(-1)[..., :-1]


def beyond(distance: Tensor, rules: dict[str, Any]) -> Tensor | None:
    """Where the distance from query to key (in positions) is out of the layer's window; None where it has none."""
    window = rules.get("sliding_window")
    return None if window is None else distance >= window


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes that follow each other, and all that any of them sees: the same in every layer."""

    nodes: slice
    keys: Tensor
    """Places of the keys."""
    sees: tuple[int, ...]
    """The runs of keys that these are."""
    mask: Tensor
    """Additive, (nodes, keys)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A block of nodes taken apart, each part computed by itself; keys lie in runs of these lengths."""

    parts: tuple[Part, ...]
    runs: list[int]

    @classmethod
    def worth(cls, sees_TK: Tensor, *, dtype: torch.dtype, device: Any) -> Parts | None:
        """A block taken apart, where that is worth it on this device."""
        grad = torch.is_grad_enabled()
        size = BROADEST if device.type != "cpu" else BROAD if grad else PART
        if len(sees_TK) <= size:
            return None
        found = cls.of(sees_TK, size, dtype=dtype, device=device)
        return None if grad and found.share > WORTH else found

    @classmethod
    def of(cls, sees_TK: Tensor, size: int, *, dtype: torch.dtype, device: Any = "cpu") -> Parts:
        """Parts of so many nodes in depth-first order, each with the ancestors of its first node, and itself.

        Of all pairs of nodes in a block few see each other, and attention computes those that do not, too.
        """
        nodes, keys = sees_TK.shape
        chosen = []
        for start in range(0, nodes, size):
            stop, here = min(start + size, nodes), keys - nodes + start
            above = sees_TK[start, :here].nonzero().flatten()
            chosen.append((slice(start, stop), torch.cat([above, torch.arange(here, keys - nodes + stop)])))
        # Where some part begins or ends to see.
        ends = {0, keys} | {end for _, seen in chosen for run in _runs(seen.tolist()) for end in (run[0], run[-1] + 1)}
        edges = sorted(ends)
        number = {edge: place for place, edge in enumerate(edges)}
        parts = tuple(
            Part(
                some, seen.to(device), _numbers(seen.tolist(), number), additive(sees_TK[some][:, seen], dtype, device)
            )
            for some, seen in chosen
        )
        return cls(parts, [b - a for a, b in pairwise(edges)])

    @property
    def share(self) -> float:
        """Pairs of a node and a key that are computed, of all."""
        nodes, keys = sum(len(part.mask) for part in self.parts), sum(self.runs)
        return sum(part.mask.numel() for part in self.parts) / (nodes * keys)

    def seen(self, whole_K: Tensor) -> Iterator[Tensor]:
        """What each part sees of keys or values (..., K, E)."""
        if not torch.is_grad_enabled():
            return (whole_K[..., part.keys, :] for part in self.parts)
        # Split once: the way back through an index would add up rows in no fixed order.
        runs = whole_K.split(self.runs, -2)
        return (torch.cat([runs[run] for run in part.sees], -2) for part in self.parts)


def additive(sees: Tensor, dtype: torch.dtype, device: Any) -> Tensor:
    """A mask to be added to scores, as eager attention takes it; fused attention would also take booleans."""
    hidden = ~sees.to(device)
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)


def _numbers(seen: list[int], number: dict[int, int]) -> tuple[int, ...]:
    """The runs that begin at one of these."""
    return tuple(number[place] for place in seen if place in number)


def _runs(places: list[int]) -> list[list[int]]:
    """Ascending numbers in runs without gaps."""
    return [[place for _, place in run] for _, run in groupby(enumerate(places), lambda one: one[1] - one[0])]


@dataclass(frozen=True, slots=True)
class Branches:
    """Nodes of a tree that see their ancestors, some of them in the cache."""

    depth_T: Tensor
    """Positions of the nodes."""
    depth_K: Tensor
    """Positions of what they may see."""
    parts: Parts | None = None
    """How they are taken apart, where they are."""

    def attend(self, _: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]) -> Tensor:
        """The mask says what is an ancestor; windows and caps come on top."""
        if self.parts is None:
            return _mean(query, key, value, near(mask, self.depth_T, self.depth_K, rules), rules)
        parts, found = self.parts.parts, []
        queries = query.split([len(part.mask) for part in parts], -2)
        for part, q, k, v in zip(parts, queries, self.parts.seen(key), self.parts.seen(value), strict=True):
            mask = near(part.mask, self.depth_T[part.nodes], self.depth_K[part.keys], rules)
            found.append(_mean(q, k, v, mask[None, None], rules))
        return torch.cat(found, -2)


def near(mask: Tensor, depth_T: Tensor, depth_K: Tensor, rules: dict[str, Any]) -> Tensor:
    """The mask without what is out of the layer's window."""
    far = beyond(depth_T[:, None] - depth_K, rules)
    return mask if far is None else mask.masked_fill(far, torch.finfo(mask.dtype).min)


def _mean(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]) -> Tensor:
    """What queries (B, G, R, Q, E) see on average."""
    if rules.get("softcap") is None and rules.get("s_aux") is None:
        groups = query.shape[2]
        # Kernels that go back, and those of accelerators that take a mask, want a key for every query.
        if copied := groups > 1 and (torch.is_grad_enabled() or query.device.type != "cpu"):
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        found = scaled_dot_product_attention(
            query.flatten(1, 2), key, value, attn_mask=mask, scale=1.0, enable_gqa=not copied
        )  # fmt: skip
        return found.unflatten(1, query.shape[1:3])
    shape = query.shape[2:4]
    scores = capped((query.flatten(2, 3) @ key.transpose(-2, -1)).unflatten(2, shape), rules) + mask[:, :, None]
    return (weights(scores, rules).flatten(2, 3) @ value).unflatten(2, shape)
