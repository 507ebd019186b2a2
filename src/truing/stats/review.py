"""Verdicts that people read a sample of: how many of each class, which ones, and what their labels make of estimates.

Pure. A stratum is a class of verdicts; within one, all are as likely to be drawn, without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from truing.records import Estimate, Quantity, Unmeasured
from truing.stats.estimates import ROUNDING

Floats = NDArray[np.float64]


def allocate(sizes: Sequence[int], n: int, *, least: int = 2) -> list[int]:
    """How many to draw of each stratum: `least` (or all it has), and the rest in proportion to the roots of the sizes.

    The best shares go with size times standard deviation (Neyman 1934; Cochran 1977, section 5.5). What is to be found
    is errors of the verdict. In a large class, where nothing happened, they are rare and its standard deviation is
    small; a small one is mostly small because it is where the verdict was in doubt. So rare and doubtful classes are
    drawn more often than their sizes would have it; the root is what Neyman's rule gives where the variance of errors
    falls as one over the size. The rest is rounded by Webster's method. ValueError where n is under the least numbers.
    """
    found = [min(least, size) for size in sizes]
    if n < sum(found):
        raise ValueError(f"{n} are too few for {len(sizes)} strata, which take at least {sum(found)}")
    extra = [0] * len(sizes)
    for _ in range(min(n, sum(sizes)) - sum(found)):
        free = [h for h, size in enumerate(sizes) if found[h] < size]
        h = max(free, key=lambda h: sqrt(sizes[h]) / (2 * extra[h] + 1))
        found[h], extra[h] = found[h] + 1, extra[h] + 1
    return found


def draw(strata: Sequence[int], counts: Sequence[int], *, seed: int) -> list[int]:
    """Places of the units that are drawn, in random order: so many of each stratum. `strata`: that of every unit."""
    rng, names = np.random.default_rng(seed), np.asarray(strata, dtype=np.int64)
    chosen = [rng.choice(np.flatnonzero(names == h), count, replace=False) for h, count in enumerate(counts) if count]
    return [int(place) for place in rng.permutation(np.concatenate([np.empty(0, np.int64), *chosen]))]


def difference(
    machine: Sequence[float], label: Sequence[float], read: Sequence[bool], probability: Sequence[float]
) -> Floats:
    """Values whose means are unbiased for the means of the labels, had all units been read: m + s (y - m) / pi.

    m is the machine's verdict (any number), y the label (looked at where s, it was read), pi the probability that it
    would be. The difference estimator: Saerndal, Swensson and Wretman 1992, section 6.3; prediction-powered inference
    with lambda = 1 (Angelopoulos et al. 2023). A value may lie outside [0, 1]: it stands for all those not read.
    """
    m, y, s, pi = (np.asarray(one, dtype=np.float64) for one in (machine, label, read, probability))
    if (s * (pi <= 0)).any():
        raise ValueError("a unit was read whose inclusion probability is 0")
    return m + np.where(s > 0, (y - m) / np.where(pi > 0, pi, 1.0), 0.0)


def hidden(strata: Sequence[tuple[int, int]], *, level: float = 0.95) -> int:
    """The most errors that strata (size, read) may hold though reading found none, in all together.

    That many would have been missed with a probability of no less than (1 - level) / 2: the upper limit of Clopper and
    Pearson for no event, without replacement and over strata. What was not read at all may all be wrong.
    """
    left = [size for size, _ in strata]
    free = sum(size for size, read in strata if not read)
    chance, count = 1.0, free
    while True:
        # The next error goes where it is likeliest to be missed; it gets harder as a stratum fills up.
        missed = [(left[h] - read) / left[h] if read and left[h] > read else 0.0 for h, (_, read) in enumerate(strata)]
        best = max(range(len(strata)), key=missed.__getitem__, default=None)
        if best is None or (chance := chance * missed[best]) < _tail_of(level):
            return count
        left[best], count = left[best] - 1, count + 1


@dataclass(frozen=True, slots=True)
class Read:
    """A stratum, and what reading found in it."""

    size: int
    read: int
    hits: int

    @property
    def total(self) -> float:
        """Hits of the stratum, estimated."""
        return self.size * self.hits / self.read


def _tail_of(level: float) -> float:
    """The probability in either tail, less what rounding may take off one that equals it."""
    return (1 - level) / 2 - ROUNDING


def limits(one: Read, *, level: float = 0.95) -> tuple[int, int]:
    """Exact limits on the hits of a stratum, read or not (Wright 1991: the hypergeometric tails, inverted)."""
    misses = Read(one.size, one.read, one.read - one.hits)
    return one.size - _most(misses, level), _most(one, level)


def _most(one: Read, level: float) -> int:
    """The largest number of hits of which so few would be found with a probability of at least (1 - level) / 2."""
    low, high = one.hits, one.size - (one.read - one.hits)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _tail(one, middle) >= _tail_of(level) else (low, middle - 1)
    return low


def _tail(one: Read, hits: int) -> float:
    """Probability that reading finds no more than it did, where there are so many hits."""
    j = np.arange(max(0, one.read - (one.size - hits)), one.hits + 1)
    ways = _log_ways(hits, j) + _log_ways(one.size - hits, one.read - j)
    return float(np.exp(ways - _log_ways(one.size, np.array(one.read))).sum())


def _log_ways(n: int, k: NDArray[np.int64]) -> Floats:
    found: Floats = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return found


def share(inside: Sequence[Read], outside: Sequence[Read], *, level: float = 0.95) -> Quantity:
    """Of the hits of all strata, the share that lies inside: the ratio of their estimated totals.

    Sensitivity, where hits are what readers call harmful and inside is what the verdict calls so. The interval is put
    together from exact limits of the strata by the method of variance estimates recovery (sums: Zou and Donner 2008;
    the ratio: Donner and Zou 2012), so that a stratum in which nothing was found is not known to hold nothing.
    """
    every = [*inside, *outside]
    if any(one.size and not one.read for one in every):
        return Unmeasured(reason="of some class nothing was read that could be decided")
    a, a_low, a_high = _total(inside, level)
    b, b_low, b_high = _total(outside, level)
    if a + b == 0:
        return Unmeasured(reason="none was found among those that were read")
    read = sum(one.read for one in every)
    value = a / (a + b)
    low, high = _odds(a, b, a - a_low, b_high - b), _odds(b, a, b - b_low, a_high - a)
    return Estimate(
        value=value, low=min(low, value), high=max(1 - high, value), level=level, n=read, clusters=read, unit="share",
        estimator="stratified ratio, limits recovered from those of strata",
    )  # fmt: skip


def _total(strata: Sequence[Read], level: float) -> tuple[float, float, float]:
    """The sum of the strata's hits, with its limits."""
    some = [(one.total, *limits(one, level=level)) for one in strata if one.size]
    total = sum(t for t, _, _ in some)
    down, up = (sqrt(sum((t - edge[k]) ** 2 for t, *edge in some)) for k in (0, 1))
    return total, total - down, total + up


def _odds(a: float, b: float, down: float, up: float) -> float:
    """Lower limit of a / (a + b): where a - odds b is as far above 0 as `down` of a and `up` of b reach together."""
    above = a * a - down * down
    below = a * b + hypot(b * down, up * sqrt(max(above, 0.0)))
    if above <= 0:
        return 0.0
    return above / (above + below)
