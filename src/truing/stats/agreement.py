"""How far two readers agree on the same items, as it is and beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.records import Estimate, Quantity, Unmeasured
from truing.stats.estimates import ROUNDING

Counts = NDArray[np.int64]
"""Items by the first reader's label (rows) and the second's (columns), (C, C)."""


def table(first: Sequence[str], second: Sequence[str]) -> Counts:
    """Counts of pairs of labels, labels in sorted order. ValueError where the readers did not read the same number."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} labels of one reader, {len(second)} of the other")
    place = {label: number for number, label in enumerate(sorted({*first, *second}))}
    found = np.zeros((len(place), len(place)), dtype=np.int64)
    for a, b in zip(first, second, strict=True):
        found[place[a], place[b]] += 1
    return found


def binomial_limits(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Exact limits of a probability (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def cohens_kappa(counts: Counts) -> tuple[float, float] | None:
    """Cohen's kappa (1960) and its standard error; None where both readers gave one and the same label throughout.

    kappa = (p_o - p_e) / (1 - p_e), with p_o the share on the diagonal and p_e = sum_i p_i. p_.i what chance would put
    there. The variance is that of Fleiss, Cohen and Everitt 1969, equation 13.
    """
    p = counts / counts.sum()
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if 1 - chance <= ROUNDING:
        return None
    kappa = (observed - chance) / (1 - chance)
    # [i, j]: what cell (i, j) has in common with chance: the second reader's share of i and the first one's of j.
    common = columns[:, None] + rows[None, :]
    agreed = (np.diag(p) * (1 - np.diag(common) * (1 - kappa)) ** 2).sum()
    differed = (1 - kappa) ** 2 * ((p - np.diag(np.diag(p))) * common**2).sum()
    spread = agreed + differed - (kappa - chance * (1 - kappa)) ** 2
    return kappa, sqrt(max(float(spread), 0.0) / counts.sum()) / (1 - chance)


def raw(first: Sequence[str], second: Sequence[str], *, level: float = 0.95) -> Quantity:
    """The share of items to which both readers gave the same label."""
    n = len(first)
    if not n:
        return Unmeasured(reason="there is no item that both have read")
    hits = int(np.trace(table(first, second)))
    low, high = binomial_limits(hits, n, level=level)
    return Estimate(
        value=hits / n, low=low, high=high, level=level, n=n, clusters=n, unit="share", estimator="Clopper-Pearson"
    )  # fmt: skip


def kappa(first: Sequence[str], second: Sequence[str], *, level: float = 0.95) -> Quantity:
    """Cohen's kappa with a normal interval, no narrower than the exact limits of the raw agreement make it.

    Where all agree its standard error is 0, and does not say that they always would.
    """
    if not first:
        return Unmeasured(reason="there is no item that both have read")
    counts = table(first, second)
    found = cohens_kappa(counts)
    if found is None:
        return Unmeasured(reason="both readers gave one and the same label throughout")
    value, se = found
    p = counts / counts.sum()
    chance = float(p.sum(axis=1) @ p.sum(axis=0))
    n = len(first)
    edges = [(edge - chance) / (1 - chance) for edge in binomial_limits(int(np.trace(counts)), n, level=level)]
    half = float(special.ndtri((1 + level) / 2)) * se
    return Estimate(
        value=value, low=max(min(value - half, edges[0]), -1.0), high=min(max(value + half, edges[1]), 1.0),
        level=level, n=n, clusters=n, unit="kappa", estimator="Cohen's kappa, normal or exact limits, the wider",
    )  # fmt: skip
