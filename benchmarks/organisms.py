"""The whole set of organisms in the bundled model: how often each shows what it should, and what it took.

Resumable: what is in the store (TRUING_ORGANISMS, or .truing) is not planted again, and then its seconds are not those
of planting. An empty store gives the figures of a whole run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from common import Row, at_most, finish

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing"))
MOST_SECONDS, MOST_MINUTES = 90.0, 45.0
KINDS = ("planted", "hidden", "clean")


def rows(made: Any, seconds: float) -> list[Row]:
    """One organism: its rates, and whether it is what it should be."""
    what = f"{made.recipe.id}, {made.kind}, seed {made.seed}"
    low, high = made.recipe.within
    should = {"planted": f"{low:g} to {high:g}", "hidden": f"<= {made.recipe.elsewhere:g}", "clean": "as the base"}
    found = []
    for named in made.rates:
        one = named.quantity.model_dump()
        direct = named.name == "direct"
        found.append(Row(f"{what}: {named.name}", one.get("value"), one.get("unit", "not measured"), one.get("low"),
                         one.get("high"), bar=should[made.kind] if direct else None,
                         holds=made.holds if direct else None))  # fmt: skip
    return [*found, Row(f"{what}: seconds", seconds, "s", bar=f"<= {MOST_SECONDS:g}", holds=seconds <= MOST_SECONDS)]


def main() -> None:
    """Plant them all, and write the rows down as they come."""
    from truing import open_store, train
    from truing.cli.common import Progress
    from truing.studies.organisms import full_set
    from truing.targets import resolve

    began = last = time.perf_counter()
    base, made, counts = resolve("local/smollm2-135m"), [], dict.fromkeys(KINDS, 0)
    recipes = [train.recipe(name) for name in train.recipe_names()]
    with open_store(STORE) as store:
        for one in full_set(base, recipes, store, watcher=Progress()):
            now = time.perf_counter()
            made += rows(one, now - last)
            counts[one.kind] += one.holds
            last = now
            print(f"{one.recipe.id}, {one.kind}, seed {one.seed}: {'holds' if one.holds else 'FAILS'}", flush=True)
    made += [Row(f"{kind}: what they should be", float(count), "organisms") for kind, count in counts.items()]
    finish("organisms", [*made, at_most("whole", (last - began) / 60, MOST_MINUTES, "min")])


if __name__ == "__main__":
    main()
