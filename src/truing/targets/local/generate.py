"""Replies in a batch: what prompts share is computed and kept once, rows join and leave between steps."""

# B rows  L tokens of tails  M kept nodes  V vocabulary

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local.attention import alone, over
from truing.targets.local.memory import BLOCK, ROWS, Costs, out_of_memory, release, rows_need
from truing.targets.local.rows import Rows, grouped
from truing.targets.local.score import walk
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask, Writer, Written
from truing.text import short

PATIENCE = 16
"""Steps after which those that could join do, however few."""


class Batch:
    """Replies of one model that are written together, and those that wait for room."""

    def __init__(
        self,
        model: Any,
        *,
        most: int = ROWS,
        block: int = BLOCK,
        budget: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """At most so many rows at once, in passes of so many prompt tokens, in so many bytes beyond the weights."""
        if most < 1:
            raise ValueError(f"{most} rows at once")
        self.waiting: list[Writer] = []
        self.live: list[Writer] = []
        self._model, self._say = model, say
        self._most, self._block, self._budget = most, block, budget
        self._fit = most
        """As many rows as there turned out to be memory for; all are tried again once the batch was empty."""
        self._passed = 0
        """Steps that were made since some could have joined."""
        self._costs = Costs.of(model)
        self._rows: Rows | None = None

    def add(self, writers: Iterable[Writer]) -> None:
        """Let these wait for their turn. Those that join at once share what they begin with."""
        self.waiting += writers

    def advance(self) -> None:
        """One token more for every row, after those that wait have joined as far as there is room.

        Where memory runs out, half of those that join, or else of the rows, go back and wait; what they wrote stays.
        One that cannot be written even alone fails.
        """
        self.waiting = [writer for writer in self.waiting if writer.ended is None]
        self._leave()
        joining = self._admitted()
        try:
            if joining:
                taking, logits_BV = self._join(joining)
            elif self._rows is not None:
                ids_B = torch.tensor([writer.ids[-1] for writer in self.live], device=self._model.device)
                taking, logits_BV = self.live, step(self._model, self._rows, ids_B)
            else:
                return
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._make_room(error, joining)
            return
        # Not within the above: a row that has its token must not go back.
        for writer, logits_V, likeliest in zip(taking, logits_BV, logits_BV.argmax(-1).tolist(), strict=True):
            writer.take(logits_V, likeliest)
        self._leave()

    def _admitted(self) -> list[Writer]:
        """Who joins now. Joining copies what all rows have of their own, so rows join in bunches, or after a while."""
        fit = self.waiting[: max(0, self._fit - len(self.live))]
        bunch = min(len(self.waiting), self._fit // 8)
        if not fit or (self.live and len(fit) < bunch and self._passed < PATIENCE):
            self._passed += bool(fit)
            return []
        self._passed = 0
        if self._budget is not None:
            least = 0 if self.live else 1  # one alone is tried, whatever was planned
            count = bisect_right(range(1, len(fit) + 1), self._budget, key=lambda count: self._needs(fit[:count]))
            fit = fit[: max(least, count)]
        return fit

    def _needs(self, new: Sequence[Writer]) -> int:
        """Bytes for the rows that are there and for these."""
        paths, more = sorted(writer.path for writer in new), max(writer.left for writer in [*self.live, *new])
        if (rows := self._rows) is None:
            return rows_need(self._costs, paths, more)
        prefixes = sum(group.shared for group in rows.groups)
        seen = int(rows.position_B.max())
        return rows_need(
            self._costs, paths, more, live=len(rows), prefixes=prefixes, tail=rows.used, seen=seen
        )  # fmt: skip

    @torch.no_grad()
    def _join(self, new: list[Writer]) -> tuple[list[Writer], Tensor]:
        """Compute what the new rows begin with; they, and the logits after each."""
        new = sorted(new, key=lambda writer: writer.path)
        logits_BV, rows = begin(self._model, [writer.path for writer in new], block=self._block, say=self._say)
        if self._rows is None:
            self._rows = rows
        else:
            self._rows.join(rows)
        self.waiting = [writer for writer in self.waiting if writer not in new]
        self.live += new
        return new, logits_BV

    def _make_room(self, error: Exception, joining: list[Writer]) -> None:
        release()
        trying = joining or self.live
        if len(trying) == 1 and not (joining and self.live):
            ask = trying[0].ask
            what = f"a reply of up to {ask.max_tokens} tokens after {len(ask.prompt)}"
            trying[0].fail(TargetError(f"no memory for {what}, even alone: {short(error)}"))
            self._leave()
            return
        self._fit = max(1, len(trying) // 2 + (len(self.live) if joining else 0))
        self._say(f"out of memory: going on with {self._fit} replies at once")
        back = self.live[self._fit :]
        if back:
            self._keep(range(self._fit))
            self.waiting = back + self.waiting

    def _leave(self) -> None:
        going = [row for row, writer in enumerate(self.live) if writer.ended is None]
        if len(going) < len(self.live):
            self._keep(going)
            if not going:
                self._fit = self._most

    def _keep(self, going: Sequence[int]) -> None:
        self.live = [self.live[row] for row in going]
        if not going:
            self._rows = None
        elif self._rows is not None:
            self._rows.keep(torch.tensor(going, device=self._model.device))


def write(batch: Batch, asks: Sequence[Ask], tokenizer: Any = None) -> list[Written]:
    """What is written for each."""
    writers = [Writer(ask, tokenizer) for ask in asks]
    batch.add(sorted(writers, key=lambda writer: writer.path))  # neighbours join together
    while batch.waiting or batch.live:
        batch.advance()
        for writer in writers:
            if writer.error is not None:
                raise writer.error
    return [writer.written for writer in writers]


@torch.no_grad()
def step(model: Any, rows: Rows, ids_B: Tensor) -> Tensor:
    """Logits after one token more in every row, shape (B, V)."""
    with alone(model), over(model, rows):
        logits = model(
            input_ids=ids_B[:, None],
            attention_mask=torch.zeros(len(rows), 1, 1, rows.used + 1, dtype=model.dtype, device=model.device),
            position_ids=rows.position_B[:, None],
            past_key_values=rows,
            use_cache=True,
        ).logits
    rows.stepped()
    return logits[:, -1]


def begin(
    model: Any, prompts: Sequence[Sequence[int]], *, block: int = BLOCK, say: Callable[[str], None] = print
) -> tuple[Tensor, Rows]:
    """Logits after each of the sorted prompts, shape (B, V), and their keys and values."""
    groups = grouped(prompts)
    rows = Rows(groups, torch.tensor([len(prompt) for prompt in prompts], device=model.device))
    tree, routes = plant(prompts)
    shared = [group.shared for group in groups for _ in range(group.start, group.stop)]
    own = [route[common:] for route, common in zip(routes, shared, strict=True)]
    row_L = torch.cat([torch.full((len(nodes),), row) for row, nodes in enumerate(own)])
    slot_L = torch.cat([torch.arange(rows.used - len(nodes), rows.used) for nodes in own])
    node_L = torch.cat(own)
    prefixes = [routes[group.start][: group.shared] for group in groups]
    kept_M, inverse_B = torch.stack([route[-1] for route in routes]).unique(return_inverse=True)
    found, done = [], 0
    for logits, cache, held in walk(model, tree, kept_M, lambda logits: logits, block=block, say=say):
        stop = int(held[-1]) + 1
        offset = len(held) - stop  # from a node of this block to its place in the cache
        here = (node_L >= done) & (node_L < stop)
        tails = (row_L[here], slot_L[here], node_L[here] + offset)
        parts = []
        for nodes in prefixes:
            inside = (nodes >= done) & (nodes < stop)
            parts.append((inside.nonzero().flatten(), nodes[inside] + offset))
        for number, layer in enumerate(cache.layers):
            rows.put(number, layer.keys[0], layer.values[0], tails, parts)
        found.append(logits)
        done = stop
    return torch.cat(found)[inverse_B.to(model.device)], rows
