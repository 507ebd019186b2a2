"""Scores against truths: areas, thresholds, bounds, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from truing.records import Estimate, Unmeasured
from truing.stats.detection import alarm_bound, auc, log_scores, threshold
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
