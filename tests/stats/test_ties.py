"""Letters instead of ranks, and the slope of harm on capability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.stats.ties import differing, letters, slope


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(
    st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1]))
)))  # fmt: skip
def test_two_share_a_letter_if_and_only_if_they_do_not_differ(case: tuple[int, set[tuple[int, int]]]) -> None:
    count, differ = case
    found = letters(count, differ)
    assert all(found)
    for i in range(count):
        for j in range(i + 1, count):
            assert bool(set(found[i]) & set(found[j])) == ((i, j) not in differ)


def test_letters_begin_with_the_first() -> None:
    assert letters(4, {(0, 2), (0, 3), (1, 3)}) == ["a", "ab", "bc", "c"]
    assert letters(3, set()) == ["a", "a", "a"]
    assert letters(0, set()) == []


def _rates(chances: np.ndarray, plots: int, between: float, rng: np.random.Generator) -> np.ndarray:
    odds = np.log(chances / (1 - chances))[:, None] + 0.7 * rng.standard_normal(plots)[None]
    odds = odds + between * rng.standard_normal((len(chances), plots))
    return rng.binomial(18, 1 / (1 + np.exp(-odds))) / 18


@pytest.mark.parametrize("chance", [0.05, 0.3])
def test_targets_that_are_alike_seldom_differ_and_those_that_are_not_do(chance: float) -> None:
    rng, repeats = np.random.default_rng(3), 300
    alike, naive = 0, 0
    for _ in range(repeats):
        rates = _rates(np.full(16, chance), 5, 0.5, rng)
        alike += bool(differing(rates, rates))
        means = rates.mean(1)  # each episode as one observation, and every pair tested by itself
        error = np.sqrt(2 * means.mean() * (1 - means.mean()) / 90)
        naive += bool(np.ptp(means) > 1.96 * error)
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert alike / repeats <= limit < 0.5 < naive / repeats
    found = [differing(r, r) for r in (_rates(np.r_[0.9, np.full(15, 0.1)], 5, 0.5, rng) for _ in range(40))]
    assert sum({(0, j) for j in range(1, 16)} <= some for some in found) >= 36


def test_what_is_undecided_makes_no_difference() -> None:
    least = np.array([[0.8, 0.9, 0.85, 0.8, 0.9], [0.1, 0.0, 0.1, 0.05, 0.1]])
    assert differing(least, least) == {(0, 1)}
    most = least.copy()
    most[1] = 1.0
    assert differing(least, most) == set()


def test_four_plots_tell_nothing() -> None:
    least = np.array([[0.9] * 4, [0.0] * 4])
    assert differing(least, least) == set()


def test_a_slope_and_its_error_are_those_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(1)
    x = rng.random(12)
    y = 0.3 + 0.5 * x + 0.2 * x * rng.standard_normal(12)
    fit = api.OLS(y, api.add_constant(x)).fit(cov_type="HC3")
    assert slope(list(x), list(y)) == pytest.approx((fit.params[1], fit.bse[1]))
    assert slope([0.5] * 6, list(y[:6])) is None
    assert slope([0.5] * 5 + [0.9], list(y[:6])) is None
    assert slope([0.1, 0.2], [0.0, 1.0]) is None
