"""Clustered estimates. G clusters, n observations; a cluster is a plot, a topic or a passage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.records import Contrast, Estimate, Quantity, Unmeasured
from truing.stats.contrasts import Cells, Span, agrees, contrast, possible, span

MIN_CLUSTERS = 5
"""Under five clusters the t interval rests on a variance that is hardly known, and none is given."""

ROUNDING = 1e-12
"""Relative difference below which means are equal: the mean of equal numbers is not always that number."""

Floats = NDArray[np.float64]


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t, from scipy.special: importing scipy.stats takes longer than most commands do."""
    return float(special.stdtrit(df, p))


def t_upper_tail(t: float, df: int) -> float:
    """Probability that Student's t exceeds a value."""
    return float(special.stdtr(df, -t))


def by_cluster(values: Sequence[float], clusters: Sequence[str]) -> Floats:
    """Mean of each cluster, in sorted order of cluster names. Shape (G,)."""
    x, names = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    return np.array([x[names == name].mean() for name in sorted(set(clusters))])


def cluster_mean(values: Sequence[float], clusters: Sequence[str], *, unit: str, level: float = 0.95) -> Quantity:
    """Mean over clusters of the cluster means, with Student's t interval on G - 1 degrees of freedom.

    Every cluster weighs the same; what varies inside a cluster is averaged first and is not replication
    (Miller 2024, arXiv 2411.00640, section 2.2, with t for few clusters).
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster names")
    groups = len(set(clusters))
    if groups < MIN_CLUSTERS:
        return Unmeasured(reason=f"{groups} clusters; an interval needs at least {MIN_CLUSTERS}")
    means = by_cluster(values, clusters)
    half = t_quantile((1 + level) / 2, groups - 1) * standard_error(means)
    mean = float(means.mean())
    return Estimate(
        value=mean,
        low=mean - half,
        high=mean + half,
        level=level,
        n=len(values),
        clusters=groups,
        unit=unit,
        estimator="mean of cluster means, t",
    )


def cluster_ratio(
    parts: Sequence[float],
    wholes: Sequence[float],
    clusters: Sequence[str],
    *,
    unit: str = "share",
    level: float = 0.95,
) -> Quantity:
    """Sum of parts over sum of wholes, with a linearised (delta method) t interval over clusters.

    Cochran 1977, Sampling Techniques, equation 6.13. Unmeasured where the wholes do not differ clearly from zero.
    """
    names = sorted(set(clusters))
    if len(names) < MIN_CLUSTERS:
        return Unmeasured(reason=f"{len(names)} clusters; an interval needs at least {MIN_CLUSTERS}")
    labels = np.asarray(clusters)
    y = np.array([np.asarray(parts, dtype=np.float64)[labels == name].sum() for name in names])
    x = np.array([np.asarray(wholes, dtype=np.float64)[labels == name].sum() for name in names])
    g = len(names)
    quantile = t_quantile((1 + level) / 2, g - 1)
    if abs(x.mean()) <= quantile * x.std(ddof=1) / np.sqrt(g):
        return Unmeasured(
            reason=f"the whole ({x.mean() * g / len(wholes):+.3f} per case) does not differ clearly from 0"
        )
    ratio = float(y.sum() / x.sum())
    half = float(quantile * (y - ratio * x).std(ddof=1) / np.sqrt(g) / abs(x.mean()))
    return Estimate(
        value=ratio,
        low=ratio - half,
        high=ratio + half,
        level=level,
        n=len(parts),
        clusters=g,
        unit=unit,
        estimator="ratio of sums, delta method, t over clusters",
    )


def standard_error(means: Floats) -> float:
    """Standard error of the mean of independent values; 0 where they are equal but for rounding."""
    se = float(means.std(ddof=1) / np.sqrt(len(means)))
    return 0.0 if se <= ROUNDING * max(1.0, abs(float(means.mean()))) else se


def event_limit(n: int, *, level: float = 0.95) -> float:
    """Upper limit of a probability when none of n observations showed the event (two-sided level; 0 of 100: 3.6%).

    Clopper and Pearson 1934; with one tail it is the rule of three.
    """
    return float(1 - ((1 - level) / 2) ** (1 / n))


def event_error(
    values: Sequence[float], clusters: Sequence[str], *, span: Span, level: float = 0.95
) -> tuple[float, bool]:
    """Standard error of the mean of cluster means of contrasts of 0/1 outcomes, and whether it is the least one.

    Cluster means that are alike by chance do not make it smaller than that of independent surfaces. And where under
    four clusters hold an observation other than the commonest (no event anywhere, or the first ones), the variance
    between clusters is hardly known, and seeing an event would narrow the interval: there each term gets no less than
    the Clopper-Pearson limit of no event in G clusters, and the limits add up.
    """
    x, names = np.asarray(values, dtype=np.float64).round(9), np.asarray(clusters)
    found, times = np.unique(x, return_counts=True)
    carrying = len(set(names[x != found[times.argmax()]]))
    means = by_cluster(values, clusters)
    se = max(standard_error(means), standard_error(x))
    if carrying >= MIN_CLUSTERS - 1:
        return se, False
    least = least_error(span, len(means), level=level)
    return max(se, least), se <= least


def cell_error(
    rows: Sequence[Cells], clusters: Sequence[str], rule: Contrast, *, never: str = "", level: float = 0.95
) -> tuple[float, bool]:
    """`event_error` where a row holds several 0/1 outcomes of each term (the cells of a plot, say).

    Whether under four clusters hold an outcome other than the commonest is asked of outcomes, not of the rows'
    contrasts. Where four do, means of many outcomes are near enough to normal for their own variance to be taken: the
    larger of two standard errors would cover too much. Where all rows are alike there is none to take.

    `never`: a partial setting under which no event can be. Terms that hold it are known, and no observations.
    """
    known = possible(rule, never)
    terms = (*known.plus, *known.minus)
    if not terms:
        return 0.0, False
    outcomes = [[v for cell, v in row.items() if any(agrees(cell, term) for term in terms)] for row in rows]
    commonest = Counter(v for row in outcomes for v in row).most_common(1)[0][0]
    carrying = len({name for name, seen in zip(clusters, outcomes, strict=True) if set(seen) - {commonest}})
    se = standard_error(by_cluster([contrast(row, rule) for row in rows], clusters))
    if carrying >= MIN_CLUSTERS - 1 and se > 0:
        return se, False
    least = least_error(span(known), len(set(clusters)), level=level)
    return max(se, least), se <= least


def least_error(span: Span, clusters: int, *, level: float = 0.95) -> float:
    """Standard error whose interval reaches the Clopper-Pearson limits of no event in G clusters, added up by term."""
    return max(map(abs, span)) * event_limit(clusters, level=level) / t_quantile((1 + level) / 2, clusters - 1)


def event_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    *,
    span: Span,
    unit: str = "probability",
    level: float = 0.95,
    error: tuple[float, bool] | None = None,
) -> Quantity:
    """`cluster_mean` for contrasts of 0/1 outcomes, kept within their span; its standard error is event_error's.

    `error`: that of cell_error instead, where values are contrasts of several outcomes.
    """
    seen = cluster_mean(values, clusters, unit=unit, level=level)
    if isinstance(seen, Unmeasured):
        return seen
    se, least = error or event_error(values, clusters, span=span, level=level)
    half = t_quantile((1 + level) / 2, seen.clusters - 1) * se
    rule = f"few clusters with events: Clopper-Pearson limit of 0 in {seen.clusters} clusters, per term"
    return seen.model_copy(
        update={
            "low": max(seen.value - half, span[0]),
            "high": min(seen.value + half, span[1]),
            "estimator": rule if least else seen.estimator,
        }
    )


def correlation(moments_G6: Sequence[Sequence[float]] | Floats, *, level: float = 0.95) -> Quantity:
    """Pearson's correlation over all observations of the clusters; t interval on Fisher's z, its standard error from
    leaving out each cluster (jackknife, Tukey 1958).

    By cluster: n, and the sums of x, y, x^2, y^2 and x y; observations themselves need not be kept. Unmeasured where x
    or y does not vary without some cluster.
    """
    sums = np.asarray(moments_G6, dtype=np.float64)
    groups = len(sums)
    if groups < MIN_CLUSTERS:
        return Unmeasured(reason=f"{groups} clusters; an interval needs at least {MIN_CLUSTERS}")
    whole = sums.sum(0)
    every = [_pearson(part) for part in (whole, *(whole - sums))]
    some = [r for r in every if r is not None]
    if len(some) < len(every):
        return Unmeasured(reason="what is correlated does not vary, or in one cluster alone")
    z, *left = np.arctanh(np.clip(some, -1 + ROUNDING, 1 - ROUNDING)).tolist()
    se = float(np.sqrt(groups - 1) * np.std(left))
    half = t_quantile((1 + level) / 2, groups - 1) * se
    low, high = (float(np.tanh(z + side * half)) for side in (-1, 1))
    return Estimate(
        value=some[0], low=min(low, some[0]), high=max(high, some[0]), level=level, n=int(whole[0]), clusters=groups,
        unit="correlation", estimator="Pearson over all observations, jackknife on Fisher's z, t over clusters",
    )  # fmt: skip


def _pearson(sums_6: Floats) -> float | None:
    n, x, y, xx, yy, xy = (float(value) for value in sums_6)
    if n < 2:
        return None
    var_x, var_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    if var_x <= ROUNDING * max(xx / n, 1e-300) or var_y <= ROUNDING * max(yy / n, 1e-300):
        return None
    return float(np.clip((xy / n - x * y / n**2) / np.sqrt(var_x * var_y), -1, 1))
