"""Estimates with intervals: pure functions of arrays."""

from truing.stats.contrasts import Cells, Span, agrees, average, contrast, has, span
from truing.stats.estimates import (
    MIN_CLUSTERS,
    cluster_mean,
    cluster_ratio,
    event_mean,
)
from truing.stats.tests import Test, holm, lower, minimum_detectable, one_sided, upper

__all__ = [
    "MIN_CLUSTERS", "Cells", "Span", "Test", "agrees", "average", "cluster_mean", "cluster_ratio", "contrast",
    "event_mean", "has", "holm", "lower", "minimum_detectable", "one_sided", "span", "upper",
]  # fmt: skip
