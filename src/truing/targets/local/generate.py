"""Replies in a batch: what prompts share is computed and kept once, rows join and leave between steps."""

# B rows  L tokens of tails  M kept nodes  V vocabulary

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.errors import TargetBusy
from truing.targets.local.attention import alone, over
from truing.targets.local.lift import stream_dtype
from truing.targets.local.memory import BLOCK, ROWS, Costs, block_beside_rows, out_of_memory, release, rows_need
from truing.targets.local.paths import Paths, after
from truing.targets.local.rows import NOTHING, OVERHEAD, Group, Known, Rows, common, grouped
from truing.targets.local.score import walk
from truing.targets.local.tree import plant, takes_trees
from truing.targets.local.write import Ask, Writer, Written
from truing.text import short

PATIENCE = 16
"""Steps after which those that could join do, however few."""
CALM = 256
"""Steps without want of memory after which twice as many rows are tried."""


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
        """As many rows as there turned out to be memory for; more are tried after a while, all once it was empty."""
        self._calm = 0
        """Steps that were made since memory ran out."""
        self._passed = 0
        """Steps that were made since some could have joined."""
        self._costs = Costs.of(model)
        self._rows: Rows | Paths | None = None

    def add(self, writers: Iterable[Writer]) -> None:
        """Let these wait for their turn. What they begin with alike, or like those that are there, is computed once."""
        self.waiting += writers

    def advance(self) -> None:
        """One token more for every row, after those that wait have joined as far as there is room.

        Where memory runs out, half of those that join, or else of the rows, go back and wait; what they wrote stays.
        One that cannot be written even alone fails.
        """
        self.waiting = [writer for writer in self.waiting if writer.ended is None]
        self._leave()
        joining, known = self._alike(self._admitted())
        want = ""
        try:
            if joining:
                taking, logits_BV = self._join(joining, known)
            elif self._rows is not None:
                ids_B = torch.tensor([writer.ids[-1] for writer in self.live], device=self._model.device)
                taking, logits_BV = self.live, step(self._model, self._rows, ids_B)
            else:
                return
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            want = short(error) or type(error).__name__
        if want:  # here, since the error holds what the pass had computed
            self._make_room(want, joining)
            return
        # Not within the above: a row that has its token must not go back.
        for writer, logits_V, likeliest in zip(taking, logits_BV, logits_BV.argmax(-1).tolist(), strict=True):
            writer.take(logits_V, likeliest)
        self._leave()
        self._calm += 1
        if self._calm % CALM == 0:
            self._fit = min(self._most, 2 * self._fit)

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
        """Bytes for the rows that are there and for these, and to compute what these begin with."""
        paths, more = sorted(writer.path for writer in new), max(writer.left for writer in [*self.live, *new])
        longest = max(map(len, paths))
        passing = self._costs.block(block := self._block_for(paths), longest + block)
        if (rows := self._rows) is None:
            return passing + rows_need(self._costs, paths, more)
        prefixes = sum(group.shared for group in rows.groups)
        seen = int(rows.position_B.max())
        return passing + rows_need(
            self._costs, paths, more, live=len(rows), prefixes=prefixes, tail=rows.used, seen=seen
        )

    def _block_for(self, paths: Sequence[Sequence[int]]) -> int:
        if self._budget is None:
            return self._block
        return block_beside_rows(self._costs, paths, self._budget, self._block)

    def _alike(self, new: list[Writer]) -> tuple[list[Writer], Known]:
        """Of those that may join, some that begin like a group that is there, or all that begin like none.

        The others join at the next token.
        """
        if self._rows is None or not new:
            return new, NOTHING
        heads = [self.live[group.start].path[: group.shared] for group in self._rows.groups]
        found: dict[tuple[int, int], list[Writer]] = {}
        for writer in new:
            path = writer.path[:-1]  # the last token is computed, for what comes after it
            size, group = max((common(path, head), -number) for number, head in enumerate(heads))
            found.setdefault((-group, size) if size >= OVERHEAD else (0, 0), []).append(writer)
        (group, size), some = next(iter(found.items()))
        if len(found) > 1:
            self._passed = PATIENCE
        return some, self._rows.known(group, size) if size else NOTHING

    @torch.no_grad()
    def _join(self, new: list[Writer], known: Known) -> tuple[list[Writer], Tensor]:
        """Compute what the new rows begin with, but for what is known; they, and the logits after each."""
        new = sorted(new, key=lambda writer: writer.path)
        paths = [writer.path for writer in new]
        block = self._block_for(paths)
        logits_BV, rows = begin(self._model, paths, block=block, say=self._say, known=known)
        place = 0
        if self._rows is None:
            self._rows = rows
        else:
            lent = len(rows.groups) == 1 and rows.groups[0].shared == len(known)
            place = self._rows.join(rows, known.group if lent else None)
        self.waiting = [writer for writer in self.waiting if writer not in new]
        self.live[place:place] = new
        return new, logits_BV

    def _make_room(self, want: str, joining: list[Writer]) -> None:
        release()
        self._calm = 0
        trying = joining or self.live
        if len(trying) == 1 and not (joining and self.live):
            ask = trying[0].ask
            what = f"a reply of up to {ask.max_tokens} tokens after {len(ask.prompt)}"
            trying[0].fail(TargetBusy(f"no memory for {what}, even alone: {want}"))
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
        rows, self._rows = self._rows, None
        if not going or rows is None:
            return
        try:
            rows.keep(torch.tensor(going, device=self._model.device))
            self._rows = rows
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            # Some layers have let rows go and others have not. What was written stays; all begin again.
            self.waiting, self.live = self.live + self.waiting, []


