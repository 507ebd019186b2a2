"""Attention over trees and rows, for every architecture that lets its attention be replaced.

Windows, capped scores and sinks are those that the architecture's own modules ask for. What a query sees is a matter of
positions along its path, not of places in memory, so a window reaches back over ancestors alone.
"""

# B batch  G key-value heads  R query heads to each  Q queries  K keys  E head width  T nodes

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

NAME = "truing"


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
class Branches:
    """Nodes of a tree that see their ancestors, some of them in the cache."""

    distance_TK: Tensor
    """Positions from each node to each."""

    def attend(self, _: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]) -> Tensor:
        """The mask says what is an ancestor; windows and caps come on top."""
        shape = query.shape[2:4]
        scores = (query.flatten(2, 3) @ key.transpose(-2, -1)).unflatten(2, shape)
        scores = capped(scores, rules) + mask[:, :, None]
        if (far := beyond(self.distance_TK, rules)) is not None:
            scores = scores.masked_fill(far, torch.finfo(scores.dtype).min)
        return (weights(scores, rules).flatten(2, 3) @ value).unflatten(2, shape)
