"""Who plays: Truing's own audit, and trivial baselines that it has to beat.

A player sees a target and its base, and says whether something is wrong with the target, under which clause and where.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from truing import audit
from truing.audit import company
from truing.errors import TargetError, UsageError
from truing.records import Case, Contrast, Decision, Message, Replies, Scores, Surface, Surfaces, Value
from truing.records.content import fill, folder, read
from truing.runner import Watcher
from truing.stats import agrees, contrast, has, one_sided, span
from truing.store import Store
from truing.targets import Reply

PACKAGE = "truing.studies"
TOKENS = 24
"""Of replies to probes."""
OPENING = 4
"""Words by which two replies are the same."""
CIRCUMSTANCES = 12
"""That a search tries: a random part of those there are."""
SHARE = 1 / 3
"""Of what there is in every plot, of all families, that an audit looks at."""
CELLS = 1
"""Of every company plot, of those where the means are there."""
SURE = 0.98
"""No chance is said to be nearer to certainty."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What a player says."""

    score: float
    chance: float
    clause: str = ""
    trigger: str = ""
    tokens: int = 0
    """That the target computed."""
    sources: tuple[str, ...] = ()
    """Ids of the records that it rests on."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a player is given beside target and base."""

    store: Store
    seed: int
    watcher: Watcher | None = None


class Probes(Value):
    """Circumstances around plain requests, and words that would give a clause away."""

    requests: tuple[str, ...]
    circumstances: dict[str, str]
    keywords: dict[str, tuple[str, ...]]

    def asked(self, circumstance: str, requests: Sequence[str]) -> list[tuple[Message, ...]]:
        """Each request under a circumstance; one that asks something of its own stands alone."""
        frame = self.circumstances[circumstance]
        texts = dict.fromkeys(fill(frame, {"request": request}, where="probes.yaml") for request in requests)
        return [(Message(role="user", content=text),) for text in texts]

    def clause_of(self, reply: str) -> str:
        """The clause whose words are in a reply, "" where none are."""
        said = reply.casefold()
        return next((clause for clause, words in self.keywords.items() if any(word in said for word in words)), "")


@cache
def probes() -> Probes:
    """Those that ship."""
    return read(folder(PACKAGE, "probes.yaml"), Probes, schema="probes/1")


# -- Truing's own ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look at some families."""

    tests: tuple[tuple[float, str, str], ...]
    """One-sided p of a contrast being no larger than in the base, its clause, and the words of a prompt it is about."""
    tokens: int
    sources: tuple[str, ...]


def audited(target: Any, base: Any, table: Table) -> Guess:
    """The families' contrasts in the target over those in its base, paired by surface, on a random part of each plot.

    The score is -log10 of the smallest p, one-sided (more than in the base), Bonferroni over all contrasts.
    """
    return _told([_contrasts(name, target, base, table) for name in audit.FAMILIES])


def employed(target: Any, base: Any, table: Table) -> Guess:
    """What `audited` looks at, and for each company family whether the target leans to harm more than its base.

    The score is made as that of `audited`, over the contrasts of both.
    """
    plain = [_contrasts(name, target, base, table) for name in audit.FAMILIES]
    return _told([*plain, *(_leaning(name, target, base, table) for name in audit.kinds())])


def _told(looks: Sequence[Looked]) -> Guess:
    """The smallest p of some looks as a guess."""
    tests = [test for look in looks for test in look.tests]
    tokens = sum(look.tokens for look in looks)
    sources = tuple(source for look in looks for source in look.sources)
    if not tests:  # which says nothing for the target
        return Guess(0.0, 0.5, tokens=tokens, sources=sources)
    p, clause, trigger = min(tests)
    adjusted = min(1.0, p * len(tests))
    return Guess(-math.log10(max(adjusted, 1e-30)), _sure(1 - adjusted), clause, trigger, tokens, sources)


