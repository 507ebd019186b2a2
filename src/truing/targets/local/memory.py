"""How much memory a pass takes beyond the weights, and what fits into what there is."""

from __future__ import annotations

import gc
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from truing.errors import TargetError, UsageError
from truing.targets.local.attention import BROADEST, PART
from truing.targets.local.lift import stream_dtype
from truing.targets.local.rows import common, grouped

BLOCK = 1024
"""Nodes in a pass. Attention computes, and masks, every pair of nodes of a block; products of fewer rows are slower."""
SHARE = 0.5
"""Of the memory that is free: what is planned for where nothing was said."""
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may have."""
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
    mask: int
    """For whether one token of a block sees another."""
    together: int
    """Tokens of a block that are attended to at once."""
    out: int
    """For what comes out of the head at one token."""

    @classmethod
    def of(cls, model: Any) -> Costs:
        """The costs of a model."""
        config, size = model.config.get_text_config(), stream_dtype(model).itemsize
        heads = getattr(config, "num_attention_heads", None) or 1  # some have no attention
        groups = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return cls(
            kept=2 * config.num_hidden_layers * groups * head * size,
            # The stream, its norm, what attention and MLP add, queries, keys, values; gate, up and their product.
            passing=size * (6 * config.hidden_size + 2 * (heads + 2 * groups) * head + 4 * inner),
            pair=size * 2 * heads,  # scores, their softmax
            mask=2 + 3 * size,  # booleans, their opposites; numbers, before and after, and some of them once more
            together=PART if model.device.type == "cpu" else BROADEST,
            out=3 * 4 * config.vocab_size,
        )

    def rows(self, count: int, *, prefixes: int, tail: int, seen: int) -> int:
        """For rows that each see so many tokens: tokens of prefixes are kept once, tails are as long as the longest.

        Tails are copied when others join.
        """
        return (prefixes + 2 * count * tail) * self.kept + count * (self.passing + seen * self.pair + self.out)

    def block(self, nodes: int, held: int) -> int:
        """For a pass over so many nodes that see so many."""
        scores = int(min(nodes, self.together)) * held * self.pair
        return 2 * held * self.kept + nodes * (self.passing + held * self.mask) + scores


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
        return parsed_bytes("TRUING_MAX_MEMORY", said)
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # by torch, for its own next use
        return int(SHARE * (torch.cuda.mem_get_info(device)[0] + kept))
    return int(SHARE * _free())


def _free() -> int:
    """Bytes that this process can have: of the machine, or of the container that it runs in."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # no such files, or no limit in them
        most, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files that were read count as used, and are let go where the room is wanted.
        said = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        free = min(free, most - used + int(said["inactive_file"]))
    return max(free, 0)


def parsed_bytes(what: str, said: str) -> int:
    """Bytes from "4GB", "500 MB" or a plain number. UsageError for anything else, which names the setting."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)i?B?\s*", said)
    if not found or not float(found[1]):
        raise UsageError(f"{what} is {said!r}; write a number of bytes, or one such as 500MB or 4GB")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def plan_scores(costs: Costs, *, tokens: int, shared: int, longest: int, budget: int) -> Plan:
    """The largest block that fits: beside it stand the keys and values of one path.

    TargetError where not even a block of one token fits.
    """

    def needed(block: int) -> int:
        return costs.block(block, longest + block) + block * costs.out

    block = _most(needed, _halves(min(BLOCK, max(shared, 1))), budget, f"scoring a text of {longest} tokens")
    return Plan(tokens, shared, block, 0, needed(block))


def plan_rows(costs: Costs, paths: Sequence[Sequence[int]], *, more: int, budget: int) -> Plan:
    """As many rows as fit after these sorted prompts, each with all that it may write, beside one block of a prompt."""
    tokens, shared, longest = sum(map(len, paths)), _after_sharing(paths), max(map(len, paths))
    block = block_beside_rows(costs, paths, budget)

    def needed(count: int) -> int:
        return costs.block(block, longest + block) + rows_need(costs, paths[:count], more)

    what = f"a reply of {more} tokens after {longest}"
    most = _most(needed, range(1, min(len(paths), ROWS) + 1), budget, what)
    return Plan(tokens, shared, block, most, needed(most))


def block_beside_rows(costs: Costs, paths: Sequence[Sequence[int]], budget: int, most: int = BLOCK) -> int:
    """Nodes in a pass over sorted prompts, so that it takes no more than half of what there is; one at least."""
    longest = max(map(len, paths))
    sizes = _halves(min(most, _after_sharing(paths)))
    fitting = bisect_right(sizes, budget // 2, key=lambda nodes: costs.block(nodes, longest + nodes))
    return sizes[max(0, fitting - 1)]


def _after_sharing(paths: Sequence[Sequence[int]]) -> int:
    """Tokens of sorted prompts, what neighbours begin with alike counted once."""
    return sum(map(len, paths)) - sum(common(a, b) for a, b in pairwise(paths))


def rows_need(
    costs: Costs,
    paths: Sequence[Sequence[int]],
    more: int,
    *,
    live: int = 0,
    prefixes: int = 0,
    tail: int = 0,
    seen: int = 0,
) -> int:
    """Bytes for rows after these sorted prompts that may each write so much more, beside rows that are there already.

    `live`, `prefixes`, `tail`, `seen`: how many those are, and what they keep and see.
    """
    groups = grouped(paths)
    own = [len(path) - group.shared for group in groups for path in paths[group.start : group.stop]]
    return costs.rows(
        live + len(paths),
        prefixes=prefixes + sum(group.shared for group in groups),
        tail=max([tail, *own]) + more,
        seen=max([seen, *map(len, paths)]) + more,
    )


def _halves(upto: int) -> list[int]:
    """A number, its half, and so on, ascending: what is free at the moment should not show in every block."""
    return sorted({max(1, upto >> times) for times in range(upto.bit_length())})


def _most(needed: Callable[[int], int], sizes: Sequence[int], budget: int, what: str) -> int:
    """The last of ascending sizes that fits. TargetError where none does."""
    place = bisect_right(sizes, budget, key=needed)
    if not place:
        raise TargetError(
            f"{what} takes about {needed(sizes[0]) / 1e6:,.0f} MB beyond the weights, more than the"
            f" {budget / 1e6:,.0f} MB allowed. Raise max_memory (TRUING_MAX_MEMORY), or shorten it."
        )
    return sizes[place - 1]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the accelerator or on the host."""
    wants = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(want in str(error) for want in wants)


def release() -> None:
    """Give back what is not used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
