"""The units that carry an effect in one model, and what the same units carry in others. Nothing is patched or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truing.records import Arrays, Unit
from truing.runner import Watcher
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace.attribute import Attribution
from truing.trace.averaging import averaged, segments_of
from truing.trace.closing import closed
from truing.trace.differ import corresponding
from truing.trace.run import CHOOSING, TESTING, Effect, Settings, chosen_by, plan_twins, units_of
from truing.trace.twins import Twin, twins


@dataclass(frozen=True, slots=True)
class Carriers:
    """Units chosen in one model on the develop half, and the attributions of models on the held-out half."""

    units: tuple[Unit, ...]
    sources: tuple[Arrays, ...]
    """What the units were chosen by, and read off."""
    held: tuple[tuple[Arrays, ...], ...]
    """By model, in the order in which they were given."""
    error: float | None
    """The largest relative closure error of these models in one twin; None by rules without accounts."""


def carriers(
    targets: Sequence[LocalTarget],
    effect: Effect,
    store: Store,
    *,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> Carriers:
    """Choose units in the first model, and read them in it and in the others, on twins that they were not chosen on.

    TargetError for models whose inside cannot be read, that do not correspond or whose accounts do not close, and where
    memory is short; DesignError for twins in too few plots. What a trace of the first model with the same settings has
    in the store is not computed again.
    """
    settings = settings or Settings()
    for target in targets:
        corresponding(targets[0], target)
        settings = settings.within(target)
    per_plot, rule = settings.per_plot, settings.rule
    choosing, testing = (
        twins(targets[0], half, effect.cells, per_plot=per_plot)[0] for half in (effect.choosing, effect.testing)
    )
    segments = segments_of([*choosing, *testing])
    for target in targets:
        plan_twins(target, [*choosing, *testing], settings, watcher, patched=False, drawn=False)
    errors = [error for target in targets if (error := closed(target, choosing[0], rule)) is not None]

    def read(target: LocalTarget, pairs: Sequence[Twin], name: str) -> tuple[Attribution, list[Arrays]]:
        store.add(target.card)
        return averaged(target, pairs, segments, store, watcher, name=name, rule=rule)

    mean, sources = read(targets[0], choosing, CHOOSING)
    found = [read(target, testing, TESTING) for target in targets]
    units = units_of(mean, found[0][0], chosen_by(mean, settings))
    held = tuple(tuple(records) for _, records in found)
    return Carriers(
        units, (*sources, *(record for records in held for record in records)), held, max(errors, default=None)
    )
