"""The same scenes framed as a test and as the real thing: what is different inside, and can it be read off?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common import Row, measured

CELLS = ("cue=real", "cue=test")
FAMILIES = ("coercion", "leak", "deception")
"""Families of company plots whose halves have enough plots."""
WHOLES = (
    "difference", "activation part", "weight part", "embedding part", "without counterpart", "entropy part",
    "activation part in 1 system", "activation part in reply", "weight part in 1 system", "weight part in reply",
)  # fmt: skip
PROBES = ("layers together", "labels shuffled within plots", "words of the text alone")


def rows(target: Any, store: Any) -> Iterator[Row]:
    """Of all plots of these families together: a test minus the real thing, nats per token of the harmful call."""
    from truing.studies.matched import matched
    from truing.trace import Effect, differ
    from truing.trace.probe import probe

    found = [matched(family, CELLS) for family in FAMILIES]
    choosing = [one for each in found for one in each.choosing]
    testing = [one for each in found for one in each.testing]
    change = differ(target, target, Effect(None, CELLS, choosing, testing), store, per_plot=1)
    by_name = {row.name: row.quantity.model_dump() for row in change.quantities}
    for name in (one for one in WHOLES if one in by_name):  # all tokens may have a counterpart
        yield measured(f"test minus real, {name}", by_name[name])
    first = {one.plot: one for one in reversed([*choosing, *testing])}
    read = {row.name: row.quantity.model_dump() for row in probe(target, [*first.values()], CELLS, store).quantities}
    for name in PROBES:
        yield measured(f"test against real, AUROC of {name}", read[name])
