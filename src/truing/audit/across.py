"""Many targets in the same company families: how each stands, who does not differ, does harm go with capability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np

from truing.audit.company.layout import lay_out
from truing.audit.company.plot import kinds
from truing.audit.company.prospect import promise
from truing.audit.run import audited
from truing.errors import BudgetSpent, TargetError, UsageError
from truing.records import Claim, Estimate, Grid, Named, Quantity, Standing, Unmeasured, canonical
from truing.records.redact import redact
from truing.runner import Silent, Watcher
from truing.stats import MIN_CLUSTERS
from truing.stats.estimates import t_quantile
from truing.stats.ties import differing, letters, slope
from truing.store import Store
from truing.targets.limits import Limits, Metered, Till, payable
from truing.targets.prices import price
from truing.targets.roster import Entry, Roster

LEVEL = 0.95
REACHED = "inspect/"
"""Beginning of the providers whose targets are reached over a network."""
Load = Callable[..., Any]
"""A target by its name, a watcher and options, as `targets.resolve`."""


@dataclass(frozen=True, slots=True)
class Done:
    """One target, audited; or why it was not."""

    entry: Entry
    card: str = ""
    claims: tuple[Claim, ...] = ()
    standings: tuple[Standing, ...] = ()
    failed: str = ""
    spent: BudgetSpent | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a grid found, and whether the budget reached."""

    grid: Grid
    claims: tuple[Claim, ...]
    standings: tuple[Standing, ...]
    spent: BudgetSpent | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """What all targets have in common while they are audited."""

    roster: Roster
    families: Sequence[str]
    store: Store
    load: Load
    till: Till
    watcher: Watcher
    how: dict[str, Any]
    limits: dict[str, Limits]

    def metered(self, target: Any, entry: Entry) -> Metered:
        """A target that is counted, paid for and spaced as the file says."""
        known = price(entry.name, self.roster.price)
        return Metered(target, self.till, price=known, limits=self.limits.get(entry.provider))


def grid(
    roster: Roster,
    families: Sequence[str],
    store: Store,
    load: Load,
    *,
    till: Till | None = None,
    limits: dict[str, Limits] | None = None,
    watcher: Watcher | None = None,
    **how: Any,
) -> Found:
    """Audit every target of a file in company families, and set them beside each other. `how`: as for `audited`.

    Targets that are reached are asked at once, local ones one after the other, since each needs the whole machine. A
    target that cannot be loaded or reached is named in the grid, and the others finish. `limits`: those of the file's
    providers, where something else is asked by them too. Where the budget is spent the
    grid holds the targets that were finished, and `spent` says so. TargetError where none could be audited.
    """
    if strange := [name for name in families if name not in kinds()]:
        raise UsageError(
            f"many targets are compared in company families, and {strange[0]} is none; there are {', '.join(kinds())}"
        )
    there = Field(
        roster, families, store, load, till or Till(), watcher or Silent(), how,
        limits if limits is not None else buckets(roster),
    )  # fmt: skip
    for entry in roster.target:
        payable(entry.name, price(entry.name, roster.price), there.till.budget)
    _promise(there)
    done = _every(there)
    finished = [one for one in done if one.standings]
    spent = next((one.spent for one in done if one.spent), None)
    if not finished:
        if spent:
            raise spent
        raise TargetError("; ".join(f"{one.entry.name}: {one.failed}" for one in done))
    made = beside(finished, [(one.entry.name, one.failed) for one in done if one.failed])
    store.add(made)
    return Found(
        made, tuple(claim for one in finished for claim in one.claims),
        tuple(each for one in finished for each in one.standings), spent,
    )  # fmt: skip


def buckets(roster: Roster) -> dict[str, Limits]:
    """The limits of the providers of a file."""
    return {provider: Limits(limit) for provider, limit in roster.provider.items()}


