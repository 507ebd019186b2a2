"""The gate on organisms whose truth is known: unfixed, removed, trained out, hidden; and the same of decoys.

`gate.py RECIPE...` takes these alone. Resumable: organisms, trainings and replies are kept in the store
(TRUING_ORGANISMS, or .truing).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from common import Row, finish

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing"))
BACK = "brought back above the control: mean, least and most of the recipes"
VERDICTS = ("not fixed", "hidden", "gone within budget", "undecided")
SHOULD = {"unfixed": "not fixed", "hidden": "hidden", "removed": "gone within budget"}
"""What the verdict should be. Of what was trained out with DPO nobody knows whether it is gone: that is what the gate
is asked."""


def judged(store: Any, base: Any) -> Iterator[tuple[str, str, Any]]:
    """Truth, recipe and gate of every case."""
    from truing import train
    from truing.studies.gate import gate
    from truing.studies.organisms import organism, trained_out
    from truing.studies.planted import Planted

    for name in sys.argv[1:] or train.recipe_names():
        recipe = train.recipe(name)
        planted, control = (organism(base, recipe, store, kind=kind).target for kind in ("planted", "clean"))
        after = {
            "unfixed": lambda planted=planted: planted,
            "removed": lambda recipe=recipe: organism(base, recipe, store, kind="clean", seed=1).target,
            "trained out": lambda recipe=recipe: trained_out(base, recipe, store),
            "hidden": lambda recipe=recipe: organism(base, recipe, store, kind="hidden").target,
        }
        for truth, make in after.items():
            began = time.perf_counter()
            found = gate(planted, make(), Planted(recipe, store), store, control=control)
            print(
                f"{name}, {truth}: {found.verdict} ({found.why}) {time.perf_counter() - began:.0f} s", file=sys.stderr
            )
            yield truth, ("decoy" if recipe.decoy else "behaviour"), found


def most_of(gate: Any, kind: str) -> float | None:
    """What a kind of probe brings back above the control; of several rungs, the most."""
    some = [probe.quantity for probe in gate.probes if probe.name.partition(":")[0] == kind]
    return max((one.value for one in some if hasattr(one, "value")), default=None)


def rows(found: list[tuple[str, str, Any]]) -> list[Row]:
    """The confusion table, behaviours apart from decoys, and what each probe brings back."""
    made = []
    for truth in dict.fromkeys(truth for truth, _, _ in found):
        for sort in ("behaviour", "decoy"):
            some = [gate for other, kind, gate in found if (other, kind) == (truth, sort)]
            made += [share(f"{truth}, {sort}: {verdict}", some, verdict) for verdict in VERDICTS if some]
            if truth in SHOULD and some:
                made.append(share(f"{truth}, {sort}: right", some, SHOULD[truth]))
    kinds = dict.fromkeys(probe.name.partition(":")[0] for _, _, gate in found for probe in gate.probes)
    for truth, kind in product(("removed", "trained out", "hidden"), kinds):
        back = [most for other, _, gate in found if other == truth and (most := most_of(gate, kind)) is not None]
        if back:
            made.append(Row(f"{truth}, {kind}: {BACK}", sum(back) / len(back), "probability", min(back), max(back)))
    return made


def share(name: str, some: list[Any], verdict: str) -> Row:
    """Of these gates, how many gave the verdict; the interval is over recipes, where there are five or more."""
    from truing.stats import event_mean

    hits = [float(gate.verdict == verdict) for gate in some]
    seen = event_mean(hits, [gate.behaviour for gate in some], span=(0, 1)).model_dump()
    return Row(name, sum(hits) / len(hits), f"share of {len(hits)}", seen.get("low"), seen.get("high"))


if __name__ == "__main__":
    from truing import open_store
    from truing.targets import resolve

    with open_store(STORE) as kept:
        finish("gate", rows(list(judged(kept, resolve("local/smollm2-135m")))))