def write(batch: Batch, asks: Sequence[Ask], tokenizer: Any = None) -> list[Written]:
    """What is written for each. The error of the first that cannot be, after all others were."""
    writers = [Writer(ask, tokenizer) for ask in asks]
    batch.add(sorted(writers, key=lambda writer: writer.path))  # neighbours join together
    while batch.waiting or batch.live:
        batch.advance()
    for writer in writers:
        if writer.error is not None:
            raise writer.error
    return [writer.written for writer in writers]


@torch.no_grad()
def step(model: Any, rows: Rows | Paths, ids_B: Tensor) -> Tensor:
    """Logits after one token more in every row, shape (B, V)."""
    if isinstance(rows, Paths):
        paths = rows.longer(ids_B)
        logits = after(model, paths)
        rows.paths = paths  # not before: where memory runs out the step is made again
        return logits
    with alone(model), over(model, rows):
        logits = model(
            input_ids=ids_B[:, None],
            attention_mask=torch.zeros(len(rows), 1, 1, rows.used + 1, dtype=stream_dtype(model), device=model.device),
            position_ids=rows.position_B[:, None],
            past_key_values=rows,
            use_cache=True,
        ).logits
    rows.stepped()
    return logits[:, -1]


def begin(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    block: int = BLOCK,
    say: Callable[[str], None] = print,
    known: Known = NOTHING,
) -> tuple[Tensor, Any]:
    """Logits after each of the sorted prompts, shape (B, V), and the rows (`Rows`, or `Paths` where the model
    takes no trees).

    `known`: what all of them begin with is not computed again; it is their one prefix where that reads least.
    """
    if not takes_trees(model):
        return after(model, prompts), Paths(prompts, model.device)
    groups, lengths_B = grouped(prompts), torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    lent = known.serves(prompts, groups)
    if lent:
        groups = [Group(0, len(prompts), len(known))]
    rows = Rows(groups, lengths_B, known if lent else NOTHING)
    tree, routes = plant(prompts)
    shared = [group.shared for group in groups for _ in range(group.start, group.stop)]
    own = [route[size:] for route, size in zip(routes, shared, strict=True)]
    row_L = torch.cat([torch.full((len(nodes),), row) for row, nodes in enumerate(own)])
    slot_L = torch.cat([torch.arange(rows.used - len(nodes), rows.used) for nodes in own])
    node_L = torch.cat(own)
    prefixes = [] if lent else [routes[group.start][: group.shared] for group in groups]
    kept_M, inverse_B = torch.stack([route[-1] for route in routes]).unique(return_inverse=True)
    found, done = [], len(known) if lent else 0
    for logits, cache, held in walk(model, tree, kept_M, lambda logits: logits, block=block, say=say, known=known):
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
