"""Designs: every pair of levels equally often, no alias where none is allowed, against exact enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from truing.stats.designs import (
    aliases,
    array,
    at_random,
    coded,
    crossed,
    fraction,
    full,
    one_at_a_time,
    orthogonal,
    relabelled,
)
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


def control_aliases(runs: np.ndarray) -> dict[int, set[tuple[tuple[int, ...], float]]]:
    """What the interaction of every factor with the means is aliased with, as an audit estimates it."""
    found = aliases(runs, [*NINE, 3], [(k, 2) for k in range(10) if k != 2], alone=True)
    return {
        k: {(alias.other, round(alias.share, 6)) for alias in found if alias.term == (k, 2)}
        for k in range(10) if k != 2
    }  # fmt: skip


@pytest.mark.parametrize(("size", "near"), [(36, True), (72, False), (144, False)])
def test_a_crossed_design_has_every_interaction_with_the_means_clear_of_what_is_without_them(
    size: int, near: bool
) -> None:
    runs = crossed([*NINE, 3], size, 2)
    with_means, without = (runs[runs[:, 2] == level] for level in (0, 1))
    assert {tuple(row) for row in np.delete(with_means, 2, axis=1)} == {
        tuple(row) for row in np.delete(without, 2, axis=1)
    }
    # Where runs allow no orthogonal array of the others, pairs of two-level factors are as near to it as can be: 5 and
    # 4 of 18 runs, a correlation of 1/9.
    two = [k for k, level in enumerate(NINE) if level == 2 and k != 2]
    for k, found in control_aliases(runs).items():
        others = {(tuple(sorted((2, other))), round(1 / 9, 6)) for other in two if other != k}
        assert found == (others if near and k in two else set())


def test_an_array_has_only_some_of_them_clear_of_main_effects() -> None:
    runs = array([*NINE, 3], 36, joint=(0, 2))
    mains = {k for k, found in control_aliases(runs).items() if any(len(other) == 1 for other, _ in found)}
    assert mains == {1, 3, 4, 5, 6, 7, 8, 9}


def test_an_array_that_is_near_is_orthogonal_where_it_can_be() -> None:
    levels = [3, 3, 3, 2, 2, 2]
    runs = array(levels, 18, near=True)
    for a, b in combinations(range(6), 2):
        counts = np.unique(runs[:, [a, b]], axis=0, return_counts=True)[1]
        assert set(counts) == ({4, 5} if levels[a] == levels[b] == 2 else {18 // (levels[a] * levels[b])})
    with pytest.raises(ValueError, match="equally often"):
        array(levels, 18)
    with pytest.raises(ValueError, match="equally often"):
        array([3, 2], 10, near=True)
    with pytest.raises(ValueError, match="are not 2 times as many"):
        crossed([2, 3, 3], 9, 0)


def test_what_is_estimated_alone_holds_main_effects_as_well() -> None:
    # A design that is not balanced: the share is the correlation of the two columns.
    runs = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1]])
    (found,) = (one for one in aliases(runs, [2, 2], alone=True) if one.term == (0,) and one.other == (1,))
    assert found.share == pytest.approx(abs(np.corrcoef(runs.T)[0, 1]))
    assert all(len(one.other) == 2 for one in aliases(runs, [2, 2]))
    x, y = coded(runs, [2, 2], (0,)), coded(runs, [2, 2], (1,))
    assert found.share == pytest.approx(abs(float(x[:, 0] @ y[:, 0]) / 6))


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


def test_the_error_of_an_interaction_is_that_of_a_difference_of_differences() -> None:
    rng, plots, runs = np.random.default_rng(3), 5, 48
    cells = rng.random((20_000, plots, 4, runs // 4)) < 0.2
    means = cells.mean(axis=3) @ np.array([1, -1, -1, 1]) + 0.1 * rng.normal(size=(20_000, plots))
    assert standard_error(plots, runs, parts=4, expected=Expected(0.2, 0.1)) == pytest.approx(
        means.mean(axis=1).std(), rel=0.02
    )


def test_power_is_that_of_the_noncentral_t_and_the_least_effect_has_it() -> None:
    se, df = standard_error(10, 36, share=0.5, expected=Expected(0.2, 0.1)), 9
    assert se == pytest.approx(np.sqrt((0.01 + 4 * 0.16 / 18) / 10))
    assert power(0.3, se, df) == pytest.approx(1 - stats.nct.cdf(stats.t.ppf(0.95, df), df, 0.3 / se))
    assert power(least(se, df), se, df) == pytest.approx(0.8, abs=1e-4)
    assert power(0.0, se, df) == pytest.approx(0.05)
