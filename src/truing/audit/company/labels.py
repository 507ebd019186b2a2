"""Labels that readers gave: taken back from a sheet, and set beside what the machine says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from truing.audit.company.sample import Key, strata
from truing.audit.company.sheet import Sheet
from truing.errors import ContentError, RecordError, StoreError
from truing.records import Drawn, Episodes, Id, Label, Labels, Sample
from truing.store import Store

VALUES: Mapping[Label | None, float] = {"harmful": 1.0, "harmless": 0.0}
"""What a label says of harm; others do not say."""
Unit = tuple[Id, int]
"""An episode: its record, and its place in it."""


def sample_of(sheet: Sheet, store: Store) -> Sample:
    """The sample that a sheet was written for. StoreError where the store lacks it."""
    try:
        found = store.get(sheet.sample)
    except StoreError as error:
        raise StoreError(
            f"the store {store.path} lacks the sample {sheet.sample[:12]} of this sheet: give the --store that it was"
            " drawn from"
        ) from error
    if not isinstance(found, Sample):
        raise RecordError(f"record {sheet.sample[:12]} is of the kind {found.kind}, not a sample: is this its sheet?")
    return found


def labelled(sheet: Sheet, drawn: Sample, reader: str, *, partial: bool = False) -> Labels:
    """The labels of a sheet. ContentError where it is not the sample's, or not labelled as it has to be.

    `partial`: not all need be labelled, but all before the last that is. The order is random, so that a beginning of it
    is a smaller sample of the same kind; what is left of it where a reader skipped items is not.
    """
    _check(sheet, drawn)
    last = max((place for place, one in enumerate(sheet.items, start=1) if one.label), default=0)
    if not last:
        raise ContentError("no item has a label: put harmful, harmless or unclear behind `label:`")
    asked = sheet.items[: last if partial else None]
    if lacking := [one.id for one in asked if not one.label]:
        why = (
            "items after it have one, and what is skipped is not skipped at random" if partial else "--partial takes a"
        )
        why += "" if partial else " beginning of the sheet"
        raise ContentError(f"{lacking[0]} has no label ({len(lacking)} lack one): {why}; `unclear` is a label too")
    found = tuple((one.id, one.label) for one in asked if one.label)
    return Labels(sample=drawn.id, reader=reader, labels=found, parents=(drawn.id,))


def _check(sheet: Sheet, drawn: Sample) -> None:
    """ContentError where the items are not those of the sample, word for word and in order."""
    asked, there = {one.id: one for one in drawn.items}, Counter(one.id for one in sheet.items)
    if strange := [one for one in there if one not in asked]:
        raise ContentError(f"sample {drawn.id[:12]} has no item {strange[0]!r}: nothing but labels may be changed")
    if twice := [one for one, count in there.items() if count > 1]:
        raise ContentError(f"{twice[0]} stands there {there[twice[0]]} times: leave one of them")
    if lost := [one for one in asked if one not in there]:
        raise ContentError(f"{lost[0]} is missing: put it back, with an empty label if it was not read")
    if changed := [one.id for one in sheet.items if one.digest != asked[one.id].digest]:
        raise ContentError(f"{changed[0]} was changed: nothing but its label may be, or what was read is not known")
    if [one.id for one in sheet.items] != list(asked):
        raise ContentError("the items are not in the order in which they were drawn: put them back, it is random")


@dataclass(frozen=True, slots=True)
class Row:
    """An episode, what the machine says of it, and what a reader does."""

    plot: str
    cell: str
    ending: str
    label: Label | None
    """None where it was not read."""
    probability: float
    """That it was read; 0 where nothing of its class was."""

    @property
    def machine(self) -> float:
        """Harm as the machine says, 1 or 0; 0 where it does not say."""
        return float(self.ending == "harmful")

    @property
    def differs(self) -> bool:
        """Whether the reader says otherwise."""
        return VALUES.get(self.label, self.machine) != self.machine


@dataclass(frozen=True)
class Reading:
    """Labels, with the episodes that their sample was drawn from."""

    labels: Labels
    episodes: Mapping[Id, Episodes]
    given: Mapping[Unit, Label]
    sizes: Mapping[Key, int]

    def key(self, unit: Unit) -> Key:
        """The stratum of an episode."""
        record = self.episodes[unit[0]]
        return record.target, record.family, record.rows[unit[1]].ending

    def rows(self, records: Iterable[Id]) -> list[Row]:
        """The episodes of these records. Probabilities are those of what was read, which may be less than was drawn."""
        read = Counter(map(self.key, self.given))
        units = [(one, place) for one in records for place in range(len(self.episodes[one].rows))]
        found = []
        for unit in units:
            record, key = self.episodes[unit[0]], self.key(unit)
            cell = record.rows[unit[1]].cell
            found.append(Row(record.plot, cell, key[2], self.given.get(unit), read[key] / self.sizes[key]))
        return found


def reading(said: Labels, drawn: Sample, store: Store) -> Reading:
    """Labels with all that they are about. RecordError where the sample is not one of the episodes that it names."""
    found = {one.id: one for one in map(store.get, drawn.parents) if isinstance(one, Episodes)}
    sizes = strata(list(found.values()))
    told = {(one.target, one.family, one.ending): one.size for one in drawn.strata}
    units = {one.id: (one.episodes, one.row) for one in drawn.items}
    if told != sizes or not all(_is_there(one, found) for one in drawn.items):
        raise RecordError(f"sample {drawn.id[:12]} does not fit the episodes that it names: draw another")
    return Reading(said, found, {units[item]: label for item, label in said.labels}, sizes)


def _is_there(one: Drawn, episodes: Mapping[Id, Episodes]) -> bool:
    return one.episodes in episodes and 0 <= one.row < len(episodes[one.episodes].rows)
