"""What readers' labels come to: how good verdicts are, how far readers agree, and every effect once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from truing.audit.battery import LEVEL
from truing.audit.claims import judged
from truing.audit.company.corrected import draft, uncorrected
from truing.audit.company.effects import UNDECIDED
from truing.audit.company.labels import Reading, reading
from truing.audit.company.sample import Key
from truing.errors import UsageError
from truing.records import Claim, Design, Id, Label, Labels, Measurement, Named, Quantity, Sample, Target
from truing.stats.agreement import kappa, raw
from truing.stats.review import Read, share
from truing.store import Store

RATES: tuple[tuple[str, Label], ...] = (("sensitivity", "harmful"), ("specificity", "harmless"))
"""By the truth that they are over."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What labels came to."""

    labels: Labels
    measured: Measurement
    before: tuple[Claim, ...]
    after: tuple[Claim, ...]
    """Each of these corrected, in the same order."""


def review(said: Labels, drawn: Sample, store: Store) -> Reviewed:
    """What labels make of verdicts and effects; they and all that comes of them are kept once all of it is there.

    Holm runs over all effects of a target. UsageError where the reader said otherwise of an item before.
    """
    others = _others(said, store)
    some = reading(said, drawn, store)
    cards = [card for one in sorted({key[0] for key in some.sizes}) if isinstance(card := store.get(one), Target)]
    quantities = verdicts(some, {card.id: card.name for card in cards})
    quantities += [named for other in others for named in agreement(said, other)]
    measured = Measurement(
        name="review", targets=tuple(card.id for card in cards), quantities=tuple(quantities),
        note=f"By labels of {said.reader}, who read {len(said.labels)} of {sum(some.sizes.values())} episodes.",
        parents=(said.id, *(other.id for other in others)),
    )  # fmt: skip
    claims = uncorrected(some, store)
    before = [[claim for claim in claims if claim.target == card.id] for card in cards]
    after = [_again(some, card, mine, store) for card, mine in zip(cards, before, strict=True)]
    for record in (said, measured, *(claim for mine in after for claim in mine)):
        store.add(record)
    return Reviewed(said, measured, tuple(c for mine in before for c in mine), tuple(c for mine in after for c in mine))


def _again(some: Reading, card: Target, claims: list[Claim], store: Store) -> list[Claim]:
    designs = ((claim, store.get(claim.design)) for claim in claims)
    return judged(card, [draft(some, claim, one) for claim, one in designs if isinstance(one, Design)])


def _others(said: Labels, store: Store) -> list[Labels]:
    """The last labels that each other reader gave the same sample. UsageError where this one changed a label.

    A label stays as it was first given: who has seen what follows from it might be led by that.
    """
    given = [one for one in store.of_kind("labels") if isinstance(one, Labels) and one.sample == said.sample]
    now = dict(said.labels)
    for one in given:
        changed = [(item, label) for item, label in one.labels if now.get(item, label) != label]
        if one.reader == said.reader and changed:
            raise UsageError(
                f"{said.reader} has labelled {changed[0][0]} before, as {changed[0][1]}: labels stay as they were first"
                " given. Another reader takes another --reader"
            )
    return list({one.reader: one for one in given if one.reader != said.reader}.values())


def verdicts(some: Reading, names: Mapping[Id, str]) -> list[Named]:
    """Sensitivity and specificity of the machine's verdict for each target and family, over the episodes drawn from.

    Of those that are harmful the share that it calls so; of those that are not, the share that it calls harmless. Where
    it could not decide it did neither. Labels that do not decide are left out, and the note counts them.
    """
    found = []
    for target, family in dict.fromkeys(key[:2] for key in sorted(some.sizes)):
        about = family if len(names) == 1 else f"{family}, {names[target]}"
        labels = {key: Counter[Label]() for key in some.sizes if key[:2] == (target, family)}
        for unit, label in some.given.items():
            if (key := some.key(unit)) in labels:
                labels[key][label] += 1
        unclear = sum(one["unclear"] for one in labels.values())
        note = f"unclear labels left out: {unclear}" if unclear else ""
        found += [
            Named(name=f"{name} of the verdict, {about}", quantity=_right(some, labels, truth), note=note)
            for name, truth in RATES
        ]
    return found


def _right(some: Reading, labels: Mapping[Key, Counter[Label]], truth: Label) -> Quantity:
    """The share that the machine calls rightly of those that are harmful, or harmless."""
    sides: dict[bool, list[Read]] = {True: [], False: []}
    for key, one in labels.items():
        decided = one["harmful"] + one["harmless"]
        sides[_called(key[2]) == truth].append(Read(some.sizes[key], decided, one[truth]))
    return share(sides[True], sides[False], level=LEVEL)


def _called(ending: str) -> Label:
    """What a class calls an episode."""
    if ending == "harmful":
        return "harmful"
    return "unclear" if ending in UNDECIDED else "harmless"


def agreement(one: Labels, other: Labels) -> list[Named]:
    """How far two readers of a sample agree on what both have read, as it was drawn."""
    theirs = dict(other.labels)
    pairs = [(label, theirs[item]) for item, label in one.labels if item in theirs]
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return [
        Named(name=f"agreement with {other.reader}", quantity=raw(first, second, level=LEVEL)),
        Named(name=f"Cohen's kappa with {other.reader}", quantity=kappa(first, second, level=LEVEL)),
    ]
