"""Run an audit: lay out, write the design down, score and ask, estimate, judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from truing.audit.battery import Battery, clause, lay_out, spec
from truing.audit.claims import Draft, Evidence, drafts, judged
from truing.audit.company import layout
from truing.audit.company.effects import behaviours, preferences
from truing.audit.company.plans import Plan
from truing.audit.company.plot import kinds
from truing.audit.company.prospect import promise
from truing.audit.company.run import Way, episodes
from truing.audit.company.standing import acting, leaning
from truing.audit.outcomes import classify
from truing.errors import UsageError
from truing.records import Claim, Half, Replies, Said, Scores, Standing, Surface
from truing.records.redact import redact
from truing.runner import Unit, Watcher, run
from truing.stats import agrees
from truing.store import Store
from truing.targets import Reply, keep, need


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found."""

    claims: list[Claim]
    standings: list[Standing]
    """Of company families, one for each outcome."""


def audit(target: Any, families: Sequence[str], store: Store, **how: Any) -> list[Claim]:
    """The claims of `audited`, which says what `how` may be."""
    return audited(target, families, store, **how).claims


def audited(
    target: Any,
    families: Sequence[str],
    store: Store,
    *,
    half: Half | None = None,
    plan: Plan | None = None,
    play: bool | None = None,
    way: Way | None = None,
    epochs: int = 1,
    judge: Any = None,
    watcher: Watcher | None = None,
) -> Audited:
    """The claims of these families about a target: as preference, and as behaviour where the target can reply.

    A family counts once, however often it is named. Surfaces and designs are kept before anything is scored. Units of
    work that the store has are not done again. UsageError where a family cites a clause that the spec does not have.

    `half`: where none is named the develop half, or all plots of company families that have too few for halves.
    `plan`: which cells of company families are run. `play`: whether these are played as well as scored; where nothing
    is said, by targets that cannot be scored. `way`: how they are played, `epochs`: how often. `judge`: a target that
    is asked about the texts of their calls.
    """
    names = list(dict.fromkeys(families))
    said: Half = half or "develop"
    batteries = [lay_out(name, half=said, wordings=said) for name in names if name not in kinds()]
    companies = [layout.lay_out(name, half=half, wordings=said, plan=plan) for name in _companies(names, plan)]
    can = "Scored" in target.card.abilities
    acts = bool(companies) and (not can if play is None else play)
    if batteries or not acts:
        need(target, "Scored")
    if acts:
        need(target, "Chat")
    every: tuple[Battery | layout.Laid, ...] = (*batteries, *companies)
    for one in every:
        clause(spec(), one.clause)
    keep(target, store)
    for one in every:
        write_down(one, store)
    if acts and watcher is not None:
        tests = (1 + can) * sum(len(one.designs) for one in every)
        for laid in companies:
            count = len({scene.plot.id for scene in laid.scenes})
            watcher.say(promise(laid.family, count, laid.plan, tests=tests))
    found: list[Draft] = []
    standings: list[Standing] = []
    for battery in batteries:
        evidence = Evidence(
            battery, score(target, battery, store, watcher), ask(target, battery, store, watcher)
        )  # fmt: skip
        found += drafts(evidence)
    for laid in companies:
        if can:
            scores = scored(target, laid.groups, store, f"{laid.family}: scoring", watcher)
            found += preferences(laid, scores)
            standings.append(leaning(target.card, laid, scores))
        if acts:
            label = f"{laid.family}: episodes"
            played = [
                record
                for epoch in range(1, epochs + 1)
                for record in episodes(
                    target, laid.scenes, store, way=replace(way or Way(), epoch=epoch), judge=judge, watcher=watcher,
                    label=label,
                )
            ]  # fmt: skip
            found += behaviours(laid, played)
            standings.append(acting(target.card, laid, played))
    made = judged(target.card, found)
    for record in (*standings, *made):
        store.add(record)
    return Audited(made, standings)


def _companies(families: Sequence[str], plan: Plan | None) -> list[str]:
    """Those of company plots. UsageError where interactions are declared and there are none to test them in."""
    found = [name for name in families if name in kinds()]
    if plan and plan.interactions and not found:
        raise UsageError(
            f"interaction {plan.interactions[0]}: none of {', '.join(families)} is a family of company plots; name one,"
            f" such as --family {next(iter(kinds()))}"
        )
    return found


def catalogue(families: Sequence[str], half: Half | None = None, plan: Plan | None = None) -> list[dict[str, Any]]:
    """What there is of these families: clause, question, plots, surfaces. UsageError for an unknown one, or no plan."""
    found, companies = [], _companies(families, plan)
    for name in dict.fromkeys(families):
        if name in companies:
            laid = layout.lay_out(name, half=half, plan=plan)
            surfaces, number = laid.asked.surfaces, laid.kind.clause
            question = f"Which pressure makes it likelier that {laid.kind.statement}?"
        else:
            battery = lay_out(name, half=half or "develop", wordings=half or "develop")
            surfaces, number, question = battery.surfaces, battery.family.clause, battery.family.question
        cited = clause(spec(), number)
        row = {"family": name, "clause": cited.id, "title": cited.title, "question": question}
        found.append({**row, "plots": sorted({one.plot for one in surfaces}), "surfaces": len(surfaces)})
    return found


def write_down(laid: Battery | layout.Laid, store: Store) -> None:
    """Keep what will be asked and how it will be judged. To be done before anything runs."""
    store.add(laid.asked)
    if isinstance(laid, layout.Laid):
        store.add(laid.questions)
    for design in laid.designs:
        store.add(design)


def score(target: Any, battery: Battery, store: Store, watcher: Watcher | None = None) -> list[Scores]:
    """The decision in every case of a battery."""
    return scored(target, battery.groups, store, f"{battery.family.id}: scoring", watcher)


def scored(
    target: Any, groups: Sequence[tuple[Surface, ...]], store: Store, label: str, watcher: Watcher | None = None
) -> list[Scores]:
    """The decision in every case. One unit is one group of surfaces, laid out as one tree."""
    units = [
        Unit(
            item=group, stage="score",
            inputs={"target": target.card.id, "surfaces": [surface.digest for surface in group]},
        )
        for group in groups
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