def _promise(there: Field) -> None:
    """Say how small an effect the design can find in one target, before anything is spent."""
    laid = [lay_out(name, half=there.how.get("half"), plan=there.how.get("plan")) for name in there.families]
    tests = sum(len(one.designs) for one in laid)
    for one in laid:
        plots = len({scene.plot.id for scene in one.scenes})
        there.watcher.say(promise(one.family, plots, one.plan, tests=tests))


def _every(there: Field) -> list[Done]:
    """Each target, in the order of the file."""
    entries = there.roster.target
    there.watcher.start("targets", len(entries))
    reached = [one for one in entries if one.provider.startswith(REACHED)]
    with ThreadPoolExecutor(max(1, len(reached))) as pool:
        waiting = {one.name: pool.submit(_one, there, one) for one in reached}
        try:
            found = {one.name: _one(there, one) for one in entries if one not in reached}
            found |= {name: future.result() for name, future in waiting.items()}
        except BaseException:
            there.till.stop()  # else Ctrl-C, say, would wait for all that the threads have still to ask
            raise
    return [found[one.name] for one in entries]


def _one(there: Field, entry: Entry) -> Done:
    """Load, audit, let go."""
    try:
        target = there.load(entry.name, there.watcher, **entry.options)
    except TargetError as error:
        return _failed(there, entry, str(error))
    except (TypeError, ValueError) as error:  # an option that its kind does not have, or not with this value
        return _failed(there, entry, f"options {sorted(entry.options)}: {error}")
    metered = there.metered(target, entry)
    try:
        found = audited(metered, there.families, there.store, watcher=_inner(there), **there.how)
    except TargetError as error:
        return _failed(there, entry, str(error))
    except BudgetSpent as error:
        there.watcher.step()
        return Done(entry, failed="the budget was spent before it was finished", spent=error)
    finally:
        if hasattr(target, "close"):
            target.close()
    there.watcher.step()
    there.watcher.say(f"{entry.name} is done; in all {there.till.total}")
    return Done(entry, target.card.id, tuple(found.claims), tuple(found.standings), _missing(found.standings))


def _missing(standings: Sequence[Standing]) -> str:
    """What a target that was audited did not answer; "" where it answered everything."""
    lost = [(one.family, dict(one.classes).get("error", 0), sum(n for _, n in one.classes)) for one in standings]
    said = ", ".join(f"{family}: {errors} of {all_} episodes" for family, errors, all_ in lost if errors)
    return f"it is in the grid, but gave no reply in some of it, which is undecided ({said})" if said else ""


def _inner(there: Field) -> Watcher | None:
    """Who sees the stages of one target: nobody, where those of several would run beside each other."""
    return None if any(one.provider.startswith(REACHED) for one in there.roster.target) else there.watcher


def _failed(there: Field, entry: Entry, why: str) -> Done:
    there.watcher.step()
    there.watcher.say(f"{entry.name} is left out: {why}")
    return Done(entry, failed=why)


# -- beside each other -------------------------------------------------------------------------------------------------


def beside(done: Sequence[Done], failed: Sequence[tuple[str, str]] = ()) -> Grid:
    """The grid of targets that were audited."""
    standings = [each for one in done for each in one.standings]
    claims = [claim.id for one in done for claim in one.claims]
    able, source = _capability(done)
    groups = _groups(standings)
    ties = [pair for group in groups for pair in _ties(group)]
    slopes = [
        Named(name=f"{group[0].family}, {group[0].outcome}", quantity=regressed(group, able), note=source)
        for group in groups
    ]
    return Grid(
        targets=tuple((one.entry.name, one.card) for one in done),
        options=tuple((one.entry.name, _told(one.entry)) for one in done if one.entry.options),
        standings=tuple(one.id for one in standings),
        ties=tuple(ties), capability=tuple(able.items()), capability_from=source, slopes=tuple(slopes),
        failed=tuple(failed), parents=tuple(dict.fromkeys([*(one.id for one in standings), *claims])),
    )  # fmt: skip


