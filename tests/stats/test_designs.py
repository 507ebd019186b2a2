"""Designs: every pair of levels equally often, no alias where none is allowed, against exact enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from truing.stats.designs import aliases, array, at_random, fraction, full, one_at_a_time, orthogonal, relabelled
from truing.stats.power import Expected, least, power, standard_error

pytestmark = pytest.mark.base
NINE = [3, 2, 2, 3, 2, 2, 3, 2, 2]
"""Levels of the nine factors of company plots; threat and means are the first and the third."""


def test_a_full_design_is_every_combination_once() -> None:
    runs = full([3, 2, 2])
    assert len({tuple(row) for row in runs}) == len(runs) == 12


@pytest.mark.parametrize("seed", range(5))
def test_an_array_has_every_pair_of_levels_equally_often_and_the_joint_factors_crossed(seed: int) -> None:
    runs = array([*NINE, 3], 36, joint=(0, 2), seed=seed)
    assert runs.shape == (36, 10)
    assert all(orthogonal(runs[:, a], runs[:, b]) for a, b in combinations(range(10), 2))
    for k in set(range(10)) - {0, 2}:
        triples = {(a, b, c): 0 for a in range(3) for b in range(2) for c in range([*NINE, 3][k])}
        for row in runs:
            triples[row[0], row[2], row[k]] += 1
        assert len(set(triples.values())) == 1


def test_no_main_effect_of_an_array_is_aliased_with_the_interaction_that_decides() -> None:
    runs = array(NINE, 36, joint=(0, 2))
    assert all(alias.other != (0, 2) or alias.term == (0, 2) for alias in aliases(runs, NINE))


@pytest.mark.parametrize("size", [72, 144])
def test_a_fraction_keeps_interactions_across_its_two_parts_clear(size: int) -> None:
    runs = fraction(NINE, size)
    assert len({tuple(row) for row in runs}) == size
    declared = [(a, b) for a in (0, 3, 6) for b in (1, 2, 4, 5, 7, 8)]
    across = [alias for alias in aliases(runs, NINE, declared) if alias.term in declared]
    assert across == []


@pytest.mark.parametrize(
    ("factors", "runs", "resolution"), [(3, 4, 3), (4, 8, 4), (5, 16, 5), (6, 16, 4), (6, 32, 6), (7, 64, 7)]
)
def test_fractions_of_two_levels_have_the_highest_resolution_there_is(factors: int, runs: int, resolution: int) -> None:
    signs = 2 * fraction([2] * factors, runs) - 1
    words = [
        size
        for size in range(1, factors + 1)
        for some in combinations(range(factors), size)
        if abs(signs[:, some].prod(axis=1).sum()) == runs
    ]
    assert min(words) == resolution


def test_the_alias_matrix_is_that_of_the_textbook() -> None:
    # 2^(4-1) with D = ABC: AB = CD, AC = BD, AD = BC; main effects clear of pairs (Wu and Hamada 2009, section 5.2).
    found = aliases(fraction([2] * 4, 8), [2] * 4, [(0, 1)])
    assert [(one.term, one.other, round(one.share, 9)) for one in found] == [((0, 1), (2, 3), 1.0)]


@pytest.mark.parametrize(
    ("levels", "runs", "says"),
    [([2, 2, 2], 6, "2\\^m 3\\^q"), ([4, 2], 8, "take an array"), ([2] * 5, 4, "too few")],
)
def test_fractions_that_are_not_there_are_refused(levels: list[int], runs: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fraction(levels, runs)


def test_arrays_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="equally often"):
        array(NINE, 30)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_renaming_levels_keeps_what_is_orthogonal(seed: int) -> None:
    runs = relabelled(array(NINE, 36, joint=(0, 2)), NINE, seed=seed)
    assert all(orthogonal(runs[:, a], runs[:, b]) for a, b in combinations(range(9), 2))
    assert sorted(np.bincount(runs[:, 0])) == [12, 12, 12]


def test_what_is_aliased_changes_its_sign_and_averages_out() -> None:
    # In 2^(3-1) the third column is the product of the others, in some plots with the opposite sign.
    signs = []
    for seed in range(400):
        runs = 2 * relabelled(fraction([2] * 3, 4), [2] * 3, seed=seed) - 1
        (sign,) = set(runs.prod(axis=1))
        signs.append(sign)
    assert abs(np.mean(signs)) < 0.15


def test_random_and_one_at_a_time_designs_are_what_they_say() -> None:
    drawn = at_random([2, 3, 2], 10, seed=1)
    assert len({tuple(row) for row in drawn}) == 10
    assert drawn.max(axis=0).tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="more than the 12"):
        at_random([2, 3, 2], 13, seed=1)
    rows = one_at_a_time([2, 3], 8)
    assert {tuple(row) for row in rows} == {(0, 0), (1, 0), (0, 1), (0, 2)}


def test_power_is_that_of_the_noncentral_t_and_the_least_effect_has_it() -> None:
    se, df = standard_error(10, 36, share=0.5, expected=Expected(0.2, 0.1)), 9
    assert se == pytest.approx(np.sqrt((0.01 + 4 * 0.16 / 18) / 10))
    assert power(0.3, se, df) == pytest.approx(1 - stats.nct.cdf(stats.t.ppf(0.95, df), df, 0.3 / se))
    assert power(least(se, df), se, df) == pytest.approx(0.8, abs=1e-4)
    assert power(0.0, se, df) == pytest.approx(0.05)
