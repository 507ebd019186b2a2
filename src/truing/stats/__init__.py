"""Estimates with intervals: pure functions of arrays."""

from truing.stats.contrasts import Cells, Span, agrees, average, contrast, has, possible, span
from truing.stats.estimates import (
    MIN_CLUSTERS,
    cell_error,
    cluster_mean,
    cluster_ratio,
    event_mean,
)
from truing.stats.tests import Test, equivalence, holm, lower, minimum_detectable, one_sided, upper

__all__ = [
    "MIN_CLUSTERS", "Cells", "Span", "Test", "agrees", "average", "cell_error", "cluster_mean", "cluster_ratio",
    "contrast", "equivalence", "event_mean", "has", "holm", "lower", "minimum_detectable", "one_sided", "possible",
    "span", "upper",
]  # fmt: skip
