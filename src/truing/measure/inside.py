"""What a fix changed inside: the attribution of an effect's units, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from truing.records import Quantity, Unit
from truing.stats import cluster_ratio


def still_carried(
    units: Sequence[Unit], before: Sequence[tuple[str, Path]], after: Sequence[tuple[str, Path]], *, kind: str
) -> Quantity:
    """Share of the effect that the traced units still carry by attribution: after over before, over plots.

    `before` and `after`: (plot, file of summed attributions) from the traces of the two models.
    """
    from safetensors.numpy import load_file

    chosen = [(unit.layer, unit.index) for unit in units if unit.kind == kind]

    def carried(files: Sequence[tuple[str, Path]]) -> dict[str, float]:
        totals = {}
        for plot, file in files:
            scores = load_file(file)[f"{kind}s"]
            totals[plot] = float(sum(float(scores[layer, index]) for layer, index in chosen))
        return totals

    old, new = carried(before), carried(after)
    plots = sorted(old.keys() & new.keys())
    return cluster_ratio([new[p] for p in plots], [old[p] for p in plots], plots)
