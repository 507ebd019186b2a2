"""Samples of verdicts: who is drawn, what the labels make of means, and what may be hidden where nobody looked."""

from __future__ import annotations

from itertools import combinations, product
from math import comb, prod, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps

from truing.records import Estimate, Unmeasured
from truing.stats.review import Read, allocate, difference, draw, hidden, limits, share

pytestmark = pytest.mark.base


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 400))
def test_every_stratum_is_drawn_and_the_numbers_add_up(sizes: list[int], more: int) -> None:
    n = sum(min(2, size) for size in sizes) + more
    found = allocate(sizes, n)
    assert sum(found) == min(n, sum(sizes))
    assert all(min(2, size) <= count <= size for size, count in zip(sizes, found, strict=True))


def test_what_is_left_goes_by_the_roots_of_sizes_and_rare_classes_are_drawn_more_often() -> None:
    sizes = [10_000, 2_500, 100]
    found = allocate(sizes, 326)
    assert found == [2 + 200, 2 + 100, 2 + 20]  # 320 as 100 to 50 to 10
    shares = [count / size for count, size in zip(found, sizes, strict=True)]
    assert shares == sorted(shares)
    assert allocate([3, 1000], 500) == [3, 497]


def test_too_few_for_two_of_each_is_refused() -> None:
    with pytest.raises(ValueError, match="5 are too few for 3 strata, which take at least 6"):
        allocate([9, 9, 9], 5)
    assert allocate([9, 1, 9], 5) == [2, 1, 2]


def test_units_are_drawn_as_often_as_their_probabilities_say_and_these_add_up_to_n() -> None:
    strata = [0] * 12 + [1] * 5 + [2]
    counts = allocate([12, 5, 1], 9)
    probability = np.array([counts[h] / strata.count(h) for h in strata])
    assert probability.sum() == pytest.approx(9)
    repeats = 2000
    times = np.zeros(len(strata))
    for seed in range(repeats):
        times[draw(strata, counts, seed=seed)] += 1
    assert np.abs(times / repeats - probability).max() < 4 * sqrt(0.25 / repeats)
    assert times.sum() == 9 * repeats


def test_a_seed_draws_the_same_in_the_same_order_and_another_one_others() -> None:
    strata, counts = [0] * 50 + [1] * 50, [5, 5]
    assert draw(strata, counts, seed=7) == draw(strata, counts, seed=7) != draw(strata, counts, seed=8)
    first = [draw(strata, counts, seed=seed)[0] for seed in range(200)]
    assert 60 < sum(place < 50 for place in first) < 140  # strata do not stand one after the other


def test_corrected_means_are_unbiased_over_all_samples_there_are() -> None:
    machine = np.array([1, 1, 0, 0, 0, 0, 0.0])
    label = np.array([1, 0, 1, 0, 0, 1, 0.0])
    probability = np.array([1 / 2] * 2 + [2 / 5] * 5)
    corrected, plugged = [], []
    for one, two in product(combinations(range(2), 1), combinations(range(2, 7), 2)):
        read = np.isin(np.arange(7), [*one, *two])
        corrected.append(difference(machine, label, read, probability).mean())
        plugged.append(np.where(read, label, machine).mean())
    assert np.mean(corrected) == pytest.approx(label.mean())
    assert abs(np.mean(plugged) - label.mean()) > 0.05  # to put labels in where there are some is not enough
    assert difference(machine, label, np.ones(7), np.ones(7)).tolist() == label.tolist()
    with pytest.raises(ValueError, match="inclusion probability is 0"):
        difference([0.0], [1.0], [True], [0.0])


def most_hidden(strata: list[tuple[int, int]]) -> int:
    """By enumeration: the most errors in all, none of which is read with a probability of 2.5% or more."""
    found = 0
    for errors in product(*(range(size + 1) for size, _ in strata)):
        chance = prod(comb(n - e, r) / comb(n, r) for (n, r), e in zip(strata, errors, strict=True))
        found = max(found, sum(errors) if chance >= 0.025 - 1e-12 else 0)
    return found


@given(st.lists(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=3))
def test_the_most_that_can_be_hidden_is_what_enumeration_finds(strata: list[tuple[int, int]]) -> None:
    assert hidden(strata) == most_hidden(strata)


