"""Are these the units of this effect, or those of any? As many units of ordinary effects are patched beside them.

Heads that bring a word of the prompt to the reply serve every effect, so that those of another effect take away most of
this one, too. An effect is carried by units of its own only where they mediate more than such others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from truing.records import Arrays, Estimate, Mediation, Quantity
from truing.runner import Watcher
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace.attribute import Attribution, Scoring
from truing.trace.averaging import averaged, segments_of
from truing.trace.judge import worth_comparing
from truing.trace.mediate import OTHER, Choice, top
from truing.trace.ordinary import CELLS, ordinary
from truing.trace.patching import patched_on, share_of
from truing.trace.twins import Twin, twins


def compared(
    target: LocalTarget,
    testing: Sequence[Twin],
    choices: Sequence[Choice],
    mediated: Sequence[Mediation],
    store: Store,
    watcher: Watcher | None = None,
    *,
    rule: Scoring = "relp",
) -> tuple[tuple[Mediation, ...], list[Arrays]]:
    """The shares with what other effects' units mediate beside those that hold so far, and what that rests on.

    Of the ordinary effects, that is given which the chosen units exceed least, and where it is another on the way back,
    that too: they must be exceeded, so all are.
    """
    worth = {(m.kind, m.k) for m in worth_comparing(mediated)}
    chosen = [c for c in choices if c.rule == "attribution" and (c.site, c.k) in worth]
    if not chosen:
        return tuple(mediated), []
    scores, sources = _scores(target, store, watcher, rule)
    rivals = {own: _rivals(own, scores) for own in chosen}
    patched = patched_on(target, testing, [c for own in chosen for c in (own, *rivals[own])], store, watcher)
    found = {(own.site, own.k): _beside(patched, own, rivals[own], list(scores)) for own in chosen}
    rows: list[Mediation] = []
    for m in mediated:
        least, others = found.get((m.kind, m.k), ({}, [])) if m.choice == "attribution" else ({}, [])
        rows += [m.model_copy(update=least), *others]
    return tuple(rows), [*sources, *patched]


def _scores(
    target: LocalTarget, store: Store, watcher: Watcher | None, rule: Scoring
) -> tuple[dict[str, Attribution], list[Arrays]]:
    """The mean attribution of every ordinary effect in this target, and its records."""
    found, sources = {}, []
    for one in ordinary():
        pairs, _ = twins(target, one.surfaces(), CELLS, per_plot=1)
        name = f"attribution, ordinary: {one.name}"
        found[one.name], records = averaged(target, pairs, segments_of(pairs), store, watcher, name=name, rule=rule)
        sources += records
    return found, sources


def _rivals(own: Choice, scores: Mapping[str, Attribution]) -> list[Choice]:
    """As many units of the same kind, by the scores of each other effect."""
    tables = [one.scores(own.site) for one in scores.values()]
    return [Choice(own.site, OTHER, top(score_LU, own.k), draw) for draw, score_LU in enumerate(tables)]


def _beside(
    patched: Sequence[Arrays], own: Choice, rivals: Sequence[Choice], names: Sequence[str]
) -> tuple[dict[str, Quantity], list[Mediation]]:
    """What the chosen units mediate beyond the other effect that comes closest, either way, and their shares."""

    def gap(rival: Choice, cell: str) -> Quantity:
        labels = (own.label, rival.label) if cell == "first" else (own.back_label, rival.back_label)
        return share_of(patched, labels[:1], cell, less=labels[1:])

    removed, restored = ([gap(rival, cell) for rival in rivals] for cell in ("first", "second"))
    nearest = [min(range(len(rivals)), key=lambda i: _low(gaps[i])) for gaps in (removed, restored)]
    rows = [
        Mediation(
            kind=own.site, choice=OTHER, k=own.k, of=names[at],
            share=share_of(patched, [rivals[at].label], "first"),
            restored=share_of(patched, [rivals[at].back_label], "second"),
        )
        for at in dict.fromkeys(nearest)
    ]  # fmt: skip
    return {"beyond": removed[nearest[0]], "beyond_restored": restored[nearest[1]]}, rows


def _low(gap: Quantity) -> float:
    return gap.low if isinstance(gap, Estimate) else -math.inf
