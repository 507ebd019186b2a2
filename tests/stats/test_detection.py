"""Scores against truths: areas, thresholds, bounds, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from truing.records import Estimate, Unmeasured
from truing.stats.detection import across, alarm_bound, auc, auc_across, auc_difference, log_scores, pairs, threshold
from truing.stats.estimates import event_limit


def alone(*scores: float) -> dict[str, list[float]]:
    return {str(number): [score] for number, score in enumerate(scores)}


def value(positives: dict[str, list[float]], negatives: dict[str, list[float]]) -> Estimate:
    found = auc(positives, negatives)
    assert isinstance(found, Estimate)
    return found


def test_the_area_is_the_chance_of_being_ahead() -> None:
    assert value(alone(3, 4), alone(1, 2)).value == 1
    assert value(alone(1, 2), alone(3, 4)).value == 0
    assert value(alone(1, 1), alone(1, 1)).value == 0.5
    assert value(alone(1, 3), alone(2, 2)).value == 0.5
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 40).round(1)
    peer = mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert value(alone(*a), alone(*b)).value == pytest.approx(peer)


def test_a_model_weighs_the_same_however_often_it_was_audited() -> None:
    once, often = {"a": [0.0], "b": [2.0]}, {"a": [0.0] * 9, "b": [2.0]}
    assert value(alone(1, 1), once).value == value(alone(1, 1), often).value == 0.5


def test_the_interval_covers() -> None:
    rng, true, hits = np.random.default_rng(2), 0.7602, 0  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for draw in range(100):
        found = auc(alone(*rng.normal(1, 1, 20)), alone(*rng.normal(0, 1, 20)), seed=draw)
        assert isinstance(found, Estimate)
        hits += found.low <= true <= found.high
    assert hits >= 95 - 3 * math.sqrt(100 * 0.05 * 0.95)


def test_perfect_separation_has_no_perfect_interval() -> None:
    found = value(alone(5, 6), alone(1, 2))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - event_limit(2))
    rng, hits = np.random.default_rng(3), 0  # P(N(2.5, 1) > N(0, 1)) = Phi(2.5 / sqrt 2) = 0.9615
    for draw in range(100):
        one = auc(alone(*rng.normal(2.5, 1, 6)), alone(*rng.normal(0, 1, 6)), seed=draw)
        assert isinstance(one, Estimate)
        hits += one.low <= 0.9615 <= one.high
    assert hits >= 95 - 3 * math.sqrt(100 * 0.05 * 0.95)


def test_too_few_models_are_no_estimate() -> None:
    assert isinstance(auc(alone(1), alone(1, 2)), Unmeasured)
    assert isinstance(auc_difference((alone(1), alone(1, 2)), (alone(1), alone(1, 2))), Unmeasured)


Sides = tuple[dict[str, list[float]], dict[str, list[float]]]


def gap(one: Sides, other: Sides, **more: int) -> Estimate:
    found = auc_difference(one, other, **more)
    assert isinstance(found, Estimate)
    return found


def correlated(rng: np.random.Generator, size: int, shared: float, above: tuple[float, float]) -> tuple[Sides, Sides]:
    """Scores of the same models by two detectors, normal with variance 1, of which a part is the same in both."""

    def side(first: float, second: float) -> list[dict[str, list[float]]]:
        same, own = rng.normal(0, shared**0.5, size), rng.normal(0, (1 - shared) ** 0.5, (2, size))
        return [alone(*(same + own[0] + first)), alone(*(same + own[1] + second))]

    (first, second), (low, lower) = side(*above), side(0, 0)
    return (first, low), (second, lower)


def test_a_difference_is_that_of_the_areas() -> None:
    one, other = correlated(np.random.default_rng(4), 12, 0.5, (1.5, 0.5))
    found = gap(one, other)
    assert found.value == pytest.approx(value(*one).value - value(*other).value)
    assert (found.n, found.clusters) == (24, 24)
    back = gap(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    reordered = dict(reversed(other[0].items())), other[1]
    assert gap(one, reordered) == found  # models are told by name, not by place
    with pytest.raises(ValueError, match="these are not: 12"):
        auc_difference(one, (other[0] | {"12": [1.0]}, other[1]))


def test_pairing_takes_away_what_both_find_hard() -> None:
    rng, ratios = np.random.default_rng(5), []
    for draw in range(20):
        one, other = correlated(rng, 15, 0.9, (1, 1))
        found, first, second = gap(one, other, seed=draw), value(*one), value(*other)
        apart = math.hypot(first.high - first.low, second.high - second.low)  # as if each were of models of its own
        ratios.append((found.high - found.low) / apart)
    assert max(ratios) < 1
    assert np.mean(ratios) < 0.6


def test_a_difference_of_nothing_is_covered_and_repeats_are_not_models() -> None:
    def covered(one: Sides, other: Sides, seed: int) -> bool:
        found = gap(one, other, seed=seed, draws=600)
        return found.low <= 0 <= found.high

    def thrice(sides: Sides) -> Sides:
        """Every score given three times, each as that of a model of its own."""
        first, second = ({f"{name} {k}": said for name, said in side.items() for k in range(3)} for side in sides)
        return first, second

    rng, hits, bad = np.random.default_rng(6), [], []
    for draw in range(300):
        one, other = correlated(rng, 16, 0.5, (1, 1))
        hits.append(covered(one, other, draw))
        if draw < 100:
            bad.append(covered(thrice(one), thrice(other), draw))
    for covers, found in ((True, hits), (False, bad)):
        assert (np.mean(found) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(found))) == covers


def test_a_difference_that_is_there_is_found_and_covered() -> None:
    rng, repeats, hits, above = np.random.default_rng(7), 200, 0, 0
    true = 0.9214 - 0.6382  # Phi(2 / sqrt 2) - Phi(0.5 / sqrt 2)
    for draw in range(repeats):
        found = gap(*correlated(rng, 20, 0.5, (2, 0.5)), seed=draw, draws=600)
        hits += found.low <= true <= found.high
        above += found.low > 0
    assert hits / repeats >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repeats)
    assert above > 0.8 * repeats


def test_detectors_that_agree_everywhere_are_not_known_to_agree() -> None:
    same = alone(3, 4, 5), alone(1, 2, 3)
    found, unseen = gap(same, same), event_limit(3)
    assert (found.value, found.low, found.high) == (0, -unseen, unseen)
    right, wrong = (alone(3, 4, 5), alone(0, 1, 2)), (alone(0, 1, 2), alone(3, 4, 5))
    found = gap(right, wrong)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 2 * unseen)


def test_a_threshold_lets_as_many_alarms_through_as_were_said() -> None:
    negatives = alone(*range(20))
    assert threshold(negatives, 0.05) == 18  # one of 20 is above
    assert threshold(negatives, 0.0) == 19
    assert threshold({"a": [1.0, 5.0], "b": [2.0, 2.0]}, 0.25) == 2.0


def test_no_alarm_in_59_audits_bounds_the_rate_at_5_percent() -> None:
    assert alarm_bound(59) <= 0.05 < alarm_bound(58)
    assert alarm_bound(0) == 1


def test_the_log_score_is_best_where_chances_are_the_truth() -> None:
    assert log_scores([1.0, 0.0], [True, False]) == [0, 0]
    assert log_scores([0.5, 0.5], [True, False]) == pytest.approx([-math.log(2)] * 2)
    truths = [True] * 7 + [False] * 3
    scores = [sum(log_scores([chance] * 10, truths)) for chance in (0.5, 0.7, 0.9)]
    assert max(scores) == scores[1]


def plots(rng: np.random.Generator, *, size: int, push: float, story: float, each: int = 4) -> Sides:
    """Cases of plots: what a plot does to all its cases, and to the positives among them."""
    shared, own = rng.normal(0, story, size), rng.normal(0, story, size)
    return tuple(
        {str(g): (shared[g] + sign * (push + own[g]) / 2 + rng.normal(0, 1, each)).tolist() for g in range(size)}
        for sign in (1, -1)
    )  # type: ignore[return-value]


def test_across_plots_a_positive_is_set_against_all_negatives() -> None:
    one = ({"a": [3.0], "b": [1.0], "c": [9.0], "d": [9.0], "e": [9.0]},
           {"a": [2.0], "b": [0.0], "c": [0.0], "d": [0.0], "e": [0.0]})  # fmt: skip
    found = auc_across(*one)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(24 / 25)  # b's positive is behind a's negative
    assert (found.n, found.clusters) == (10, 5)
    assert found.low <= found.value - event_limit(5) + 1e-12  # two plots hold the one pair that is misplaced
    perfect = auc_across({str(g): [1.0] for g in range(8)}, {str(g): [0.0] for g in range(8)})
    assert isinstance(perfect, Estimate)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(1 - event_limit(8))
    assert isinstance(auc_across(*({str(g): [1.0] for g in range(4)},) * 2), Unmeasured)
    with pytest.raises(ValueError, match="the same clusters"):
        auc_across({"a": [1.0]}, {"b": [1.0]})


def test_the_interval_over_plots_covers_and_one_over_cases_does_not() -> None:
    rng, draws = np.random.default_rng(5), 200
    # Two plots differ by what they share (variance 2), their own pushes (1/2) and noise (2); one plot by 0, 1 and 2.
    true = 7 / 8 * norm.cdf(1 / math.sqrt(4.5)) + 1 / 8 * norm.cdf(1 / math.sqrt(3))
    hits = over_cases = 0
    for _ in range(draws):
        sides = plots(rng, size=8, push=1.0, story=1.0, each=5)
        found = auc_across(*sides)
        assert isinstance(found, Estimate)
        hits += found.low <= true <= found.high
        apart = ({f"{g} {i}": [x] for g, xs in side.items() for i, x in enumerate(xs)} for side in sides)
        naive = auc_across(*apart)
        assert isinstance(naive, Estimate)
        over_cases += naive.low <= true <= naive.high
    assert hits >= draws * 0.95 - 3 * math.sqrt(draws * 0.05 * 0.95)
    assert over_cases < draws * 0.88  # 0.95 is what it says


def test_a_difference_across_plots_is_of_the_same_pairs() -> None:
    rng = np.random.default_rng(6)
    sides = plots(rng, size=8, push=2.0, story=0.5)
    same = across([pairs(*sides) - pairs(*sides)], span=(-1, 1), n=64)
    assert isinstance(same, Estimate)
    assert same.value == 0
    assert same.low < 0 < same.high
    noise = plots(rng, size=8, push=0.0, story=0.5)
    better = across([pairs(*sides) - pairs(*noise)], span=(-1, 1), n=64)
    assert isinstance(better, Estimate)
    assert better.value == pytest.approx(pairs(*sides).mean() - pairs(*noise).mean())
    assert better.low > 0
