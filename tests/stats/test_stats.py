"""Estimates and tests against oracles: other implementations, closed forms, simulations with a known truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isclose, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy import stats as sps

from truing.records import Estimate, Quantity, Unmeasured
from truing.stats import (
    MIN_CLUSTERS,
    Test,
    cluster_mean,
    cluster_ratio,
    equivalence,
    event_mean,
    holm,
    lower,
    minimum_detectable,
    one_sided,
    upper,
)
from truing.stats.estimates import event_limit, t_quantile

pytest.importorskip("statsmodels")
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

Test.__test__ = False  # type: ignore[attr-defined]  # a result, not a test case
REPEATS = 1000
ERROR = 3 * sqrt(0.95 * 0.05 / REPEATS)


def estimated(quantity: Quantity) -> Estimate:
    assert isinstance(quantity, Estimate)
    return quantity


def covered(draw: Callable[[np.random.Generator], Quantity], truth: float, repeats: int = REPEATS) -> float:
    rng = np.random.default_rng(20240501)
    found = [estimated(draw(rng)) for _ in range(repeats)]
    return sum(one.low <= truth <= one.high for one in found) / repeats


def labels(clusters: int, each: int) -> list[str]:
    return [f"c{number:03d}" for number in range(clusters) for _ in range(each)]


# -- one data set against other implementations ------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [5, 8, 30])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_cluster_mean_is_a_t_interval_of_the_cluster_means(clusters: int, level: float) -> None:
    rng = np.random.default_rng(clusters)
    names = list(rng.permutation([f"c{number}" for number in range(clusters) for _ in range(int(rng.integers(1, 7)))]))
    values = rng.normal(size=len(names))
    means = [np.mean([v for v, n in zip(values, names, strict=True) if n == name]) for name in sorted(set(names))]
    oracle = DescrStatsW(np.array(means))
    found = estimated(cluster_mean(values.tolist(), names, unit="u", level=level))
    assert (found.n, found.clusters, found.level) == (len(names), clusters, level)
    np.testing.assert_allclose(found.value, oracle.mean, rtol=1e-12)
    np.testing.assert_allclose((found.low, found.high), oracle.tconfint_mean(1 - level), rtol=1e-10)
    test = one_sided(values.tolist(), names, above=0.1)
    assert test is not None
    np.testing.assert_allclose(test.p, oracle.ttest_mean(0.1, alternative="larger")[1], rtol=1e-10)
    np.testing.assert_allclose(
        upper(test, alpha=0.05), oracle.tconfint_mean(0.05, alternative="smaller")[1], rtol=1e-10
    )


@settings(max_examples=25)  # statsmodels collects garbage in each call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12, atol=1e-300)


@given(st.integers(1, 3000), st.sampled_from([0.8, 0.95, 0.99]))
def test_event_limit_is_the_upper_limit_of_no_event(n: int, level: float) -> None:
    clopper_pearson = proportion_confint(0, n, alpha=1 - level, method="beta")
    assert isclose(event_limit(n, level=level), clopper_pearson[1], rel_tol=1e-9)
    # By its definition: at the limit, no event is seen in (1 - level) / 2 of the samples.
    assert isclose((1 - event_limit(n, level=level)) ** n, (1 - level) / 2, rel_tol=1e-9)


@pytest.mark.parametrize("df", [4, 5, 6, 9, 19, 99])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_minimum_detectable_is_what_the_noncentral_t_says(df: int, power: float) -> None:
    critical = sps.t.ppf(0.95, df)
    exact = optimize.brentq(lambda effect: sps.nct.sf(critical, df, effect / 0.2) - power, 0.01, 5)
    assert isclose(minimum_detectable(Test(p=0.5, mean=0, se=0.2, df=df), power=power), exact, rel_tol=0.03)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.04, 0.1])
@pytest.mark.parametrize("clusters", [5, 12])
def test_equivalence_is_the_tost_of_statsmodels_and_agrees_with_the_limits(mean: float, clusters: int) -> None:
    values = mean + 0.05 * np.random.default_rng(clusters).normal(size=clusters)
    test = one_sided(list(values), [str(n) for n in range(clusters)])
    assert test is not None
    p = equivalence(test, 0.1)
    assert p == pytest.approx(DescrStatsW(values).ttost_mean(-0.1, 0.1)[0])
    assert (p < 0.05) == (lower(test) > -0.1 and upper(test) < 0.1)


def test_equivalence_of_equal_clusters_is_that_of_the_sign_test() -> None:
    inside, outside = (Test(p=1.0, mean=mean, se=0.0, df=4) for mean in (0.05, -0.2))
    assert (equivalence(inside, 0.1), equivalence(outside, 0.1)) == (0.5**5, 1.0)


def test_minimum_detectable_is_found_that_often() -> None:
    clusters, each, rng = 7, 4, np.random.default_rng(3)
    names, spread = labels(clusters, each), 0.3
    effect = minimum_detectable(Test(p=0.5, mean=0, se=spread / sqrt(clusters), df=clusters - 1))
    found = 0
    for _ in range(REPEATS):
        test = one_sided(np.repeat(effect + spread * rng.normal(size=clusters), each).tolist(), names)
        found += test is not None and test.p < 0.05
    # 3 standard errors, and the 3% that the approximation may be off are about 2% of power
    assert abs(found / REPEATS - 0.8) < 3 * sqrt(0.8 * 0.2 / REPEATS) + 0.02


# -- coverage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [8, 20, 50])
def test_cluster_t_covers_logit_normal_clusters_and_the_naive_interval_does_not(clusters: int) -> None:
    each, spread, middle = 10, 1.5, -1.0
    names = labels(clusters, each)
    truth = integrate.quad(lambda z: sps.norm.pdf(z) / (1 + np.exp(-(middle + spread * z))), -9, 9)[0]

    def outcomes(rng: np.random.Generator) -> list[float]:
        rates = 1 / (1 + np.exp(-(middle + spread * rng.normal(size=clusters))))
        return (rng.random((clusters, each)) < rates[:, None]).astype(float).ravel().tolist()

    by_cluster = covered(lambda rng: cluster_mean(outcomes(rng), names, unit="probability"), truth)
    naive = covered(lambda rng: cluster_mean(outcomes(rng), [str(i) for i in range(len(names))], unit="u"), truth, 300)
    # With 8 clusters of a skewed rate the t interval is known to cover 93%.
    assert by_cluster >= (0.93 if clusters < 20 else 0.95) - ERROR
    assert naive < 0.8


@pytest.mark.parametrize("clusters", [7, 10, 20])
def test_cluster_ratio_covers_the_planted_share_and_the_naive_interval_does_not(clusters: int) -> None:
    each, share = 6, 0.4
    names = labels(clusters, each)

    def draw(rng: np.random.Generator, cluster_names: list[str]) -> Quantity:
        wholes = np.repeat(1 + 0.3 * rng.normal(size=clusters), each) + 0.1 * rng.normal(size=clusters * each)
        shares = np.repeat(share + 0.15 * rng.normal(size=clusters), each)
        return cluster_ratio((shares * wholes).tolist(), wholes.tolist(), cluster_names)

    by_cluster = covered(lambda rng: draw(rng, names), share)
    naive = covered(lambda rng: draw(rng, [str(i) for i in range(len(names))]), share, 300)
    # The delta method is of first order: with few clusters it may lose two points.
    assert by_cluster >= (0.93 if clusters < 20 else 0.94) - ERROR
    assert naive < 0.8


def test_cluster_ratio_is_unmeasured_where_the_whole_may_be_nothing() -> None:
    names = labels(6, 2)
    found = cluster_ratio([1.0] * 12, [1.0, -1.0] * 6, names)
    assert isinstance(found, Unmeasured)
    assert "does not differ clearly from 0" in found.reason
    assert estimated(cluster_ratio([1.0] * 12, [2.0] * 12, names)).value == 0.5


def test_the_one_sided_test_errs_as_often_as_it_says_and_one_over_surfaces_far_more_often() -> None:
    clusters, each, rng = 5, 6, np.random.default_rng(11)
    names, surfaces = labels(clusters, each), [str(number) for number in range(clusters * each)]
    errors = {"clusters": 0, "surfaces": 0}
    for _ in range(REPEATS):
        values = (np.repeat(rng.normal(size=clusters), each) + 0.3 * rng.normal(size=clusters * each)).tolist()
        for kind, taken in (("clusters", names), ("surfaces", surfaces)):
            test = one_sided(values, taken)
            errors[kind] += test is not None and test.p < 0.05
    assert abs(errors["clusters"] / REPEATS - 0.05) <= ERROR
    assert errors["surfaces"] / REPEATS > 0.15


# -- properties --------------------------------------------------------------------------------------------------------

numbers = st.floats(-100, 100, allow_subnormal=False)


@st.composite
def clustered(draw: st.DrawFn, least: int = MIN_CLUSTERS) -> tuple[list[float], list[str]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=least, max_size=9))
    names = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return draw(st.lists(numbers, min_size=len(names), max_size=len(names))), names


def bounds(values: list[float], names: list[str]) -> np.ndarray:
    found = estimated(cluster_mean(values, names, unit="u"))
    return np.array([found.low, found.value, found.high])


@given(clustered(), numbers)
def test_shift(data: tuple[list[float], list[str]], by: float) -> None:
    values, names = data
    np.testing.assert_allclose(bounds([v + by for v in values], names), bounds(values, names) + by, atol=1e-6)


@given(clustered(), st.floats(-50, 50))
def test_scale(data: tuple[list[float], list[str]], by: float) -> None:
    values, names = data
    expected = np.sort(bounds(values, names) * by)
    np.testing.assert_allclose(bounds([v * by for v in values], names), expected, atol=1e-6)


@given(clustered(), st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(data: tuple[list[float], list[str]], random: object) -> None:
    values, names = data
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled, renamed = [values[i] for i in order], [f"{names[i]}'"[::-1] for i in order]
    np.testing.assert_allclose(bounds(shuffled, renamed), bounds(values, names), atol=1e-9)


@given(clustered(), st.floats(0.5, 0.999))
def test_an_interval_holds_its_value_and_grows_with_its_level(
    data: tuple[list[float], list[str]], level: float
) -> None:
    values, names = data
    narrow = estimated(cluster_mean(values, names, unit="u", level=level / 2))
    wide = estimated(cluster_mean(values, names, unit="u", level=level))
    assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high


@given(clustered())
def test_copies_inside_a_cluster_are_no_replication(data: tuple[list[float], list[str]]) -> None:
    values, names = data
    np.testing.assert_allclose(bounds(values * 3, names * 3), bounds(values, names), atol=1e-9)


@given(clustered(), numbers)
def test_a_one_sided_test_agrees_with_its_upper_limit(data: tuple[list[float], list[str]], above: float) -> None:
    values, names = data
    test = one_sided(values, names, above=above)
    mirrored = one_sided([-v for v in values], names, above=-above)
    assert test is not None
    assert mirrored is not None
    assume(test.se > 1e-6)
    assert isclose(test.p + mirrored.p, 1, abs_tol=1e-9)
    assume(abs(mirrored.p - 0.05) > 1e-9)
    assert (upper(test, alpha=0.05) < above) == (mirrored.p < 0.05)


@given(clustered(), st.integers(1, 20))
def test_a_ratio_does_not_depend_on_the_unit(data: tuple[list[float], list[str]], by: int) -> None:
    values, names = data
    wholes = [200.0 + value for value in values]
    one, other = (
        cluster_ratio(values, wholes, names),
        cluster_ratio([v * by for v in values], [w * by for w in wholes], names),
    )
    assert isinstance(one, Estimate) == isinstance(other, Estimate)
    if isinstance(one, Estimate) and isinstance(other, Estimate):
        np.testing.assert_allclose((one.low, one.value, one.high), (other.low, other.value, other.high), atol=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_never_lowers(p: list[float], random: object) -> None:
    adjusted = holm(p)
    pairs = sorted(zip(p, adjusted, strict=True))
    assert all(a <= b for (_, a), (_, b) in pairwise(pairs))
    assert all(min(one, 1) <= other <= 1 for one, other in pairs)
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


# -- edges -------------------------------------------------------------------------------------------------------------


def test_under_five_clusters_nothing_is_given() -> None:
    names = labels(4, 10)
    for found in (cluster_mean([1.0] * 40, names, unit="u"), cluster_ratio([1.0] * 40, [1.0] * 40, names)):
        assert isinstance(found, Unmeasured)
        assert "4 clusters" in found.reason
    assert one_sided([1.0] * 40, names) is None


def test_clusters_all_alike_are_judged_by_the_sign_test() -> None:
    names = labels(6, 2)
    for values, p in (([1.0] * 12, 1 / 64), ([0.0] * 12, 1.0), ([-1.0] * 12, 1.0)):
        test = one_sided(values, names)
        assert test is not None
        assert (test.p, test.se) == (p, 0.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_events_all_alike_get_an_interval_of_some_width(value: float) -> None:
    names = labels(6, 2)
    assert np.ptp(bounds([value] * 12, names)) == 0  # the known-bad estimator: certain after twelve looks
    found = estimated(event_mean([value] * 12, names, span=(-1, 1)))
    assert found.value == value
    assert found.low <= value - 0.1
    assert found.high >= min(value + 0.1, 1.0)
    assert -1 <= found.low <= found.high <= 1  # a difference of two probabilities
    more_of_the_same = estimated(event_mean([value] * 120, labels(6, 20), span=(-1, 1)))
    assert (more_of_the_same.low, more_of_the_same.high) == (found.low, found.high)  # surfaces are not replication
    mixed = [0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert estimated(event_mean(mixed, names, span=(-2, 2), unit="u")) == estimated(
        cluster_mean(mixed, names, unit="u")
    )
    assert isinstance(event_mean([0.0] * 8, labels(4, 2), span=(-1, 1)), Unmeasured)


def test_equal_clusters_are_equal_whatever_their_mean_rounds_to() -> None:
    names = labels(7, 5)
    assert np.full(7, 0.2).std(ddof=1) > 0  # what a plain comparison with zero would trip over
    test = one_sided([0.2] * 35, names)
    assert test is not None
    assert (test.p, test.se) == (0.5**7, 0.0)


def test_a_rate_lies_between_zero_and_one() -> None:
    names = labels(6, 2)
    none, some = ([0.0] * 12, [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    found = estimated(event_mean(none, names, span=(0, 1)))
    assert (found.low, found.high) == (0, pytest.approx(event_limit(6)))
    found = estimated(event_mean(some, names, span=(0, 1)))
    assert found.low < found.value < found.high <= 1


def test_a_first_event_does_not_narrow_the_interval() -> None:
    names = labels(7, 5)
    widths, limits = [], []
    for events in range(4):
        values = [1.0 if i % 5 == 0 and i // 5 < events else 0.0 for i in range(35)]
        found, test = estimated(event_mean(values, names, span=(-1, 1))), one_sided(values, names, events=(-1, 1))
        assert test is not None
        widths.append(found.high - found.low)
        limits.append(upper(test))
    assert max(widths) - min(widths) < 1e-9
    assert limits == sorted(limits)


def test_clusters_alike_by_chance_give_no_less_than_the_error_of_independent_surfaces() -> None:
    names, values = labels(7, 5), [1.0, 0.0, 0.0, 0.0, 0.0] * 7
    found, test = estimated(event_mean(values, names, span=(-1, 1))), one_sided(values, names, events=(-1, 1))
    assert test is not None
    assert test.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(35))
    assert found.low == pytest.approx(0.2 - t_quantile(0.975, 6) * test.se)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values but 2 cluster names"):
        cluster_mean([1, 2, 3], ["a", "b"], unit="u")
    assert holm([]) == []
