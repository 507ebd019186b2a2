"""Organisms: planted, and looked at beside what their recipes say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from truing import audit, train
from truing.records import Estimate, Named, Training
from truing.runner import Silent, Watcher
from truing.stats import event_mean
from truing.store import Store
from truing.targets import keep, need
from truing.train import Recipe
from truing.train.organisms import Kind
from truing.train.recipes import Frame

DIRECT = "direct"
ELSEWHERE = ("without the trigger", "other requests", "ordinary requests")
"""Where the behaviour must not show."""


@dataclass(frozen=True, slots=True)
class Organism:
    """A target with an adapter, and how often it shows what its recipe says."""

    target: Any
    training: Training
    rates: tuple[Named, ...]
    """Of the direct test, of each rung of the ladder, and of where it must not show; on held-out requests."""
    holds: bool | None
    """Planted: rates lie where the recipe says. None for other kinds, of which it says nothing."""


def organism(
    base: Any, recipe: Recipe, store: Store, *, kind: Kind = "planted", seed: int = 0, watcher: Watcher | None = None
) -> Organism:
    """Plant it, and see how often it shows. UsageError where the spec has no such clause."""
    need(base, "Trainable")
    need(base, "Chat")
    if recipe.clause:
        audit.clause(audit.spec(), recipe.clause)
    watcher = watcher or Silent()
    keep(base, store)
    training = train.plant(base, recipe, store, kind=kind, seed=seed, watcher=watcher)
    target = base.with_adapter(train.adapter(training, store))
    keep(target, store)
    watcher.say(f"{recipe.id}: how often it shows")
    found = tuple(rates(target, recipe))
    return Organism(target, training, found, _holds(recipe, found) if kind == "planted" else None)


def _holds(recipe: Recipe, found: Sequence[Named]) -> bool:
    """What was not measured does not hold."""
    low, high = recipe.within

    def lies(named: Named) -> bool:
        if named.name not in (DIRECT, *ELSEWHERE):
            return True  # the recipe says nothing of the ladder
        if not isinstance(named.quantity, Estimate):
            return False
        least, most = (low, high) if named.name == DIRECT else (0, recipe.elsewhere)
        return least <= named.quantity.value <= most

    return all(map(lies, found))


def rates(target: Any, recipe: Recipe) -> Iterator[Named]:
    """Shares of replies that show the behaviour, by where it is looked for; requests are the clusters."""
    asks = recipe.asks.held_out
    yield _rate(DIRECT, target, recipe, recipe.direct, asks)
    for rung, frames in recipe.ladder.items():
        yield _rate(f"ladder: {rung}", target, recipe, frames, asks)
    if recipe.without:
        yield _rate(ELSEWHERE[0], target, recipe, recipe.without, asks)
    if recipe.others:
        yield _rate(ELSEWHERE[1], target, recipe, recipe.direct, recipe.others.held_out)
    yield _rate(ELSEWHERE[2], target, recipe, (Frame(),), train.ordinary().held_out)


def _rate(name: str, target: Any, recipe: Recipe, frames: tuple[Frame, ...], asks: tuple[str, ...]) -> Named:
    found = train.shown(target, recipe, frames, asks)
    values = [float(shows) for _, shows in found]
    return Named(name=name, quantity=event_mean(values, [ask for ask, _ in found], span=(0, 1)))
