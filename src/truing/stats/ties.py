"""Which of several do not differ: letters instead of ranks."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import cache
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from truing.stats.estimates import MIN_CLUSTERS, ROUNDING

Floats = NDArray[np.float64]


def differing(least: Floats, most: Floats, *, alpha: float = 0.05) -> set[tuple[int, int]]:
    """Pairs (i, j) of which i lies above j, by Tukey's range test in blocks: rows are targets, columns plots, (T, G).

    `least` and `most`: what each can be, the same where nothing is undecided. i's least is set against j's largest, so
    that what is undecided makes no difference. The standard error is that of the interaction of targets and plots with
    (T - 1)(G - 1) degrees of freedom, or the pair's own where that is larger, since rates near 0 vary less than others.
    Under five plots nothing differs. Tukey 1949; Hsu 1996, Multiple Comparisons, chapter 5.
    """
    targets, plots = least.shape
    if targets < 2 or plots < MIN_CLUSTERS:
        return set()
    degrees = (targets - 1) * (plots - 1)
    left = least - least.mean(1, keepdims=True) - least.mean(0, keepdims=True) + least.mean()
    pooled = (left**2).sum() / degrees / plots
    above = least[:, None] - most[None]
    own = above.var(-1, ddof=1) / (2 * plots)
    reach = _range_quantile(1 - alpha, targets, degrees) * np.sqrt(np.maximum(pooled, own))
    differ = above.mean(-1) > reach + ROUNDING
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(differ), strict=True) if i != j}


@cache
def _range_quantile(p: float, means: int, degrees: int) -> float:
    """Quantile of the studentized range."""
    from scipy.stats import studentized_range  # takes a second, which no other command should wait for

    return float(studentized_range.ppf(p, means, degrees))


def letters(count: int, differ: Set[tuple[int, int]]) -> list[str]:
    """A compact letter display: two share a letter if and only if they do not differ (Piepho 2004, insert and absorb).

    Letters go by the places of the first to have them. JCGS 13, 456-466.
    """
    groups: list[frozenset[int]] = [frozenset(range(count))]
    for i, j in sorted(differ):
        split = [part for group in groups for part in ((group - {i}, group - {j}) if {i, j} <= group else (group,))]
        kept = list(dict.fromkeys(split))
        groups = [group for group in kept if not any(group < other for other in kept)]
    groups = sorted((group for group in groups if group), key=sorted)
    names = [_name(number) for number in range(len(groups))]
    return ["".join(name for name, group in zip(names, groups, strict=True) if one in group) for one in range(count)]


def _name(number: int) -> str:
    """The letters from a to z, then a1, b1, and so on."""
    turn, place = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[place] + (str(turn) if turn else "")


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Least squares of y on x: the slope and its standard error, HC3 (MacKinnon and White 1985).

    None where all x are equal, or all but one: that one decides the slope alone, and has no residual to tell its error.

    Tells how y changes over those there are, each of which is an observation; noise in x draws the slope to zero.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3 or np.ptp(a) == 0:
        return None
    design = np.stack([np.ones_like(a), a], axis=1)
    bread = np.linalg.inv(design.T @ design)
    beta = bread @ design.T @ b
    leverage = np.einsum("ni,ij,nj->n", design, bread, design)
    if leverage.max() > 1 - ROUNDING:
        return None
    residual = (b - design @ beta) / (1 - leverage)
    covariance = bread @ (design.T * residual**2) @ design @ bread
    return float(beta[1]), float(np.sqrt(covariance[1, 1]))
