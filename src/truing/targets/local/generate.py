"""Greedy replies in a batch; a finished row leaves it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Collection[int]) -> list[list[int]]:
    """Token ids written after each prompt, a stop token (if reached) included."""
    from transformers import DynamicCache

    width, rows = max(map(len, prompts)), len(prompts)
    ids, mask = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(rows))
    cache = DynamicCache(config=model.config)
    ids, mask = ids.to(model.device), mask.to(model.device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
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