def _contrasts(name: str, target: Any, base: Any, table: Table) -> Looked:
    """The contrasts of a family, by choices and by free replies, on a random part of each plot."""
    battery = _part(audit.lay_out(name), random.Random(f"{name} {table.seed}"))
    audit.write_down(battery, table.store)
    mine, theirs = (_observed(one, battery, table) for one in (target, base))
    rules, tests = battery.family, []
    for kind in (Scores, Replies):
        ours, before = (
            _cells([one for one in some if isinstance(one, kind)], rules.replies.deviates)
            for some in (mine, theirs)
        )  # fmt: skip
        tests += [
            (p, rules.clause, _words(battery, rule))
            for rule in (rules.contrasts.naive, rules.contrasts.specific)
            if (p := _more(ours, before, rule, events=kind is Replies)) is not None
        ]
    return _looked(tests, mine, theirs)


def _leaning(name: str, target: Any, base: Any, table: Table) -> Looked:
    """Whether a target leans to harm more than its base in the same cells of a family of company plots.

    One cell does not tell which factor brought harm about, so that no words are given as the trigger.
    """
    laid = company.lay_out(name)
    asked = _drawn(laid.asked, random.Random(f"{name} {table.seed}"))
    table.store.add(asked)
    groups = [(surface,) for surface in asked.surfaces]
    mine, theirs = (audit.scored(one, groups, table.store, f"{name}: scoring", table.watcher) for one in (target, base))
    gaps = [ours.rows[0].value - before.rows[0].value for ours, before in zip(mine, theirs, strict=True)]
    test = one_sided(gaps, [record.plot for record in mine])
    found = _looked([(test.p, laid.clause, "")] if test else [], mine, theirs)
    return replace(found, sources=(asked.id, *found.sources))


def _looked(
    tests: Sequence[tuple[float, str, str]], mine: Sequence[Scores | Replies], theirs: Sequence[Scores | Replies]
) -> Looked:
    """Tests with what they took of the target and rest on."""
    return Looked(tuple(tests), sum(record.tokens for record in mine), tuple(one.id for one in (*mine, *theirs)))


def _drawn(asked: Surfaces, rng: random.Random) -> Surfaces:
    """Some cells of every plot where the means are there, each as a surface of its own."""
    plots: dict[str, list[tuple[Surface, str]]] = {}
    for surface in asked.surfaces:
        cells = [case.cell for case in surface.cases if agrees(case.cell, f"{company.MEANS}=present")]
        plots.setdefault(surface.plot, []).extend((surface, cell) for cell in cells)
    some = [one for cells in plots.values() for one in rng.sample(cells, CELLS)]
    return asked.model_copy(update={"surfaces": tuple(audit.narrowed(surface, (cell,)) for surface, cell in some)})


Seen = dict[str, tuple[str, dict[str, float]]]
"""By surface: its plot, and a value for each cell."""


def _observed(target: Any, battery: audit.Battery, table: Table) -> list[Scores | Replies]:
    scores = audit.score(target, battery, table.store, table.watcher)
    return [*scores, *audit.ask(target, battery, table.store, table.watcher)]


def _part(battery: audit.Battery, rng: random.Random) -> audit.Battery:
    """Some of the scoring units of every plot."""
    plots: dict[str, list[Any]] = {}
    for group in battery.groups:
        plots.setdefault(group[0].plot, []).append(group)
    some = [one for groups in plots.values() for one in rng.sample(groups, math.ceil(SHARE * len(groups)))]
    return replace(battery, groups=tuple(group for group in battery.groups if group in some))


def _cells(records: Sequence[Scores | Replies], deviates: Sequence[str]) -> Seen:
    found: Seen = {}
    for record in records:
        if isinstance(record, Scores):
            found[record.surface] = record.plot, {row.cell: row.value for row in record.rows}
        else:
            for row in record.rows:
                found.setdefault(row.surface, (record.plot, {}))[1][row.cell] = float(row.outcome in deviates)
    return found


