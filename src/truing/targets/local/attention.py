"""Attention over trees and rows, for every architecture that lets its attention be replaced.

Windows, capped scores and sinks are those that the architecture's own modules ask for. What a query sees is a matter of
positions along its path, not of places in memory, so a window reaches back over ancestors alone.
"""

# B batch  G key-value heads  R query heads to each  Q queries  K keys  E head width  T nodes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "truing"
PART = 64
"""Nodes that are attended to at once."""


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

    depth_T: Tensor
    """Positions of the nodes."""
    depth_K: Tensor
    """Positions of what they may see."""
    parts: Sequence[tuple[slice, Tensor, Tensor]] = ()
    """Nodes that follow each other, all that any of them sees, and the mask between the two, which is the same in every
    layer; each part is computed apart from the others."""

    def attend(self, _: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]) -> Tensor:
        """The mask says what is an ancestor; windows and caps come on top."""
        if not self.parts:
            return _mean(query, key, value, _near(mask, self.depth_T, self.depth_K, rules), rules)
        found = []
        for some, seen, part in self.parts:
            near = _near(part, self.depth_T[some], self.depth_K[seen], rules)
            found.append(_mean(query[..., some, :], key[..., seen, :], value[..., seen, :], near, rules))
        return torch.cat(found, -2)


def _near(mask: Tensor, depth_T: Tensor, depth_K: Tensor, rules: dict[str, Any]) -> Tensor:
    """The mask without what is out of the layer's window."""
    far = beyond(depth_T[:, None] - depth_K, rules)
    return mask if far is None else mask.masked_fill(far, torch.finfo(mask.dtype).min)


def _mean(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: dict[str, Any]) -> Tensor:
    """What queries (B, G, R, Q, E) see on average."""
    if not torch.is_grad_enabled() and rules.get("softcap") is None and rules.get("s_aux") is None:
        found = scaled_dot_product_attention(
            query.flatten(1, 2), key, value, attn_mask=mask, scale=1.0, enable_gqa=True
        )  # fmt: skip
        return found.unflatten(1, query.shape[1:3])
    shape = query.shape[2:4]
    scores = capped((query.flatten(2, 3) @ key.transpose(-2, -1)).unflatten(2, shape), rules) + mask[:, :, None]
    return (weights(scores, rules).flatten(2, 3) @ value).unflatten(2, shape)


def apart(sees_TK: Tensor) -> list[tuple[slice, Tensor]]:
    """The parts of a block of nodes in depth-first order, and what each sees: ancestors of its first node, and itself.

    Of all pairs of nodes in a block few see each other, and attention computes those that do not, too.
    """
    nodes, keys = sees_TK.shape
    found = []
    for start in range(0, nodes, PART):
        stop, here = min(start + PART, nodes), keys - nodes + start
        above = sees_TK[start, :here].nonzero().flatten()
        found.append((slice(start, stop), torch.cat([above, torch.arange(here, keys - nodes + stop)])))
    return found
