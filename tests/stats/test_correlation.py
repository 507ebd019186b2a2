"""Correlation over clusters from sums alone."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from truing.records import Estimate, Unmeasured
from truing.stats.estimates import correlation

pytestmark = pytest.mark.base


def sums(x: Any, y: Any) -> list[tuple[float, ...]]:
    """By row, which is a cluster."""
    return [(len(a), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()) for a, b in zip(x, y, strict=True)]


def estimate(x: Any, y: Any) -> Estimate:
    found = correlation(sums(x, y))
    assert isinstance(found, Estimate)
    return found


def test_it_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 1, (7, 30)), rng.normal(0, 1, (7, 30))
    found = estimate(x, x + y)
    assert found.value == pytest.approx(np.corrcoef(x.ravel(), (x + y).ravel())[0, 1])
    assert (found.n, found.clusters) == (210, 7)
    assert estimate(x, 3 - 2 * x).value == pytest.approx(-1)


def test_the_interval_covers_and_one_over_observations_does_not() -> None:
    rng, repeats, true = np.random.default_rng(1), 600, 1.5 / sqrt(2 * 3.25)
    hits = naive = 0
    for _ in range(repeats):
        story, other = rng.normal(size=(12, 1)), rng.normal(size=(12, 1))
        x = story + rng.normal(size=(12, 20))
        y = 0.5 * x + 0.5 * story + other + rng.normal(size=(12, 20))
        found = estimate(x, y)
        hits += found.low <= true <= found.high
        z, half = np.arctanh(found.value), 1.96 / sqrt(found.n - 3)  # Fisher 1915, for independent observations
        naive += np.tanh(z - half) <= true <= np.tanh(z + half)
    assert hits >= repeats * 0.95 - 3 * sqrt(repeats * 0.05 * 0.95)
    assert naive < repeats * 0.7


def test_what_does_not_vary_is_not_correlated() -> None:
    rng = np.random.default_rng(2)
    x, y = np.full((6, 5), 0.3), rng.normal(size=(6, 5))
    assert isinstance(correlation(sums(x, y)), Unmeasured)
    x[2, 1] = 1.0  # in one cluster alone: nothing says that it would be so in another
    assert isinstance(correlation(sums(x, y)), Unmeasured)
    x[4, 1] = 1.0
    assert isinstance(correlation(sums(x, y)), Estimate)
    assert isinstance(correlation(sums(x[:4], y[:4])), Unmeasured)
