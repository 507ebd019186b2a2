"""Why figures over a few plots have t intervals: a percentile bootstrap over so few covers too little.

As in a difference of graphs: few plots, some cases in each, half of the variance between plots.
"""

from __future__ import annotations

import numpy as np
import pytest

from truing.records import Estimate
from truing.stats import cluster_mean

pytestmark = pytest.mark.base

REPEATS, DRAWS, LEVEL = 600, 400, 0.95
ERROR = (LEVEL * (1 - LEVEL) / REPEATS) ** 0.5
"""Of a coverage that is as it should be, from simulation alone."""


def covered(values_N: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether the percentile interval of the mean of resampled values holds 0."""
    means = values_N[rng.integers(0, len(values_N), (DRAWS, len(values_N)))].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return bool(low <= 0 <= high)


@pytest.mark.parametrize(
    ("plots", "cases", "skewed", "t_least", "bootstrap_most"),
    [(5, 3, False, 0.95, 0.85), (7, 3, False, 0.95, 0.87), (7, 3, True, 0.92, 0.86), (16, 1, False, 0.95, 0.92)],
)
def test_over_few_plots_t_covers_and_a_bootstrap_does_not(
    plots: int, cases: int, skewed: bool, t_least: float, bootstrap_most: float
) -> None:
    rng = np.random.default_rng(7)
    names = [str(plot) for plot in range(plots) for _ in range(cases)]
    hits = dict.fromkeys(("t", "plots", "cases"), 0)
    for _ in range(REPEATS):
        shapes = ((plots, 1), (plots, cases))
        between, within = (rng.exponential(size=s) - 1 if skewed else rng.normal(size=s) for s in shapes)
        values_PC = (between + within) / 2**0.5
        seen = cluster_mean(values_PC.ravel().tolist(), names, unit="nats/token", level=LEVEL)
        assert isinstance(seen, Estimate)
        hits["t"] += seen.low <= 0 <= seen.high
        hits["plots"] += covered(values_PC.mean(1), rng)
        hits["cases"] += covered(values_PC.ravel(), rng)
    rates = {how: hit / REPEATS for how, hit in hits.items()}
    assert rates["t"] >= t_least - 3 * ERROR, rates
    assert rates["plots"] <= bootstrap_most + 3 * ERROR, rates
    assert rates["plots"] < rates["t"], rates
    if cases > 1:  # cases of a plot are no replication
        assert rates["cases"] < rates["plots"] - 3 * ERROR, rates
