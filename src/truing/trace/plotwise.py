"""Work that is done twin by twin, and kept plot by plot: one unit of work is one plot of one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from truing.records import Arrays, Record, digest_of
from truing.runner import Unit as Work
from truing.runner import Watcher, run
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace.twins import Twin


def units_of_work(
    stage: str,
    target: LocalTarget,
    plots: dict[str, list[Twin]],
    more: Mapping[str, object],
    work: Callable[[tuple[str, list[Twin]]], Sequence[Record]],
    store: Store,
    watcher: Watcher | None,
) -> list[Arrays]:
    """Run `work` on every plot; `more` is what determines it beside the target and its twins."""
    units = [
        Work(
            item=(plot, members), stage=stage,
            inputs={"target": target.card.id, "twins": [identity(t) for t in members], **more},
        )
        for plot, members in plots.items()
    ]  # fmt: skip
    done = run(units, work, ledger=store, watcher=watcher, label=f"trace: {stage}")
    return [record for records in done for record in records if isinstance(record, Arrays)]


def identity(twin: Twin) -> str:
    """A digest of what is asked on both sides."""
    sides = (twin.first.functional, twin.second.functional)
    return digest_of([[f.tree.ids_N.tolist(), f.tree.parent_N.tolist(), f.weight_M.tolist()] for f in sides])


def arrays(
    target: LocalTarget,
    name: str,
    plot: str,
    members: Sequence[Twin],
    *,
    numbers: Sequence[tuple[str, float]] = (),
    blob: object = None,
) -> Arrays:
    """The record of what was computed of the twins of a plot."""
    return Arrays(
        name=name,
        target=target.card.id,
        plot=plot,
        cases=tuple(t.name for t in members),
        numbers=tuple(numbers),
        blob=blob,
        parents=(target.card.id,),
    )
