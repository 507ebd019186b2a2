"""Greedy replies in a batch: what the prompts share is computed once, and a finished row leaves."""

# B rows  N nodes of a tree  W width of the cache

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.inside import forward
from truing.targets.local.tree import plant

TREE = 1024
"""Prompt tokens, counted without sharing, that are laid into one tree: attention grows with the square of a tree."""


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Collection[int]) -> list[list[int]]:
    """1 to `max_tokens` token ids written after each prompt, a stop token (if reached) included."""
    token_B, cache, mask_BW = _begin(model, prompts)
    position_B = mask_BW.sum(-1)
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    while True:
        for row, new in zip(live, token_B.tolist(), strict=True):
            written[row].append(new)
        going = [i for i, row in enumerate(live) if written[row][-1] not in stop and len(written[row]) < max_tokens]
        if not going:
            return written
        if len(going) < len(live):
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            token_B, mask_BW, position_B = token_B[keep], mask_BW[keep], position_B[keep]
            live = [live[i] for i in going]
        mask_BW = torch.cat([mask_BW, mask_BW.new_ones(len(live), 1)], dim=1)
        logits = model(
            input_ids=token_B[:, None],
            attention_mask=mask_BW,
            position_ids=position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        token_B, position_B = logits[:, -1].argmax(-1), position_B + 1


def _begin(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any, Tensor]:
    """First token after each prompt, the cache of all prompts padded on the left, and which of it is real."""
    from transformers import DynamicCache

    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    mask_BW = (torch.arange(width) >= width - lengths[:, None]).long()
    firsts, layers = [], []
    for some in _chunks(prompts):
        tree, routes = plant(some)
        seen = DynamicCache()
        last_B = torch.stack([route[-1] for route in routes])
        kept, inverse = last_B.unique(return_inverse=True)
        logits = forward(model, tree, kept, cache=seen).logits[0]
        firsts.append(logits.argmax(-1)[inverse.to(logits.device)])
        # Padding takes node 0: it is masked, and so never looked at.
        node_BW = torch.stack([torch.nn.functional.pad(route, (width - len(route), 0)) for route in routes])
        node_BW = node_BW.to(model.device)
        # (1, heads, N, E) -> (B, heads, W, E)
        layers.append([[kv[0][:, node_BW].transpose(0, 1) for kv in (at.keys, at.values)] for at in seen.layers])
    cache = DynamicCache()
    for number, parts in enumerate(zip(*layers, strict=True)):
        keys, values = (torch.cat(kv) for kv in zip(*parts, strict=True))
        cache.update(keys, values, number)
    return torch.cat(firsts), cache, mask_BW.to(model.device)


def _chunks(prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbouring prompts, as many as one tree takes."""
    some: list[Sequence[int]] = []
    for prompt in prompts:
        if some and sum(map(len, some)) + len(prompt) > TREE:
            yield some
            some = []
        some.append(prompt)
    yield some
