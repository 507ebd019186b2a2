"""Episodes drawn at random to be read by people, more of the rare and doubtful classes, by known probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from truing.audit.company.guards import setting
from truing.audit.company.layout import rules
from truing.audit.company.plot import Plot, kinds, plots, shared
from truing.audit.company.scene import Scene, scene
from truing.audit.company.sheet import Item, Sheet, item
from truing.errors import UsageError
from truing.records import Drawn, Episodes, Id, Played, Sample, Stratum, Target, digest_of
from truing.stats.review import allocate, draw
from truing.store import Store

Key = tuple[Id, str, str]
"""A stratum: target, family, class."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The episodes that a sample is drawn from."""

    records: tuple[Episodes, ...]
    others: int = 0
    """Records that are left out, since their plots or tools are not those of this version."""

    @property
    def units(self) -> list[tuple[Episodes, int, Key]]:
        """Every episode: its record, its place in it, its stratum."""
        return [
            (record, place, (record.target, record.family, row.ending))
            for record in self.records
            for place, row in enumerate(record.rows)
        ]


def frame(store: Store, target: str | None = None, families: Collection[str] = ()) -> Frame:
    """The store's episodes of a target (its name, or the beginning of its id; None: of all) and of these families.

    UsageError where there are none.
    """
    found = [one for one in store.of_kind("episodes") if isinstance(one, Episodes)]
    if strange := sorted(set(families) - kinds().keys()):
        raise UsageError(f"no family {strange[0]!r} of companies; there are {', '.join(kinds())}")
    wanted = _targets(store, target, {one.target for one in found})
    asked = [one for one in found if one.target in wanted and (not families or one.family in families)]
    same = [one for one in asked if _plot(one) is not None]
    if not same:
        left = f"; {len(asked)} records of them were played by other plots or tools than this version's" * bool(asked)
        raise UsageError(f"the store {store.path} holds no episodes of these to read{left}. Play some: truing audit"
                         " TARGET --family coercion --play")  # fmt: skip
    return Frame(tuple(sorted(same, key=lambda one: one.id)), len(asked) - len(same))


def _targets(store: Store, said: str | None, there: Collection[Id]) -> set[Id]:
    if said is None:
        return set(there)
    cards = [card for card in map(store.get, sorted(there)) if isinstance(card, Target)]
    found = {card.id for card in cards if card.name == said or (len(said) >= 4 and card.id.startswith(said.lower()))}
    if not found:
        names = ", ".join(sorted({card.name for card in cards})) or "none at all"
        raise UsageError(f"no episodes of a target {said!r} in the store {store.path}; there are those of {names}")
    return found


@cache
def _plots(family: str) -> dict[str, tuple[Plot, Id]]:
    return {one.id: (one, rules([one])) for one in plots(family)} if family in kinds() else {}


def _plot(record: Episodes) -> Plot | None:
    """The plot of episodes, where it is still what they were played by."""
    found, digest = _plots(record.family).get(record.plot, (None, ""))
    return found if digest == record.rules else None


def sample(records: Frame, n: int, *, seed: int = 0) -> tuple[Sample, Sheet]:
    """So many episodes, drawn at random within strata, and the sheet to read them from.

    Strata are target, family and class. The same episodes and seed give the same sample. UsageError where n is too
    small for two of each.
    """
    units = records.units
    sizes = Counter(key for _, _, key in units)
    keys = sorted(sizes)
    try:
        counts = allocate([sizes[key] for key in keys], n)
    except ValueError as error:
        raise UsageError(f"--n {n}: {error}: name one --target or fewer families, or draw more") from error
    places = draw([keys.index(key) for _, _, key in units], counts, seed=seed)
    items = [_item(record, place, seed) for record, place, _ in (units[one] for one in places)]
    drawn = Sample(
        seed=seed,
        strata=tuple(
            Stratum(target=key[0], family=key[1], ending=key[2], size=sizes[key], drawn=count,
                    probability=count / sizes[key])
            for key, count in zip(keys, counts, strict=True)
        ),
        items=tuple(
            Drawn(id=shown.id, episodes=units[one][0].id, row=units[one][1], digest=shown.digest)
            for one, shown in zip(places, items, strict=True)
        ),
        parents=tuple(record.id for record in records.records),
    )  # fmt: skip
    return drawn, Sheet(sample=drawn.id, items=tuple(items))


def _item(record: Episodes, place: int, seed: int) -> Item:
    row = record.rows[place]
    name = f"item-{digest_of([record.id, place, seed])[:10]}"
    return item(name, _scene(record, row), row)


def _scene(record: Episodes, row: Played) -> Scene:
    """The cell of an episode, laid out again."""
    plot = _plot(record)
    assert plot is not None  # a frame holds no others
    levels, surface = row.cell.rsplit(" surface=", 1)
    return scene(plot, int(surface) - 1, setting(levels, shared().levels))


def strata(records: Sequence[Episodes]) -> Counter[Key]:
    """How many episodes there are of each stratum."""
    return Counter(key for _, _, key in Frame(tuple(records)).units)
