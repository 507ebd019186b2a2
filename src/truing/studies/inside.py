"""What is left of a behaviour's path inside a model after a fix.

Beside the gate's verdict, and no part of it: nothing says yet how these figures differ between what is gone and what is
hidden (docs/explanation/microscope.md says what was measured of that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from truing import measure
from truing.errors import DesignError, TargetError
from truing.records import Arrays, Measurement, Named, Unit, Unmeasured
from truing.runner import Silent, Watcher
from truing.store import Store
from truing.trace import TESTING, Carriers, Effect, Settings, carriers, differ

TWINS = 24
"""About so many on either half, or one of each plot where there are more plots."""
LEFT, CARRIED = "effect left on the traced twins", "effect still carried by the traced "
CHANGE = "change of the decision"
PARTS = {"difference": "", "activation part": ", activation part", "weight part": ", weight part",
         "embedding part": ", what tokens add", "entropy part": ", entropies"}  # fmt: skip
"""Rows of a difference, and what they are called after the change."""
CONTROL = "control: "
"""Before the names of what is said of the control in place of the model after."""


@runtime_checkable
class Twinned(Protocol):
    """A behaviour whose effect can be traced: cases that differ in what brings it about."""

    def effect(self, target: Any) -> Effect:
        """Its twins. DesignError where there are none. `target`: one that shows what is said without the behaviour."""


def look_inside(
    before: Any,
    after: Any,
    behaviour: object,
    store: Store,
    *,
    control: Any = None,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    """How much of the path is left, and ids of the records that say so.

    Where it cannot be told, one row with the reason: a behaviour without twins, models whose inside cannot be read.
    """
    watcher = watcher or Silent()
    if not isinstance(behaviour, Twinned):
        return _nothing("this behaviour names no twins, so that there is no path to look for")
    models = [target for target in (before, after, control) if target is not None]
    try:
        effect = behaviour.effect(before if control is None else control)
        settings = Settings(seed=seed, per_plot=_per_plot(effect))
        found = carriers(models, effect, store, settings=settings, watcher=watcher)
        rows, parents = _rows(before, models[1:], effect, found, store, watcher)
    except (DesignError, TargetError) as error:
        return _nothing(str(error))
    closes = "" if found.error is None else f"; closes to {found.error:.1e} (accounting, not faithfulness)"
    record = Measurement(
        name="left inside", targets=tuple(dict.fromkeys(target.card.id for target in models)), quantities=rows,
        note="what is left of the path inside; nothing calibrates it, so that no verdict rests on it" + closes,
        parents=tuple(sorted({*(one.id for one in found.sources), *parents})),
    )  # fmt: skip
    store.add(record)
    return rows, (record.id,)


def left(
    units: Sequence[Unit],
    before: Sequence[Arrays],
    after: Sequence[Arrays],
    cells: tuple[str, str],
    store: Store,
    *,
    of: str = "after",
) -> tuple[Named, ...]:
    """How much of the effect there is in another model, and how much the units that were chosen in the first carry.

    `before` and `after`: attributions in either model; those on held-out twins are taken. `of`: what the other is.
    """
    first, other = (
        [(r.plot, store.blob_path(r.blob)) for r in some if r.name == TESTING and r.blob] for some in (before, after)
    )
    whole = Named(
        name=LEFT,
        quantity=measure.effect_left(first, other),
        note=f"{' minus '.join(cells)}: {of} / before, held-out twins",
    )
    note = f"attribution {of} / before on held-out twins, summed over the units chosen before the fix"
    return (
        whole,
        *(
            Named(name=f"{CARRIED}{kind}s", quantity=measure.still_carried(units, first, other, kind=kind), note=note)
            for kind in ("head", "neuron")
        ),
    )


def changed(
    first: Any, second: Any, effect: Effect, store: Store, *, of: str = "after", watcher: Watcher | None = None
) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    """By how much the decision differs between two models in the first cell, and by which part; and the record."""
    if first.card.id == second.card.id:
        same = Unmeasured(reason=f"the model {of} is the model before")
        return (Named(name=CHANGE, quantity=same),), ()
    try:
        record = differ(first, second, effect, store, per_plot=1, neurons=0, watcher=watcher)
    except TargetError as error:  # what else is seen of these models stands
        return (Named(name=CHANGE, quantity=Unmeasured(reason=str(error))),), ()
    note = f"{of} minus before, in {effect.cells[0]}; held-out cases"
    quantities = {row.name: row.quantity for row in record.quantities}
    rows = tuple(Named(name=CHANGE + said, quantity=quantities[part], note=note) for part, said in PARTS.items())
    return rows, (record.id,)


def _rows(
    before: Any, others: Sequence[Any], effect: Effect, found: Carriers, store: Store, watcher: Watcher
) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    """Of the model after, and then of the control where there is one."""
    rows: list[Named] = []
    parents: list[str] = []
    for target, held, of in zip(others, found.held[1:], ("after", "control"), strict=False):
        said = left(found.units, found.held[0], held, effect.cells, store, of=of)
        more, records = changed(before, target, effect, store, of=of, watcher=watcher)
        start = CONTROL if of == "control" else ""
        rows += [one.model_copy(update={"name": start + one.name}) for one in (*said, *more)]
        parents += records
    return tuple(rows), tuple(parents)


def _per_plot(effect: Effect) -> int:
    """As many as a trace takes, fewer where there are many plots."""
    plots = max(len({surface.plot for surface in half}) for half in (effect.choosing, effect.testing))
    return max(1, min(Settings().per_plot, TWINS // max(1, plots)))


def _nothing(why: str) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    return (Named(name=LEFT, quantity=Unmeasured(reason=why)),), ()
