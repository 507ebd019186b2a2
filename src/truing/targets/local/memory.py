"""How much memory a pass takes beyond the weights, and what fits into what there is."""

from __future__ import annotations

import gc
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from truing.errors import TargetError, UsageError

BLOCK = 512
"""Nodes in a pass. Attention computes, and masks, every pair of nodes of a block; products of fewer rows are slower."""
SHARE = 0.5
"""Of the memory that is free: what is planned for where nothing was said."""
ROWS = 256
"""Rows in a step; products of more rows are no faster."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes that a model takes for a token, read off its configuration. Upper estimates."""

    kept: int
    """For keys and values of one token."""
    passing: int
    """For what is computed at one token of a pass on the way through a block, scores aside."""
    pair: int
    """For the attention of one token of a pass to one token that it sees."""
    out: int
    """For what comes out of the head at one token."""

    @classmethod
    def of(cls, model: Any) -> Costs:
        """The costs of a model."""
        config, size = model.config.get_text_config(), model.dtype.itemsize
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return cls(
            kept=2 * config.num_hidden_layers * groups * head * size,
            # The stream, its norm, what attention and MLP add, queries, keys, values; gate, up and their product.
            passing=size * (6 * config.hidden_size + 2 * (heads + 2 * groups) * head + 4 * inner),
            # Scores, their mask, their softmax.
            pair=size * (2 * heads + 2),
            out=3 * 4 * config.vocab_size,
        )

    def row(self, prompt: int, more: int) -> int:
        """For a row with its whole prompt and all that it may write. Tails are copied when they grow or others join."""
        return 2 * (prompt + more) * self.kept + self.passing + (prompt + more) * self.pair + self.out

    def block(self, nodes: int, held: int) -> int:
        """For a pass over so many nodes that see so many."""
        return 2 * held * self.kept + nodes * (self.passing + held * self.pair)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a piece of work takes: tokens with and without sharing, nodes in a block, rows at once, bytes."""

    tokens: int
    shared: int
    block: int
    rows: int
    bytes: int

    def __str__(self) -> str:
        rows = f", {self.rows} rows at once" if self.rows else ""
        return (
            f"{self.tokens:,} tokens, {self.shared:,} after sharing, in blocks of {self.block}{rows}:"
            f" about {self.bytes / 1e6:,.0f} MB beyond the weights"
        )


def budget(device: Any) -> int:
    """Bytes that may be planned for on a device: TRUING_MAX_MEMORY ("4GB", "500MB", bytes), or half of what is free."""
    if said := os.environ.get("TRUING_MAX_MEMORY"):
        return parsed(said)
    if torch.device(device).type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        return int(SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # no such figures on this system
        return 2 << 30


def parsed(said: str) -> int:
    """Bytes from "4GB", "500 MB" or a plain number. UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)i?B?\s*", said)
    if not found or not float(found[1]):
        raise UsageError(f"TRUING_MAX_MEMORY is {said!r}; write a number of bytes, or one such as 500MB or 4GB")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def plan_scores(costs: Costs, *, tokens: int, shared: int, longest: int, budget: int) -> Plan:
    """The largest block that fits: beside it stand the keys and values of one path.

    TargetError where not even a block of one token fits.
    """

    def needed(block: int) -> int:
        return costs.block(block, longest + block) + block * costs.out

    block = _most(needed, min(BLOCK, max(shared, 1)), budget, f"scoring a text of {longest} tokens")
    return Plan(tokens, shared, block, 0, needed(block))


def plan_rows(costs: Costs, *, tokens: int, shared: int, longest: int, more: int, rows: int, budget: int) -> Plan:
    """As many rows as fit, each with its whole prompt and all that it may write, beside one block of a prompt."""
    what = f"a reply of {more} tokens after {longest}"
    block = _most(lambda nodes: 2 * costs.block(nodes, longest + nodes), min(BLOCK, longest), budget, what)

    def needed(count: int) -> int:
        return costs.block(block, longest + block) + count * costs.row(longest, more)

    most = _most(needed, min(rows, ROWS), budget, what)
    return Plan(tokens, shared, block, most, needed(most))


def _most(needed: Any, upto: int, budget: int, what: str) -> int:
    count = upto
    while count > 1 and needed(count) > budget:
        count = max(1, math.floor(count / 2))
    if needed(count) > budget:
        raise TargetError(
            f"{what} takes about {needed(count) / 1e6:,.0f} MB beyond the weights, more than the"
            f" {budget / 1e6:,.0f} MB allowed. Raise TRUING_MAX_MEMORY, or shorten it."
        )
    return count


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the accelerator or on the host."""
    wants = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(want in str(error) for want in wants)


def release() -> None:
    """Give back what is not used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
