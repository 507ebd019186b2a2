"""Compare the graphs of two models, or of two cells, over the cases of a claim."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from truing.errors import TargetError
from truing.records import Measurement, Surface
from truing.runner import Silent, Watcher, run
from truing.runner import Unit as Work
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.change import counts, layers
from truing.targets.local.inside import blocks
from truing.trace.averaging import segments_of
from truing.trace.difference import SHOWN, Difference, average, difference, quantities, strongest
from truing.trace.plotwise import identity
from truing.trace.readable import check_readable
from truing.trace.room import FP32, through_twins
from truing.trace.run import CLOSURE, Effect
from truing.trace.twins import Twin, by_plot, case_of, side, spread, twins


def differ(
    first: LocalTarget,
    second: LocalTarget,
    effect: Effect,
    store: Store,
    *,
    per_plot: int = 3,
    neurons: int = SHOWN,
    watcher: Watcher | None = None,
) -> Measurement:
    """What is different inside, second minus first; neurons are chosen on one half of the plots and given on the other.

    With `neurons=0` none is given by itself, and the half to choose on is not looked at.

    Of two models: in the first cell of the effect, which is the same text for both. Of one model, given twice: the
    second cell minus the first. TargetError where the models do not read the same tokens, or have other shapes.
    """
    corresponding(first, second)
    for target in (first, second):
        blocks(target.model)  # other shapes are not gone through by hand
    choosing = _laid_out(first, second, effect.choosing, effect, per_plot) if neurons else []
    testing = _laid_out(first, second, effect.testing, effect, per_plot)
    _plan(first, [*choosing, *testing], watcher)
    for target in (first, second):
        store.add(target.card)
    segments = segments_of([*choosing, *testing])

    def work(_: None) -> list[Measurement]:
        (watcher or Silent()).start("trace: difference", len(choosing) + len(testing))
        first_seen = [_checked(first, second, twin, segments, watcher) for twin in choosing]
        chosen = strongest(average(first_seen), neurons) if first_seen else []
        found = [_checked(first, second, twin, segments, watcher) for twin in testing]
        rows = quantities(found, [twin.plot for twin in testing], chosen, segments)
        same = first is second
        what = f"{effect.cells[1]} minus {effect.cells[0]}" if same else f"second minus first, in {effect.cells[0]}"
        note = f"{what}; closes to {max(one.error for one in found):.1e} (accounting, not faithfulness)"
        cards = (first.card.id, second.card.id)
        record = Measurement(
            name="difference", targets=cards, quantities=rows, note=note,
            parents=(*([effect.claim.id] if effect.claim else []), *dict.fromkeys(cards)),
        )  # fmt: skip
        return [record]

    inputs = {
        "targets": [first.card.id, second.card.id], "claim": effect.claim and effect.claim.id,
        "choosing": [[twin.plot, identity(twin)] for twin in choosing],
        "testing": [[twin.plot, identity(twin)] for twin in testing],
        "parts": list(Difference.__slots__), **({} if neurons in (0, SHOWN) else {"neurons": neurons}),
    }  # fmt: skip
    ((record,),) = run([Work(item=None, stage="difference", inputs=inputs)], work, ledger=store)
    assert isinstance(record, Measurement)
    return record


def _plan(target: LocalTarget, pairs: Sequence[Twin], watcher: Watcher | None) -> None:
    """Say what the differences will take: of both models, and what is kept of every case. TargetError where it does not
    fit.
    """
    parts = len(layers(target.model)) * counts(target.model)["neuron"] * FP32
    longest = max(len(side.functional.tree) for twin in pairs for side in (twin.first, twin.second))
    # Two parts of every case, by segment, and once more where they are averaged; what the decision makes of neurons.
    more = parts * (4 * len(pairs) * len(segments_of(pairs)) + 2 * longest)
    room = through_twins(target.model, pairs, rows=0, spots=0, budget=target.budget, more=more)
    (watcher or Silent()).say(f"{target.card.name}: {room}")


def corresponding(first: LocalTarget, second: LocalTarget) -> None:
    """TargetError unless a token, a layer and a neuron of the first are those of the second, and both can be read."""
    for target in (first, second):
        need(target, "WhiteBox")
        check_readable(target)
    if first.card.template != second.card.template:
        raise TargetError(
            f"{first.card.name} and {second.card.name} do not read the same tokens (template {first.card.template[:12]}"
            f" and {second.card.template[:12]}), so that nothing in them corresponds. Give a model and its fix."
        )
    shapes = [(len(layers(t.model)), dict(counts(t.model))) for t in (first, second)]
    if shapes[0] != shapes[1]:
        raise TargetError(f"{first.card.name} and {second.card.name} have other layers and neurons: {shapes}")


def _laid_out(
    first: LocalTarget, second: LocalTarget, surfaces: Sequence[Surface], effect: Effect, per_plot: int
) -> list[Twin]:
    if first is second:
        return twins(first, surfaces, effect.cells, per_plot=per_plot)[0]
    some = [surface for members in by_plot(surfaces).values() for surface in spread(members, per_plot)]
    return [_same(first, surface, effect.cells[0]) for surface in some]


def _same(target: LocalTarget, surface: Surface, cell: str) -> Twin:
    """A case as a twin of itself, for two models."""
    one = side(target, surface, case_of(surface, cell))
    every = torch.arange(len(one.functional.tree))
    return Twin(surface.plot, surface.name, one, one, every, every)


def _checked(
    first: LocalTarget, second: LocalTarget, twin: Twin, segments: Sequence[str], watcher: Watcher | None
) -> Difference:
    found = difference((first.model, second.model), (twin.first, twin.second), twin.onto_T, twin.from_T, segments)
    if not found.error <= CLOSURE:  # which no NaN is
        raise TargetError(
            f"the parts of the difference of {first.card.name} and {second.card.name} do not sum to it: relative error"
            f" {found.error:.1e}, allowed {CLOSURE:.0e}"
        )
    if watcher:
        watcher.step()
    return found
