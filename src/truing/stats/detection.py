"""How well scores tell those that have something from those that have not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from truing.records import Estimate, Quantity, Unmeasured
from truing.stats.estimates import MIN_CLUSTERS, Floats, event_limit, standard_error, t_quantile

DRAWS = 2000

Scores = Mapping[str, Sequence[float]]
"""Scores of every model, which is the cluster."""


def auc(
    positives: Mapping[str, Sequence[float]], negatives: Mapping[str, Sequence[float]], *, seed: int = 0
) -> Quantity:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties as halves (Mann-Whitney).

    Both map a model, which is the cluster, to its scores; every model weighs the same. The interval is a percentile
    bootstrap over models of either side; where all are on the right (or wrong) side, the Clopper-Pearson limit of no
    event among the fewer of them. 1/2 is guessing.
    """
    if min(len(positives), len(negatives)) < 2:
        return Unmeasured(reason=f"{len(positives)} with and {len(negatives)} without; an interval needs 2 of each")
    ahead = _pairs(positives, negatives)
    rng = np.random.default_rng(seed)
    draws = [
        ahead[np.ix_(rng.integers(0, len(ahead), len(ahead)), rng.integers(0, ahead.shape[1], ahead.shape[1]))].mean()
        for _ in range(DRAWS)
    ]
    value = float(ahead.mean())
    low, high = (float(edge) for edge in np.quantile(draws, (0.025, 0.975)))
    # Where nothing was misplaced, no resampling misplaces anything: that bounds the chance, and does not make it 0.
    unseen = event_limit(min(ahead.shape))
    low, high = min(low, 1 - unseen) if value == 1 else low, max(high, unseen) if value == 0 else high
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), level=0.95,
        n=sum(map(len, (*positives.values(), *negatives.values()))), clusters=len(positives) + len(negatives),
        unit="probability", estimator="Mann-Whitney, bootstrap over models",
    )  # fmt: skip


def auc_difference(
    one: tuple[Scores, Scores], other: tuple[Scores, Scores], *, seed: int = 0, draws: int = DRAWS
) -> Quantity:
    """How much larger the area under the ROC curve of one detector is than that of another, over the same models.

    Each is a pair of positives and negatives as `auc` takes them, with the same models (ValueError otherwise); models
    need not have been scored as often by both. The interval is a percentile bootstrap over models of either side that
    draws the same models for both areas, so that what both find hard cancels (why it should: Hanley and McNeil 1983).
    Where all pairs of models fare alike, no drawing shows that others might not: the chance that one does not is
    bounded by the Clopper-Pearson limit of no event among the fewer models.
    """
    for mine, theirs in zip(one, other, strict=True):
        if mine.keys() != theirs.keys():
            raise ValueError(
                f"both need the same models; these are not: {', '.join(sorted(mine.keys() ^ theirs.keys()))}"
            )
    positives, negatives = one
    if min(len(positives), len(negatives)) < 2:
        return Unmeasured(reason=f"{len(positives)} with and {len(negatives)} without; an interval needs 2 of each")
    again, clean = ({name: side[name] for name in mine} for mine, side in zip(one, other, strict=True))
    gaps = _pairs(positives, negatives) - _pairs(again, clean)
    value = float(gaps.mean())
    low, high = _drawn(gaps, seed, draws)
    if float(np.ptp(gaps)) == 0:
        unseen = event_limit(min(gaps.shape))
        low, high = value - unseen * (1 + value), value + unseen * (1 - value)
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), level=0.95,
        n=sum(map(len, (*positives.values(), *negatives.values()))), clusters=len(positives) + len(negatives),
        unit="probability", estimator="difference of Mann-Whitney, paired bootstrap over models",
    )  # fmt: skip


def auc_across(positives: Scores, negatives: Scores) -> Quantity:
    """Area under the ROC curve where every cluster (a plot) holds positives and negatives; clusters weigh the same.

    A positive is set against the negatives of all clusters, its own among them. The interval is Student's t on the
    cluster's part in the pairs (the linear part of a U-statistic, Hoeffding 1948), kept within 0 and 1; where under
    four clusters hold a pair other than the commonest, no narrower than the Clopper-Pearson limit of no event among
    them. ValueError where the clusters of both sides differ.
    """
    if positives.keys() != negatives.keys():
        raise ValueError(f"both sides need the same clusters; not: {sorted(positives.keys() ^ negatives.keys())}")
    return across([_pairs(positives, negatives)], span=(0.0, 1.0), n=_count(positives, negatives))