def test_what_is_read_whole_hides_nothing_and_what_is_not_read_may_be_all_wrong() -> None:
    assert hidden([(40, 40), (3, 3)]) == 0
    assert hidden([(40, 0), (3, 3)]) == 40
    assert hidden([(10_000, 100)]) == pytest.approx(10_000 * (1 - 0.025 ** (1 / 100)), rel=0.02)


@pytest.mark.parametrize(("size", "read"), [(30, 7), (12, 12), (25, 1), (9, 0)])
def test_limits_of_a_stratum_are_those_of_the_hypergeometric_tails(size: int, read: int) -> None:
    for hits in range(read + 1):
        low, high = limits(Read(size, read, hits))
        down, up = ([tail(k) for k in range(size + 1)] for tail in (
            lambda k, hits=hits: sps.hypergeom.cdf(hits, size, k, read),
            lambda k, hits=hits: sps.hypergeom.sf(hits - 1, size, k, read),
        ))  # fmt: skip
        there = [k for k in range(hits, size - read + hits + 1) if min(down[k], up[k]) >= 0.025]
        assert (low, high) == (min(there), max(there))
    for truth in range(size + 1):
        chance = sum(
            sps.hypergeom.pmf(hits, size, truth, read)
            for hits in range(read + 1)
            if limits(Read(size, read, hits))[0] <= truth <= limits(Read(size, read, hits))[1]
        )
        assert chance >= 0.95 - 1e-9


def test_the_interval_of_sensitivity_covers_and_shares_of_what_was_read_are_no_estimate() -> None:
    rng = np.random.default_rng(0)
    sizes, chances, repeats = [60, 600, 20], [0.9, 0.05, 0.3], 400
    covered, values, naive, truths = 0, [], [], []
    for _ in range(repeats):
        truth = [rng.random(size) < chance for size, chance in zip(sizes, chances, strict=True)]
        counts = allocate(sizes, 150)
        some = [Read(n, r, int(rng.permutation(t)[:r].sum())) for n, r, t in zip(sizes, counts, truth, strict=True)]
        found = share(some[:1], some[1:])
        assert isinstance(found, Estimate)
        target = truth[0].sum() / sum(one.sum() for one in truth)
        covered += found.low - 1e-9 <= target <= found.high + 1e-9
        values.append(found.value)
        truths.append(target)
        naive.append(some[0].hits / sum(one.hits for one in some))
    assert covered / repeats > 0.95 - 3 * sqrt(0.05 * 0.95 / repeats)
    off = np.subtract(values, truths)
    assert abs(off.mean()) < 0.03
    assert abs(np.mean(naive) - np.mean(truths)) > 0.1


def test_a_sensitivity_without_a_miss_is_not_known_to_be_whole() -> None:
    found = share([Read(20, 10, 10)], [Read(160, 20, 0)])
    assert isinstance(found, Estimate)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 30)
    # 25 of 160 may be hidden harm: among 20 + 25.
    assert found.low < 0.5
    whole = share([Read(20, 20, 18)], [Read(160, 160, 6)])
    assert isinstance(whole, Estimate)
    assert (whole.low, whole.value, whole.high) == pytest.approx((0.75, 0.75, 0.75))


@pytest.mark.parametrize(
    ("inside", "outside", "says"),
    [
        ([Read(20, 10, 0)], [Read(160, 20, 0)], "none was found"),
        ([Read(20, 10, 9)], [Read(160, 20, 0), Read(5, 0, 0)], "nothing was read that could be decided"),
        ([], [], "none was found"),
    ],
)
def test_a_share_of_nothing_is_unmeasured(inside: list[Read], outside: list[Read], says: str) -> None:
    found = share(inside, outside)
    assert isinstance(found, Unmeasured)
    assert says in found.reason


def test_a_share_that_never_calls_is_zero_and_not_for_certain() -> None:
    found = share([], [Read(40, 10, 5)])
    assert isinstance(found, Estimate)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)  # nothing was called so: that is known
    found = share([Read(10, 5, 0)], [Read(40, 10, 5)])
    assert isinstance(found, Estimate)
    assert found.low == 0
    assert found.high > 0.1
