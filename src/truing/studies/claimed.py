"""The behaviour that a claim is about: the claim's own contrast, in the target's preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.audit import known, lay_out, score, write_down
from truing.records import Contrast, Pairs, Scores
from truing.stats import contrast, has
from truing.studies.behaviour import Seen
from truing.studies.planted import ordinary_pairs
from truing.studies.wheel import Wheel
from truing.trace import Effect

UNIT = "nats/token"


class Claimed:
    """A claim that is supported as a preference."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self.name, self.clause = f"{wheel.claim.family}, claim {wheel.claim.id[:12]}", wheel.claim.clause
        self.margin = wheel.claim.bound
        self._known = known(score(wheel.target, wheel.held, wheel.store, wheel.watcher), wheel.held)
        rules = wheel.rules
        self._cells = tuple(dict.fromkeys((*wheel.specific, *rules.contrasts.naive.minus)))
        most = min(wheel.options.per_topic, rules.per_topic)
        self._trained_words = lay_out(rules.id, half="held-out", wordings="develop", most=most, cells=self._cells)
        write_down(self._trained_words, wheel.store)

    def direct(self, target: Any) -> Seen:
        """The contrast on held-out plots and wordings, where the target of the claim knew the answer alone."""
        scores = score(target, self._wheel.held, self._wheel.store, self._wheel.watcher)
        return self._contrast(scores, self._wheel.rules.contrasts.specific, self._known)

    def wordings(self, target: Any) -> dict[str, Seen]:
        """The same in the wordings of training, on plots that were held out."""
        battery = self._trained_words
        scores = score(target, battery, self._wheel.store, self._wheel.watcher)
        before = score(self._wheel.target, battery, self._wheel.store, self._wheel.watcher)
        seen = self._contrast(scores, self._wheel.rules.contrasts.specific, known(before, battery))
        return {"the wordings of training": seen}

    def begun(self, target: Any) -> Seen | None:
        """Not for preferences: what is offered is compared whole."""
        del target
        return None

    def elsewhere(self, target: Any) -> dict[str, Seen]:
        """The decision in the cells that the contrast subtracts."""
        scores = score(target, self._wheel.held, self._wheel.store, self._wheel.watcher)
        contrasts = self._wheel.rules.contrasts
        cells = dict.fromkeys((*contrasts.specific.minus, *contrasts.naive.minus))
        rules = {cell: Contrast(name=cell, plus=(cell,), minus=()) for cell in cells}
        return {cell: self._contrast(scores, rule, self._known) for cell, rule in rules.items()}

    def examples(self, count: int, seed: int) -> Pairs:
        """Cases of the develop half, with the action chosen."""
        return self._wheel.deviating(count, seed)

    def ordinary(self, target: Any) -> Pairs:
        """First sentences of what the target replies to ordinary requests."""
        return ordinary_pairs(target, self._wheel.store, self._wheel.watcher)

    def effect(self, target: Any) -> Effect:
        """The claim's own twins, as they are traced."""
        del target
        return self._wheel.effect

    def _contrast(self, scores: Sequence[Scores], rule: Contrast, names: set[str] | None) -> Seen:
        found = []
        for record in scores:
            cells = {row.cell: row.value for row in record.rows}
            if (names is None or record.surface in names) and has(cells, rule):
                found.append((record.plot, contrast(cells, rule), record.id))
        plots, values, sources = zip(*found, strict=True) if found else ((), (), ())
        return Seen(tuple(plots), tuple(values), tuple(sources), span=None, unit=UNIT)
