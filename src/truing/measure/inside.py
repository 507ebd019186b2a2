"""What a fix changed inside: the attribution of an effect's units, before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.records import Quantity, Unit
from truing.stats import cluster_ratio

Files = Sequence[tuple[str, Path]]
"""Plot, and the file of its summed attributions."""


def still_carried(units: Sequence[Unit], before: Files, after: Files, *, kind: str) -> Quantity:
    """Share of the effect that the traced units still carry by attribution: after over before, over plots.

    `before` and `after`: (plot, file of summed attributions) from the two models, on twins that the units were not
    chosen on.
    """
    chosen = [(unit.layer, unit.index) for unit in units if unit.kind == kind]

    def carried(arrays: Mapping[str, Any]) -> float:
        return float(sum(float(arrays[f"{kind}s"][unit]) for unit in chosen))

    return _share(before, after, carried)


def effect_left(before: Files, after: Files) -> Quantity:
    """Share of the whole effect that is left on the same twins: what units lose beyond this, they lose of their own."""
    return _share(before, after, lambda arrays: float(arrays["effect"]))


def _share(before: Files, after: Files, read: Callable[[Mapping[str, Any]], float]) -> Quantity:
    from safetensors.numpy import load_file

    old, new = ({plot: read(load_file(file)) for plot, file in files} for files in (before, after))
    plots = sorted(old.keys() & new.keys())
    return cluster_ratio([new[p] for p in plots], [old[p] for p in plots], plots)
