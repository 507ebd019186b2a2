"""The whole set of organisms in the bundled model: how often each shows what it should, and what it took.

Resumable: what is in the store (TRUING_ORGANISMS, or .truing) is not planted again, and then it has no seconds here; an
empty store gives those of a whole run. A hidden organism begins as the planted one of its recipe, whose seconds count,
but for those of looking at it.
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
READ = 4.0
"""Seconds under which nothing can have been planted: it was in the store."""


def rows(made: Any, seconds: float | None) -> list[Row]:
    """One organism: its rates, whether it is what it should be, and what it took if it was planted now."""
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
    holds = None if seconds is None else seconds <= MOST_SECONDS
    return [*found, Row(f"{what}: seconds", seconds, "s", bar=f"<= {MOST_SECONDS:g}", holds=holds)]


def looks() -> Any:
    """Progress that notes when the last organism began to be looked at."""
    from truing.cli.common import Progress

    class Looks(Progress):
        began = 0.0

        def start(self, label: str, total: int) -> None:
            super().start(label, total)
            if label.endswith("does it show"):
                self.began = time.perf_counter()

    return Looks()


def main() -> None:
    """Plant them all, and write the rows down as they come."""
    from truing import open_store, train
    from truing.studies.organisms import full_set
    from truing.targets import resolve

    base, made, counts = resolve("local/smollm2-135m"), [], dict.fromkeys(KINDS, 0)
    began = last = time.perf_counter()
    planted: dict[str, float | None] = {}
    read = 0
    recipes = [train.recipe(name) for name in train.recipe_names()]
    with open_store(STORE) as store:
        watcher = looks()
        for one in full_set(base, recipes, store, watcher=watcher):
            now = time.perf_counter()
            seconds: float | None = now - last if now - last > READ else None
            read += seconds is None
            if one.kind == "planted":
                planted[one.recipe.id] = None if seconds is None else watcher.began - last
            before = planted[one.recipe.id] if one.kind == "hidden" else 0.0
            made += rows(one, None if seconds is None or before is None else seconds + before)
            counts[one.kind] += one.holds
            last = now
            print(f"{one.recipe.id}, {one.kind}, seed {one.seed}: {'holds' if one.holds else 'FAILS'}", flush=True)
    made += [Row(f"{kind}: what they should be", float(count), "organisms") for kind, count in counts.items()]
    minutes = (last - began) / 60
    whole = Row("whole", None, "min") if read else at_most("whole", minutes, MOST_MINUTES, "min")
    finish("organisms", [*made, Row("read from the store", float(read), "organisms"), whole])


if __name__ == "__main__":
    main()