TOLD = frozenset({
    "attempt_timeout", "cache", "device", "dtype", "effort", "frequency_penalty", "max_connections", "max_memory",
    "max_retries", "presence_penalty", "reasoning_effort", "reasoning_tokens", "seed", "temperature", "timeout",
    "top_k", "top_p",
})  # fmt: skip
"""Options that say how hard it was tried, or how a target was reached. Others may hold a key or an address."""


def _told(entry: Entry) -> str:
    """The options of a target that may be kept; of the others the names."""
    said = {name: value if name in TOLD else "not kept" for name, value in entry.options.items()}
    return redact(canonical(said).decode())[0]


def _groups(standings: Sequence[Standing]) -> list[list[Standing]]:
    def key(one: Standing) -> tuple[str, str]:
        return one.family, one.outcome

    return [list(group) for _, group in groupby(sorted(standings, key=key), key=key)]


def _ties(group: Sequence[Standing]) -> list[tuple[str, str]]:
    """Letters of those that were measured on the same plots, most harm first."""
    measured = [one for one in group if isinstance(one.harm, Estimate)]
    ordered = sorted(measured, key=lambda one: -_value(one))
    if not ordered:
        return []
    least, most = (np.array([[row[place] for row in one.by_plot] for one in ordered]) for place in (1, 2))
    return list(zip((one.id for one in ordered), letters(len(ordered), differing(least, most)), strict=True))


def _value(one: Standing) -> float:
    assert isinstance(one.harm, Estimate)
    return one.harm.value


def _capability(done: Sequence[Done]) -> tuple[dict[str, float], str]:
    """By card: as given for all of them, or else the mean competence over families."""
    given = {one.card: one.entry.capability for one in done if one.entry.capability is not None}
    if len(given) == len(done):
        return given, "given"
    seen = {
        one.card: [each.competence.value for each in one.standings if isinstance(each.competence, Estimate)]
        for one in done
    }
    return {card: sum(values) / len(values) for card, values in seen.items() if values}, "competence"


def regressed(group: Sequence[Standing], able: dict[str, float]) -> Quantity:
    """Slope of harm on capability over targets, t on G - 2 degrees of freedom. Each target is one observation.

    A slope is the larger, the more harm the abler targets do and the less the others. So its interval reaches from the
    lower limit with what is undecided harmful in the less able half alone, to the upper one with it harmful in the
    abler half alone.
    """
    points = [(able[one.target], one, one.harm) for one in group if one.target in able]
    measured = [(x, one, harm) for x, one, harm in points if isinstance(harm, Estimate)]
    if len(measured) < MIN_CLUSTERS:
        return Unmeasured(reason=f"{len(measured)} targets; an interval needs at least {MIN_CLUSTERS}")
    x, middle = [at for at, _, _ in measured], fmean(at for at, _, _ in measured)
    bounds = [one.worst_case or (harm.value, harm.value) for _, one, harm in measured]
    sides = (
        [low for low, _ in bounds],
        [low if at > middle else high for at, (low, high) in zip(x, bounds, strict=True)],
        [high if at > middle else low for at, (low, high) in zip(x, bounds, strict=True)],
    )
    seen, against, towards = (slope(x, y) for y in sides)
    if seen is None or against is None or towards is None:
        return Unmeasured(reason="all targets, or all but one, are equally able by this measure")
    reach = t_quantile((1 + LEVEL) / 2, len(x) - 2)
    low = min(one - reach * error for one, error in (seen, against))
    high = max(one + reach * error for one, error in (seen, towards))
    return Estimate(
        value=seen[0], low=low, high=high, level=LEVEL, n=len(x), clusters=len(x),
        unit=f"{measured[0][2].unit} per unit of capability",
        estimator="least squares over targets, HC3, t; undecided episodes either way",
    )  # fmt: skip
