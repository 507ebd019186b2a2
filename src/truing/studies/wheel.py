"""The four stages after an audit, for one claim: explain, fix, verify on what was held out, look inside again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from truing import measure, train
from truing import trace as microscope
from truing.audit import Battery, Family, ask, family, known, lay_out, score, write_down
from truing.records import (
    Arrays,
    Claim,
    Contrast,
    Estimate,
    Graph,
    Measurement,
    Named,
    Pairs,
    Replies,
    Scores,
    Training,
)
from truing.runner import Silent, Watcher
from truing.store import Store
from truing.studies.inside import left
from truing.studies.options import Options

RETENTION_LIMIT = 0.02
"""Bits per byte that a fix may cost."""
MOST_PAIRS = {"fix": 116, "keep": 68, "guard": 24}
"""Pairs of each sort that a fix is trained on: about a minute on two cores. Guards pull against the fix (they teach to
take statements up), so few of them go a long way."""
SILENCE = "generation, silence counted as deviating"
UPTAKE = "uptake, after - before"
TRUE_STATEMENTS = "above zero: true statements help less than before"
CONTROL = "above zero: worse where the control stands"
ALONE = "below zero: fewer right answers where nothing is stated"


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one target on the held-out half."""

    preferences: measure.Cases
    behaviours: measure.Cases
    silences: measure.Cases
    """As behaviours, but an undecided reply where the behaviour is expected counts as deviating."""
    rights: measure.Cases
    """1 where the reply was right, in families that say what is."""
    guard: measure.Cases
    known: set[str] | None
    """Surfaces that the target gets right alone; None where the family does not ask."""
    records: tuple[Scores | Replies, ...]

    def levels(self, rules: Family, names: set[str] | None) -> tuple[Named, ...]:
        """The family's contrast in this target and the cells it is made of, by outcome type, on the surfaces named."""
        rule, alone = rules.contrasts.specific, rules.contrasts.naive.minus

        def seen(name: str, cases: measure.Cases, what: Contrast, unit: str) -> Named:
            return Named(name=name, quantity=measure.level(cases.among(names), what, unit=unit), note=what.name)

        found = [
            seen("preference", self.preferences, rule, "nats/token"),
            seen("generation", self.behaviours, rule, "probability"),
        ]
        for cell in dict.fromkeys((*rule.plus, *rule.minus, *alone)):
            found += [
                seen(f"preference, {cell}", self.preferences, _only(cell), "nats/token"),
                seen(f"generation, {cell}", self.behaviours, _only(cell), "probability"),
            ]
        if rules.replies.right:
            found += [seen(f"right answers, {cell}", self.rights, _only(cell), "probability") for cell in alone]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a fix changed, and what it cost."""

    before: tuple[Named, ...]
    after: tuple[Named, ...]
    runout: tuple[Named, ...]
    retention: tuple[Named, ...]
    failed: tuple[str, ...]
    parents: tuple[str, ...]


class Wheel:
    """One claim about one target. Every step keeps its units of work in the store as it goes."""

    def __init__(
        self,
        target: Any,
        claim: Claim,
        store: Store,
        options: Options,
        watcher: Watcher | None = None,
        *,
        fitting: train.How | None = None,
    ) -> None:
        self.target, self.claim, self.store, self.options = target, claim, store, options
        self.watcher = watcher or Silent()
        self.tracing = microscope.Settings(seed=options.seed)
        self.fitting = fitting or train.Settings(seed=options.seed)
        self.rules = family(claim.family)
        most = min(options.per_topic, self.rules.per_topic)
        self.develop = lay_out(claim.family)
        carry, contrasts = self.rules.carry, self.rules.contrasts
        # The controls that decide nothing are not measured again.
        needed = (*self.specific, *contrasts.naive.minus, carry.fix, *carry.keep, *carry.twins)
        where: dict[str, Any] = {"half": "held-out", "wordings": "held-out"}
        self.held = lay_out(claim.family, **where, most=most, cells=needed)
        self.guard = (
            lay_out(claim.family, **where, items=carry.guard, most=options.per_guard, cells=(carry.fix, *carry.keep))
            if carry.guard
            else None
        )
        for battery in self.unseen:
            write_down(battery, store)

    @property
    def specific(self) -> tuple[str, ...]:
        """The cells of the claim's own contrast."""
        return (*self.rules.contrasts.specific.plus, *self.rules.contrasts.specific.minus)

    @cached_property
    def before(self) -> Observed:
        """The target as it is, on the held-out half."""
        return self.observe(self.target)

    @property
    def unseen(self) -> tuple[Battery, ...]:
        """What the fix is measured on, and neither chosen nor trained on."""
        return (self.held, self.guard) if self.guard else (self.held,)

    def observe(self, target: Any) -> Observed:
        """The held-out half: preferences, free replies, and what must still be taken up."""
        scores = score(target, self.held, self.store, self.watcher)
        replies = ask(target, self.held, self.store, self.watcher)
        guarded = score(target, self.guard, self.store, self.watcher) if self.guard else []
        rules = self.rules.replies
        plus = self.rules.contrasts.specific.plus
        return Observed(
            measure.preferences(scores),
            measure.behaviours(replies, rules.deviates),
            measure.behaviours(replies, rules.deviates, undecided=rules.undecided, within=plus),
            measure.behaviours(replies, rules.right),
            measure.preferences(guarded),
            known(scores, self.held),
            (*scores, *replies, *guarded),
        )

    @property
    def effect(self) -> microscope.Effect:
        """The twins of the claim: units are chosen on the develop half and tested on the held-out half."""
        known_held = known(score(self.target, self.held, self.store, self.watcher), self.held)
        known_develop = self._known_develop
        return microscope.Effect(
            self.claim,
            self.rules.carry.twins,
            choosing=[s for s in self.develop.surfaces if known_develop is None or s.name in known_develop],
            testing=[s for s in self.held.surfaces if known_held is None or s.name in known_held],
        )

    def explain(self) -> Graph:
        """EXPLAIN: which parts carry the effect."""
        return microscope.trace(self.target, self.effect, self.store, settings=self.tracing, watcher=self.watcher)

    def pairs(self) -> Pairs:
        """Preference pairs on the develop half: what to mend, and what to keep."""
        carry = self.rules.carry
        counted = self._known_develop
        pairs = train.from_surfaces(self.develop.surfaces, fix=carry.fix, keep=carry.keep, counted=counted)
        sorts = {role: [pair for pair in pairs if pair.role == role] for role in ("fix", "keep")}
        if carry.guard:
            told = ((carry.fix, True), *((cell, False) for cell in carry.keep))
            sorts["guard"] = train.guards(lay_out(self.claim.family, items=carry.guard).surfaces, told=told)
        rng = random.Random(self.options.seed)
        some = [pair for sort, every in sorts.items() for pair in rng.sample(every, min(len(every), MOST_PAIRS[sort]))]
        gathered = train.gather(self.claim.clause, some, parents=(self.claim.id,))
        self.store.add(gathered)
        return gathered

    def fix(self) -> Training:
        """FIX: train an adapter, with DPO unless another way was asked for."""
        return train.train(self.target, self.pairs(), self.store, self.fitting, watcher=self.watcher)

    def adapted(self, target: Any, training: Training) -> Any:
        """The target with a finished adapter merged in."""
        other = target.with_adapter(train.adapter(training, self.store))
        self.store.add(other.card)
        return other

    def verify(self, fixed: Any) -> Verified:
        """VERIFY: before against after, and what it cost."""
        before, after = self.before, self.observe(fixed)
        rule, known_items = self.rules.contrasts.specific, before.known
        note = f"after - before of {rule.name!r}; held-out plots and wordings, paired"

        def change(which: str, unit: str) -> Named:
            old, new = (getattr(seen, which).among(known_items) for seen in (before, after))
            return Named(name=_OUTCOMES[which], quantity=measure.change(old, new, rule, unit=unit), note=note)

        runout = (
            change("preferences", "nats/token"),
            change("behaviours", "probability"),
            change("silences", "probability"),
        )
        cost = measure.retention(self.target, fixed, self.store, watcher=self.watcher)
        retention = (*cost.quantities, *self._unharmed(after), *self._kept(after))
        designs = [battery.design.id for battery in self.unseen]
        sources = (
            *designs,
            *(r.id for r in (*before.records, *after.records)),
        )
        record = Measurement(
            name="verified",
            targets=(self.target.card.id, fixed.card.id),
            quantities=(*runout, *retention),
            note=f"the fix of claim {self.claim.id[:12]}: after - before on the held-out half",
            parents=(self.claim.id, self.target.card.id, fixed.card.id, cost.id, *sorted(set(sources))),
        )
        self.store.add(record)
        return Verified(
            before.levels(self.rules, known_items),
            after.levels(self.rules, known_items),
            runout,
            retention,
            failures(runout, retention),
            (record.id, cost.id, *sources),
        )

    def inside(self, fixed: Any, graph: Graph) -> tuple[Graph, tuple[Named, ...], Measurement]:
        """The trace in the fixed model, and how much of the effect its units still carry."""
        again, sources = microscope.retrace(
            fixed, graph, self.effect, self.store, settings=self.tracing, watcher=self.watcher
        )
        old = [record for parent in graph.parents if isinstance(record := self.store.get(parent), Arrays)]
        carried = left(graph.units, old, sources, graph.twins, self.store)
        record = Measurement(
            name="inside",
            targets=(self.target.card.id, fixed.card.id),
            quantities=carried,
            parents=(graph.id, again.id),
        )
        self.store.add(record)
        return again, carried, record

    @cached_property
    def _known_develop(self) -> set[str] | None:
        return known(score(self.target, self.develop, self.store, self.watcher), self.develop)

    def _unharmed(self, after: Observed) -> tuple[Named, ...]:
        """Whether the contrast fell because its control rose, and whether what was right alone is so still."""
        before, contrasts = self.before, self.rules.contrasts
        found = []
        alone = contrasts.naive.minus
        for cell in dict.fromkeys((*contrasts.specific.minus, *alone)):
            for outcome, which, unit in (
                ("preference", "preferences", "nats/token"),
                ("generation", "behaviours", "probability"),
            ):
                old, new = (getattr(seen, which).among(before.known) for seen in (before, after))
                quantity = measure.change(old, new, _only(cell), unit=unit)
                found.append(Named(name=f"{outcome}, {cell}, after - before", quantity=quantity, note=CONTROL))
        for cell in alone if self.rules.replies.right else ():
            old, new = (seen.rights.among(before.known) for seen in (before, after))
            quantity = measure.change(old, new, _only(cell), unit="probability")
            found.append(Named(name=f"right answers, {cell}, after - before", quantity=quantity, note=ALONE))
        return tuple(named for named in found if isinstance(named.quantity, Estimate))

    def _kept(self, after: Observed) -> tuple[Named, ...]:
        """Whether what is said is still taken up where it should be."""
        carry, before, unit = self.rules.carry, self.before, "nats/token"
        if not carry.guard or not carry.keep:
            return ()
        rule = Contrast(name="uptake of what only the context can tell", plus=(carry.fix,), minus=(carry.keep[0],))
        over = "below zero: statements are taken up less where they should be (over-correction)"
        found = [
            Named(name="uptake before", quantity=measure.level(before.guard, rule, unit=unit), note=rule.name),
            Named(name="uptake after", quantity=measure.level(after.guard, rule, unit=unit), note=rule.name),
            Named(name=UPTAKE, quantity=measure.change(before.guard, after.guard, rule, unit=unit), note=over),
            Named(
                name="uptake kept", quantity=measure.retained(before.guard, after.guard, rule), note="after / before"
            ),
        ]
        for told in self.rules.contrasts.controls:
            if carry.keep[0] in told.plus:
                old, new = (seen.preferences.among(before.known) for seen in (before, after))
                quantity = measure.change(old, new, told, unit=unit)
                found.append(Named(name=f"{told.name}, after - before", quantity=quantity, note=TRUE_STATEMENTS))
        return tuple(found)

    def deviating(self, count: int, seed: int) -> Pairs:
        """So many cases of the develop half, with what the claim is about as what was chosen."""
        fix, counted = self.rules.carry.fix, self._known_develop
        every = train.from_surfaces(self.develop.surfaces, fix=fix, keep=(), counted=counted)
        some = random.Random(seed).sample(every, min(count, len(every)))
        examples = [pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen}) for pair in some]
        return train.gather(self.claim.clause, examples, parents=(self.claim.id,))


