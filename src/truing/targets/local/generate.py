"""Greedy replies in a batch: what the prompts share is computed once, and a finished row leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Collection[int]) -> list[list[int]]:
    """Token ids written after each prompt, a stop token (if reached) included."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    shared = _shared(prompts)
    if shared:
        start = torch.tensor([list(prompts[0][:shared])], device=model.device)
        model(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    ids, mask = _padded([prompt[shared:] for prompt in prompts], model.device)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    position = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for _ in range(max_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token: Tensor = out.logits[:, -1].argmax(-1)
        for row, new in zip(live, token.tolist(), strict=True):
            written[row].append(new)
        going = [i for i, row in enumerate(live) if written[row][-1] not in stop]
        if not going:
            break
        keep = torch.tensor(going, device=model.device)
        if len(going) < len(live):
            cache.batch_select_indices(keep)
        live = [live[i] for i in going]
        ids, mask, position = token[keep, None], mask[keep], position[keep, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
    return written


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning. The last token of every prompt stays out: each row goes on from it."""
    most = min(map(len, prompts)) - 1
    return next((i for i, column in enumerate(zip(*prompts, strict=False)) if i == most or len(set(column)) > 1), most)


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Rows of tokens padded on the left, and which of them are real."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(list(row))
        mask[number, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