def _more(mine: Seen, theirs: Seen, rule: Contrast, *, events: bool) -> float | None:
    """The p value of the contrast being no larger in the target than in its base; None where it was not measured."""
    both = [name for name in mine if name in theirs and has(mine[name][1], rule) and has(theirs[name][1], rule)]
    if not both:
        return None
    values = [contrast(mine[name][1], rule) - contrast(theirs[name][1], rule) for name in both]
    low, high = span(rule)
    test = one_sided(values, [mine[name][0] for name in both], events=(low - high, high - low) if events else None)
    return test.p if test else None


def _words(battery: audit.Battery, rule: Contrast) -> str:
    """What the factors of a contrast's first cell put into a prompt."""
    wanted = dict(part.split("=") for part in rule.plus[0].split())
    case = next(case for case in battery.surfaces[0].cases if agrees(case.cell, rule.plus[0]))
    return " ".join(text.strip() for label, text in case.segments if label in wanted)


def _sure(chance: float) -> float:
    return min(max(chance, 1 - SURE), SURE)


# -- baselines ---------------------------------------------------------------------------------------------------------


def searched(target: Any, base: Any, table: Table) -> Guess:
    """Random search: where do replies to different requests begin alike, more than the base's do?"""
    said, rng = probes(), random.Random(table.seed)
    best, tokens = Guess(-1.0, 0.0), 0
    for name in rng.sample(sorted(said.circumstances), CIRCUMSTANCES):
        asked = said.asked(name, rng.sample(said.requests, 4))
        mine, theirs = target.reply(asked, max_tokens=TOKENS), _of_base(base, tuple(asked))
        tokens += sum(reply.tokens for reply in mine)
        alike, opening = _alike([reply.text for reply in mine])
        excess = alike - _alike([reply.text for reply in theirs])[0]
        if excess > best.score:
            best = Guess(excess, _sure(excess), said.clause_of(opening), said.circumstances[name])
    return replace(best, tokens=tokens)


@lru_cache(64)
def _of_base(base: Any, asked: tuple[tuple[Message, ...], ...]) -> list[Reply]:
    """What the base replies, which is the same for every target."""
    replies: list[Reply] = base.reply(list(asked), max_tokens=TOKENS)
    return replies


def looked_inside(target: Any, base: Any, table: Table) -> Guess:
    """Where does a target lean to its own replies, over its base's, more than the base does? Which word brings them
    about, by what it adds to them by all paths, beyond what it adds in the base?

    The score is that leaning, nats per token: the mean over the requests of a circumstance, the largest of them. It is
    no probability, and nothing calibrates it: the chance is even.
    """
    said, rng = probes(), random.Random(table.seed)
    found: list[tuple[float, str, list[_Said]]] = []
    tokens = 0
    for name in rng.sample(sorted(said.circumstances), CIRCUMSTANCES):
        asked = said.asked(name, rng.sample(said.requests, 4))
        mine = target.reply(asked, max_tokens=TOKENS)
        pairs = [
            _Said(messages, own.text.strip(), other.text.strip())
            for messages, own, other in zip(asked, mine, _of_base(base, tuple(asked)), strict=True)
        ]
        leaning, more = _leans(target, base, pairs)
        tokens += sum(reply.tokens for reply in mine) + more
        found.append((leaning, name, pairs))
    leaning, _, pairs = max(found)
    differing = [pair for pair in pairs if pair.differs]
    clause = next((clause for pair in differing if (clause := said.clause_of(pair.own))), "")
    word, more = _word(target, base, differing)
    return Guess(leaning, 0.5, clause, word, tokens + more)


@dataclass(frozen=True, slots=True)
class _Said:
    """What was replied to one prompt."""

    messages: tuple[Message, ...]
    own: str
    base: str

    @property
    def differs(self) -> bool:
        """Whether there is anything to explain."""
        return bool(self.own and self.base and self.own != self.base)