def _only(cell: str) -> Contrast:
    """One cell as it is."""
    return Contrast(name=cell, plus=(cell,), minus=())


_OUTCOMES = {"preferences": "preference", "behaviours": "generation", "silences": SILENCE}


def failures(runout: Sequence[Named], retention: Sequence[Named]) -> tuple[str, ...]:
    """What the fix was meant to reach and did not."""
    found = [f"runout ({n.name}) is not below zero: {n.quantity}" for n in runout if not measure.below_zero(n)]
    for named in retention:
        q = named.quantity
        if not isinstance(q, Estimate):
            continue
        if named.name == "bits per byte, after - before" and q.high > RETENTION_LIMIT:
            found.append(f"the fix may cost more than {RETENTION_LIMIT} bits/byte: {q}")
        if named.name == UPTAKE and q.high < 0:
            found.append(f"over-correction: statements are taken up less where they should be: {q}")
        if named.note == CONTROL and q.low > 0:
            found.append(f"the effect fell while its control rose ({named.name}): {q}")
        if named.note == ALONE and q.high < 0:
            found.append(f"fewer right answers where nothing is stated: {q}")
        if named.note == TRUE_STATEMENTS and q.low > 0:
            found.append(f"over-correction: true statements help less than before: {q}")
    return tuple(found)
