"""What a design can find, before anything is spent: standard error, power and the least effect, by plots and calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from truing.stats.estimates import t_quantile


@dataclass(frozen=True, slots=True)
class Expected:
    """What is assumed of outcomes before any was seen."""

    rate: float = 0.2
    """Probability of harm at the baseline."""
    between: float = 0.1
    """Standard deviation of an effect between plots, in probability."""


def standard_error(
    plots: int, runs: int, *, share: float = 1.0, parts: int = 2, expected: Expected | None = None
) -> float:
    """Of the mean over plots of a difference between two levels, each of which has half of the runs that take part.

    `runs`: of a plot. `share`: of the runs that take part (1/2 where the means must be there; 2/3 for two of three
    levels). `parts`: 4 for the interaction of two levels with two, a difference of differences between quarters.
    Var = between^2 / G + parts^2 p (1 - p) / (G n).
    """
    one = expected or Expected()
    within = parts**2 * one.rate * (1 - one.rate) / (runs * share)
    return float(np.sqrt((one.between**2 + within) / plots))


def power(effect: float, se: float, df: int, *, alpha: float = 0.05) -> float:
    """Chance that a one-sided t test finds an effect (noncentral t)."""
    return float(1 - special.nctdtr(df, effect / se, t_quantile(1 - alpha, df)))


def least(se: float, df: int, *, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The effect that is found with the wanted power, by bisection."""
    low, high = 0.0, 50 * se
    while high - low > 1e-6 * se:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, se, df, alpha=alpha) < wanted else (low, middle)
    return high
