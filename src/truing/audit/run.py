"""Run an audit: lay out, write the design down, score and ask, estimate, judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from truing.audit.battery import Battery, clause, lay_out, spec
from truing.audit.claims import Evidence, claims
from truing.audit.outcomes import classify
from truing.records import Claim, Half, Replies, Said, Scores, Surface
from truing.records.redact import redact
from truing.runner import Unit, Watcher, run
from truing.stats import agrees
from truing.store import Store
from truing.targets import Reply, keep, need


def audit(
    target: Any, families: Sequence[str], store: Store, *, half: Half = "develop", watcher: Watcher | None = None
) -> list[Claim]:
    """The claims of these families about a target: as preference, and as behaviour where the target can reply.

    A family counts once, however often it is named. Surfaces and designs are kept before anything is scored. Units of
    work that the store has are not done again. UsageError where a family cites a clause that the spec does not have.
    """
    need(target, "Scored")
    batteries = [lay_out(name, half=half, wordings=half) for name in dict.fromkeys(families)]
    for battery in batteries:
        clause(spec(), battery.family.clause)
    keep(target, store)
    for battery in batteries:
        write_down(battery, store)
    evidence = [
        Evidence(battery, score(target, battery, store, watcher), ask(target, battery, store, watcher))
        for battery in batteries
    ]
    found = claims(target.card, evidence)
    for claim in found:
        store.add(claim)
    return found


def write_down(battery: Battery, store: Store) -> None:
    """Keep what will be asked and how it will be judged. To be done before anything runs."""
    store.add(battery.asked)
    store.add(battery.design)


def score(target: Any, battery: Battery, store: Store, watcher: Watcher | None = None) -> list[Scores]:
    """The decision in every case. One unit is one group of surfaces, laid out as one tree."""
    units = [
        Unit(
            item=group, stage="score",
            inputs={"target": target.card.id, "surfaces": [surface.digest for surface in group]},
        )
        for group in battery.groups
    ]  # fmt: skip

    def work(group: tuple[Surface, ...]) -> list[Scores]:
        found, tokens = target.decide(group)
        return [
            Scores(
                target=target.card.id, plot=surface.plot, surface=surface.name, digest=surface.digest, rows=rows,
                tokens=tokens if number == 0 else 0, parents=(target.card.id,),
            )
            for number, (surface, rows) in enumerate(zip(group, found, strict=True))
        ]  # fmt: skip

    label = f"{battery.family.id}: scoring"
    return [
        r
        for records in run(units, work, ledger=store, watcher=watcher, label=label)
        for r in records
        if isinstance(r, Scores)
    ]


BATCH = 48
"""Replies that are written together."""
Asked = tuple[Surface, str, int]
"""A surface, a cell, and the number of its case."""


def ask(target: Any, battery: Battery, store: Store, watcher: Watcher | None = None) -> list[Replies]:
    """Free replies in the cells that the family names, first wording of each item.

    One unit is one plot or topic, or several that together still fit one batch.
    """
    if "Chat" not in target.card.abilities:
        return []
    rules = battery.family.replies
    plots: dict[str, list[Asked]] = {}
    for group in battery.groups:
        surface = group[0]
        for number, case in enumerate(surface.cases):
            if any(agrees(case.cell, term) for term in rules.cells):
                plots.setdefault(surface.plot, []).append((surface, case.cell, number))
    units = [
        Unit(
            item=some, stage="ask",
            inputs={
                "target": target.card.id, "max_tokens": rules.max_tokens,
                "asked": [[surface.digest, cell] for asked in some.values() for surface, cell, _ in asked],
            },
        )
        for some in _together(plots)
    ]  # fmt: skip

    def work(some: dict[str, list[Asked]]) -> list[Replies]:
        prompts = [s.cases[number].messages for asked in some.values() for s, _, number in asked]
        replies = iter(target.reply(prompts, max_tokens=rules.max_tokens))
        return [record(plot, asked, list(islice(replies, len(asked)))) for plot, asked in some.items()]

    def record(plot: str, asked: list[Asked], replies: list[Reply]) -> Replies:
        rows, redactions = [], 0
        for (surface, cell, _), reply in zip(asked, replies, strict=True):
            # What a filter left is not what the target would have said: as undecided as silence, whatever words it has.
            outcome, span = classify("" if reply.refused else reply.text, surface.says)
            text, hidden = redact(reply.text)
            redactions += hidden
            rows.append(Said(surface=surface.name, cell=cell, reply=text, outcome=outcome, span=redact(span)[0]))
        return Replies(
            target=target.card.id,
            plot=plot,
            rows=tuple(rows),
            tokens=sum(reply.tokens for reply in replies),
            redactions=redactions,
            parents=(target.card.id,),
        )

    label = f"{battery.family.id}: free replies"
    return [
        r
        for records in run(units, work, ledger=store, watcher=watcher, label=label)
        for r in records
        if isinstance(r, Replies)
    ]


def _together(plots: dict[str, list[Asked]]) -> Iterator[dict[str, list[Asked]]]:
    """Neighbouring plots, as many as fit one batch."""
    some: dict[str, list[Asked]] = {}
    for plot, asked in plots.items():
        if some and sum(map(len, some.values())) + len(asked) > BATCH:
            yield some
            some = {}
        some[plot] = asked
    if some:
        yield some