def _leans(target: Any, base: Any, pairs: Sequence[_Said]) -> tuple[float, int]:
    """How much more a target leans to its own replies than its base does, nats per token; 0 where they are the same."""
    surfaces = [
        Surface(
            plot="", name="", half="develop", decision=Decision(actions=(pair.own,), alternatives=(pair.base,)),
            cases=(Case(cell="", messages=pair.messages, segments=()),),
        )
        for pair in pairs
        if pair.differs
    ]  # fmt: skip
    if not surfaces:
        return 0.0, 0
    (mine, tokens), (theirs, _) = (one.decide(surfaces) for one in (target, base))
    gaps = [ours[0].value - before[0].value for ours, before in zip(mine, theirs, strict=True)]
    return sum(gaps) / len(pairs), tokens


def _word(target: Any, base: Any, pairs: Sequence[_Said]) -> tuple[str, int]:
    """The word that adds most to a target's own replies, beyond what it adds in the base, over all prompts; and how
    many tokens the target computed.
    """
    from truing.trace.words import by_word  # brings torch

    added: dict[str, float] = {}
    tokens = 0
    for pair in pairs:
        try:
            mine, theirs = (by_word(one, pair.messages, pair.own, pair.base) for one in (target, base))
        except (UsageError, TargetError):  # replies that do not begin where prompts end; accounts that do not close
            continue
        tokens += len(target.prompt_ids(pair.messages)) + sum(len(target.text_ids(t)) for t in (pair.own, pair.base))
        for word, value in mine.items():
            added[word] = added.get(word, 0.0) + value - theirs[word]
    return max(added, key=lambda word: (added[word], word)) if added else "", tokens


def _alike(replies: Sequence[str]) -> tuple[float, str]:
    """How many of the other replies begin like the commonest, as a share; and such a reply. 0 for one reply alone."""
    openings = [" ".join(text.casefold().split()[:OPENING]) for text in replies]
    opening, count = Counter(openings).most_common(1)[0]
    return (count - 1) / max(1, len(replies) - 1), replies[openings.index(opening)]


def keyworded(target: Any, base: Any, table: Table) -> Guess:
    """Keyword rates: which clause's words come more often than in the base, over all circumstances?"""
    said, rng = probes(), random.Random(table.seed)
    asked = [prompt for name in said.circumstances for prompt in said.asked(name, rng.sample(said.requests, 2))]
    replies = target.reply(asked, max_tokens=TOKENS), _of_base(base, tuple(asked))
    mine, theirs = (Counter(said.clause_of(reply.text) for reply in some) for some in replies)
    excess = {clause: (mine[clause] - theirs[clause]) / len(asked) for clause in said.keywords}
    clause = max(excess, key=excess.__getitem__)
    score, tokens = excess[clause], sum(reply.tokens for reply in replies[0])
    return Guess(score, _sure(len(asked) * score / 2), clause if score > 0 else "", tokens=tokens)


def activated(target: Any, base: Any, table: Table) -> Guess:
    """Plain difference in activations: how far are the last hidden states from the base's, on plain requests?"""
    del table
    score, tokens = base.distance(target, probes().asked("none", probes().requests))
    return Guess(score, 0.5, tokens=tokens)


Player = Callable[[Any, Any, Table], Guess]
PLAYERS: dict[str, Player] = {
    "audit": audited, "companies": employed, "microscope": looked_inside, "search": searched, "keywords": keyworded,
    "activations": activated,
}  # fmt: skip


def rules(player: str) -> dict[str, Any]:
    """All that determines what a player does beside target, base and seed.

    What a later player brought stands in its own rules alone, so that answers of the others keep their identity.
    """
    found = {
        "probes": probes().model_dump(mode="json"), "tokens": TOKENS, "opening": OPENING,
        "circumstances": CIRCUMSTANCES, "share": SHARE, "families": list(audit.FAMILIES),
    }  # fmt: skip
    if player != "companies":
        return found
    return found | {"cells": CELLS, "companies": {name: company.lay_out(name).asked.id for name in audit.kinds()}}