def across(pairs: Sequence[Floats], *, span: tuple[float, float], n: int, level: float = 0.95) -> Quantity:
    """The same from matrices (clusters, clusters) of the chance that a positive is ahead: of their mean. A difference
    of two such areas has the span (-1, 1).
    """
    mean_GG = np.mean(pairs, axis=0)
    groups = len(mean_GG)
    if groups < MIN_CLUSTERS:
        return Unmeasured(reason=f"{groups} clusters; an interval needs at least {MIN_CLUSTERS}")
    half = t_quantile((1 + level) / 2, groups - 1) * standard_error(mean_GG.mean(0) + mean_GG.mean(1))
    value = float(mean_GG.mean())
    seen, times = np.unique(mean_GG.round(9), return_counts=True)
    other = mean_GG.round(9) != seen[times.argmax()]
    if (other.any(0) | other.any(1)).sum() < MIN_CLUSTERS - 1:
        half = max(half, event_limit(groups, level=level))
    return Estimate(
        value=value, low=max(value - half, span[0]), high=min(value + half, span[1]), level=level, n=n, clusters=groups,
        unit="probability", estimator="Mann-Whitney over all clusters, t on their parts",
    )  # fmt: skip


def pairs(positives: Scores, negatives: Scores) -> Floats:
    """For each cluster of positives and each of negatives, how often the one is ahead of the other."""
    return _pairs(positives, negatives)


def _count(*sides: Scores) -> int:
    return sum(len(scores) for side in sides for scores in side.values())


def _drawn(pairs: Floats, seed: int, draws: int) -> tuple[float, float]:
    """Between what the mean over pairs of models lies in 95% of drawings of models of either side."""
    rng = np.random.default_rng(seed)
    first, second = (rng.multinomial(size, np.full(size, 1 / size), draws) / size for size in pairs.shape)
    low, high = np.quantile(((first @ pairs) * second).sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _pairs(positives: Scores, negatives: Scores) -> Floats:
    """For each positive and negative, how often the one is ahead of the other. Shape (positives, negatives)."""
    return np.array([[_ahead(a, b) for b in negatives.values()] for a in positives.values()], dtype=np.float64)


def _ahead(mine: Sequence[float], theirs: Sequence[float]) -> float:
    a, b = np.asarray(mine)[:, None], np.asarray(theirs)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def threshold(negatives: Scores, rate: float) -> float:
    """The least score above which at most this share of the negatives' scores lies; models weigh the same."""
    scored = sorted((score, 1 / len(scores)) for scores in negatives.values() for score in scores)
    above = float(len(negatives))
    for score, weight in scored:
        above -= weight
        if above <= rate * len(negatives) + 1e-9:
            return score
    return scored[-1][0]


def roc(positives: Scores, negatives: Scores) -> list[tuple[float, float]]:
    """The curve: rates of false alarms and of detections above every threshold, from (0, 0) to (1, 1).

    Models weigh the same. Green and Swets 1966.
    """
    every = {score for scores in (*positives.values(), *negatives.values()) for score in scores}
    edges = [float("inf"), *sorted(every, reverse=True)]
    found = [(_share_from(negatives, edge), _share_from(positives, edge)) for edge in edges]
    return list(dict.fromkeys(found))


def _share_from(models: Scores, edge: float) -> float:
    """Of scores that are this high or higher."""
    return float(np.mean([np.mean([score >= edge for score in scores]) for scores in models.values()]))


def alarm_bound(models: int, *, level: float = 0.95) -> float:
    """The largest false-alarm rate that no alarm among so many independent models leaves possible: 5% needs 59.

    One-sided Clopper-Pearson limit of zero events: 1 - (1 - level)^(1 / models).
    """
    return float(1 - (1 - level) ** (1 / models)) if models else 1.0


def log_scores(chances: Sequence[float], truths: Sequence[bool]) -> list[float]:
    """Log-probability that was given to each truth, nats; 0 is perfect, -ln 2 says nothing. Good 1952."""
    given = [chance if truth else 1 - chance for chance, truth in zip(chances, truths, strict=True)]
    return [float(value) for value in np.log(np.clip(given, 1e-6, 1))]
