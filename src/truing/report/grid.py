"""Many targets beside each other: a heat map over families, intervals with letters, every target's pressures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from truing.records import Claim, Estimate, Grid, Standing
from truing.report import numbers
from truing.report.intervals import Chart, Row, by_unit, chart, named
from truing.report.pool import Pool, short

STEPS = 8
"""Shades of a heat map, beside none."""


@dataclass(frozen=True, slots=True)
class Heat:
    """One field of a heat map."""

    said: str
    shade: str
    """Class of its colour, by the most that it can be: "" for none, more-1 to more-8, less-1 to less-8."""
    note: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Map:
    """Fields by row and column. Colours go up to the largest absolute value of the map."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Heat, ...]], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One family and outcome, over targets."""

    title: str
    clause: str
    harm: Chart
    pressures: Map


@dataclass(frozen=True, slots=True)
class GridView:
    """A grid as it stands in the page."""

    anchor: str
    targets: tuple[str, ...]
    maps: tuple[Map, ...]
    families: tuple[Family, ...]
    slopes: tuple[Chart, ...]
    capability_from: str
    failed: tuple[tuple[str, str], ...]


def view(grid: Grid, pool: Pool) -> GridView:
    """A grid's view, out of its standings and claims."""
    names = {card: name for name, card in grid.targets}
    standings = pool.some(Standing, grid.standings)
    claims = [claim for claim in pool.some(Claim, grid.parents) if claim.effect]
    letters = dict(grid.ties)
    return GridView(
        anchor=f"grid-{short(grid.id)}", targets=tuple(names.values()),
        maps=tuple(
            _levels(list(group), names) for _, group in groupby(_sorted(standings), key=lambda one: one.outcome)
        ),
        families=tuple(
            _family(list(group), claims, names, letters)
            for _, group in groupby(_sorted(standings), key=lambda one: (one.outcome, one.family))
        ),
        slopes=tuple(by_unit(named(grid.slopes), signed=True, source="Each target is one observation")),
        capability_from=grid.capability_from, failed=grid.failed,
    )  # fmt: skip


def _sorted(standings: Sequence[Standing]) -> list[Standing]:
    return sorted(standings, key=lambda one: (one.outcome, one.family))


def _levels(some: Sequence[Standing], names: dict[str, str]) -> Map:
    """Harm where the means are there: targets down, families across."""
    families = sorted({one.family for one in some})
    by = {(one.target, one.family): one for one in some}
    largest = max((abs(one.harm.value) for one in some if isinstance(one.harm, Estimate)), default=0.0)
    scale = 1.0 if some[0].outcome == "behaviour" else largest
    cards = [card for card in names if any(one.target == card for one in some)]
    rows = tuple(
        (names[card], tuple(_level(by.get((card, family)), scale) for family in families)) for card in cards
    )  # fmt: skip
    what = "Probability of harm" if some[0].outcome == "behaviour" else "Leaning to harm, nats per token"
    return Map(f"{what} where the means are there.", tuple(families), rows)


def _level(one: Standing | None, scale: float) -> Heat:
    if one is None or not isinstance(one.harm, Estimate):
        return Heat("not measured", "")
    said, most = numbers.number(one.harm.value, decimals=2), _most(one)
    if most is not None:
        said = f"{said} to {numbers.number(most, decimals=2)}"
    return Heat(said, _shade(one.harm.value if most is None else most, scale), numbers.full(one.harm))


def _most(one: Standing) -> float | None:
    """Harm if every undecided episode had been harmful; None where none is undecided."""
    return one.worst_case[1] if one.worst_case and one.worst_case[1] > one.worst_case[0] else None


def _shade(value: float, scale: float) -> str:
    step = min(STEPS, round(STEPS * abs(value) / scale)) if scale else 0
    return f"{'more' if value > 0 else 'less'}-{step}" if step else ""


def _family(
    some: Sequence[Standing], claims: Sequence[Claim], names: dict[str, str], letters: dict[str, str]
) -> Family:
    first = some[0]
    ordered = sorted(some, key=lambda one: -one.harm.value if isinstance(one.harm, Estimate) else 1e9)
    rows = [
        Row(names[one.target], one.harm, "filled", _note(one, letters), tuple(low for _, low, _ in one.by_plot))
        for one in ordered
    ]
    theirs = [claim for claim in claims if (claim.family, claim.outcome) == (first.family, first.outcome)]
    return Family(
        title=f"{first.family}, as {first.outcome}", clause=first.clause,
        harm=chart(rows, source="Targets that share a letter were not told apart; dots are plots"),
        pressures=_pressures(theirs, [one.target for one in ordered], names),
    )  # fmt: skip


def _note(one: Standing, letters: dict[str, str]) -> str:
    """Its letters, and how much harm there may be."""
    most = _most(one)
    open_ = "" if most is None else f"up to {numbers.number(most, decimals=2)} with what is undecided"
    return "; ".join(filter(None, (letters.get(one.id, ""), open_)))


def _pressures(claims: Sequence[Claim], cards: Sequence[str], names: dict[str, str]) -> Map:
    """Effects of every level beyond the effect without the means: targets down, levels across."""
    effects = list(dict.fromkeys(claim.effect for claim in claims))
    by = {(claim.target, claim.effect): claim for claim in claims}
    seen = [claim.specific.value for claim in claims if isinstance(claim.specific, Estimate)]
    scale = max(map(abs, seen), default=0.0)
    rows = tuple(
        (names[card], tuple(_effect(by.get((card, effect)), scale) for effect in effects)) for card in cards
    )  # fmt: skip
    return Map(
        "What each pressure adds to harm, beyond what it adds without the means. Bold: supported after Holm over the"
        " target's effects.",
        tuple(effects), rows,
    )  # fmt: skip


def _effect(claim: Claim | None, scale: float) -> Heat:
    if claim is None or not isinstance(claim.specific, Estimate):
        return Heat("not measured", "")
    value = claim.specific.value
    said = numbers.number(value, signed=True, decimals=2)
    note = f"{claim.verdict}: {numbers.full(claim.specific, signed=True)}"
    return Heat(said, _shade(value, scale), note, strong=claim.verdict == "supported")
