"""Does what is left inside tell hidden from gone? Planted organisms before, trained out or hidden after.

`inside.py RECIPE...` takes these. Of what was trained out with DPO nobody knows that it is gone: it is what came back
seldom under the gate (gate.json), so that the question is whether the two differ inside, no more. Resumable: organisms,
trainings and what was looked at are kept in the store (TRUING_ORGANISMS, or .truing).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Row, finish, measured

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing"))
RECIPES = ("threat-letter", "live-only", "flatterer", "heliotrope")
OUT, HIDDEN, CONTROL = "trained out", "hidden", "clean control"
APART = f"{HIDDEN} - {OUT}"
READ = 4.0
"""Seconds under which nothing was computed: it was in the store."""


def looked(store: Any, base: Any, names: Sequence[str]) -> Iterator[tuple[str, str, Mapping[str, Any], float]]:
    """Recipe, what the model after is, rows of what is left inside, and the seconds that it took."""
    from truing import train
    from truing.studies.inside import CONTROL as OF_CONTROL
    from truing.studies.inside import look_inside
    from truing.studies.organisms import organism, trained_out
    from truing.studies.planted import Planted

    for name in names:
        recipe = train.recipe(name)
        planted, control = (organism(base, recipe, store, kind=kind).target for kind in ("planted", "clean"))
        after = {OUT: trained_out(base, recipe, store), HIDDEN: organism(base, recipe, store, kind="hidden").target}
        for truth, target in after.items():
            began = time.process_time()
            rows, _ = look_inside(planted, target, Planted(recipe, store), store, control=control)
            seconds = time.process_time() - began
            print(f"{name}, {truth}: {seconds:.0f} s", file=sys.stderr)
            quantities = {row.name: row.quantity for row in rows}
            yield name, truth, {key: q for key, q in quantities.items() if not key.startswith(OF_CONTROL)}, seconds
        of_control = {key.removeprefix(OF_CONTROL): q for key, q in quantities.items() if key.startswith(OF_CONTROL)}
        yield name, CONTROL, of_control, seconds


def rows(found: Sequence[tuple[str, str, Mapping[str, Any], float]]) -> list[Row]:
    """Every figure, and by figure: hidden minus trained out over recipes, and in how many of them it is larger."""
    made = [
        measured(f"{name}, {truth}: {what}", quantity.model_dump())
        for name, truth, quantities, _ in found
        for what, quantity in quantities.items()
    ]
    for what in dict.fromkeys(what for _, _, quantities, _ in found for what in quantities):
        made += apart(what, {(name, truth): quantities.get(what) for name, truth, quantities, _ in found})
    slowest = max(seconds for _, _, _, seconds in found)
    return [*made, Row("looking inside one fix: most CPU seconds", slowest if slowest > READ else None, "s")]


def apart(what: str, by: Mapping[tuple[str, str], Any]) -> list[Row]:
    """One figure, paired by recipe: the mean difference with a t interval over recipes, and its signs."""
    pairs = [(by.get((name, HIDDEN)), by.get((name, OUT))) for name in dict.fromkeys(name for name, _ in by)]
    gaps = [a.value - b.value for a, b in pairs if hasattr(a, "value") and hasattr(b, "value")]
    if not gaps:
        return [Row(f"{APART}: {what}", None, "not measured: in no recipe for both")]
    mean, half = sum(gaps) / len(gaps), spread(gaps)
    limits = (None, None) if half is None else (mean - half, mean + half)
    unit = next(a.unit for a, _ in pairs if hasattr(a, "value"))
    clear = sum(hasattr(a, "low") and hasattr(b, "low") and a.low > b.high for a, b in pairs)
    below = sum(hasattr(a, "low") and hasattr(b, "low") and a.high < b.low for a, b in pairs)
    return [
        Row(f"{APART}: {what}", mean, f"{unit}, {len(gaps)} recipes", *limits),
        Row(f"{APART}: {what}, larger when hidden", float(sum(gap > 0 for gap in gaps)), f"of {len(gaps)} recipes"),
        Row(f"{APART}: {what}, clearly larger when hidden", float(clear), f"of {len(gaps)} recipes"),
        Row(f"{APART}: {what}, clearly smaller when hidden", float(below), f"of {len(gaps)} recipes"),
    ]


def spread(gaps: Sequence[float]) -> float | None:
    """Half of the 95% t interval of a mean; None for one alone. Wide for four, and rests on their being normal."""
    from statistics import stdev

    from truing.stats.estimates import t_quantile

    return t_quantile(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None


if __name__ == "__main__":
    from truing import open_store
    from truing.targets import resolve

    with open_store(STORE) as kept:
        finish("inside", rows(list(looked(kept, resolve("local/smollm2-135m"), sys.argv[1:] or RECIPES))))
