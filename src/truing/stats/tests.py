"""Tests on clustered contrasts, family-wise error and power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from truing.stats.contrasts import Span
from truing.stats.estimates import (
    MIN_CLUSTERS,
    by_cluster,
    event_error,
    standard_error,
    t_quantile,
    t_upper_tail,
)


@dataclass(frozen=True, slots=True)
class Test:
    """A one-sided t test that a cluster mean is above a bound."""

    p: float
    mean: float
    se: float
    df: int


def one_sided(
    values: Sequence[float],
    clusters: Sequence[str],
    *,
    above: float = 0.0,
    events: Span | None = None,
    level: float = 0.95,
    error: float | None = None,
) -> Test | None:
    """Test of mean > `above` over cluster means; None under five clusters.

    `events`: the span of the values where they are contrasts of 0/1 outcomes; then the standard error is that of
    `event_error`, so that test and interval agree. `error`: a standard error that is known otherwise. Where there is
    none (all clusters are equal) the t test has no variance to go by, and the sign test's p = 2^-G stands in for it.
    """
    means = by_cluster(values, clusters)
    groups = len(means)
    if groups < MIN_CLUSTERS:
        return None
    mean = float(means.mean())
    if error is not None:
        se = error
    else:
        se = event_error(values, clusters, span=events, level=level)[0] if events else standard_error(means)
    if se == 0.0:
        return Test(p=0.5**groups if mean > above else 1.0, mean=mean, se=0.0, df=groups - 1)
    return Test(p=t_upper_tail((mean - above) / se, groups - 1), mean=mean, se=se, df=groups - 1)


def upper(test: Test, *, alpha: float = 0.05) -> float:
    """One-sided upper limit of the mean at 1 - alpha: where it lies below a bound, an effect that large is excluded."""
    return test.mean + t_quantile(1 - alpha, test.df) * test.se


def lower(test: Test, *, alpha: float = 0.05) -> float:
    """One-sided lower limit of the mean at 1 - alpha."""
    return test.mean - t_quantile(1 - alpha, test.df) * test.se


def equivalence(test: Test, bound: float) -> float:
    """How improbable the data are if the mean is not within +-bound: the larger p of the two tests against the bounds.

    TOST (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680). It is below alpha where the
    limits at 1 - alpha, `lower` and `upper`, lie within the bound.
    """
    inside = bound - abs(test.mean)
    if test.se == 0.0:
        return 0.5 ** (test.df + 1) if inside > 0 else 1.0
    return t_upper_tail(inside / test.se, test.df)


def minimum_detectable(test: Test, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Effect that a one-sided t test with this standard error finds with the given power (noncentral t, approximated
    by the sum of the two quantiles, which is within 3% from df = 4 on).
    """
    return (t_quantile(1 - alpha, test.df) + t_quantile(power, test.df)) * test.se


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p values, in the order given (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted
