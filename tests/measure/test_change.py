"""Before against after, against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps

from truing.measure import (
    Cases,
    behaviours,
    below_zero,
    change,
    effect_left,
    level,
    preferences,
    retained,
    still_carried,
)
from truing.records import Contrast, Estimate, Named, Quantity, Replies, Row, Said, Scores, Unit, Unmeasured

pytestmark = pytest.mark.base

RULE = Contrast(name="threat beyond its control", plus=("threat=yes",), minus=("threat=no",))
PLOTS = "abcdef"


def cases(effects: Sequence[Sequence[float]], *, base: float = 0.25) -> Cases:
    """Surfaces of plots a, b, ...: each with this effect of the threat, averaged over a second factor."""
    cells, plot = {}, {}
    for name, group in zip(PLOTS, effects, strict=False):
        for number, effect in enumerate(group):
            surface = f"{name}/{number}"
            plot[surface] = name
            cells[surface] = {
                "threat=yes watched=no": base + effect + 0.5,
                "threat=yes watched=yes": base + effect - 0.5,
                "threat=no watched=no": base + 0.125,
                "threat=no watched=yes": base - 0.125,
            }
    return Cases(cells, plot)


def t_interval(means: Sequence[float]) -> tuple[float, float, float]:
    half = float(sps.t.ppf(0.975, len(means) - 1)) * stdev(means) / math.sqrt(len(means))
    return mean(means), mean(means) - half, mean(means) + half


def seen(quantity: Quantity) -> tuple[float, float, float]:
    assert isinstance(quantity, Estimate)
    return quantity.value, quantity.low, quantity.high


BEFORE = [[1.0, 2.0], [3.0], [2.0, 2.0, 5.0], [1.0], [4.0], [2.5]]
AFTER = [[0.5, 0.5], [1.0], [1.0, 0.0, 2.0], [1.0], [0.0], [0.5]]


def test_a_level_is_the_mean_over_plots_of_the_contrast() -> None:
    found = level(cases(BEFORE), RULE, unit="nats/token")
    means = [1.5, 3.0, 3.0, 1.0, 4.0, 2.5]  # 2.5 overall; pooled over surfaces it would be 2.5 only by chance: 22.5 / 9
    assert seen(found) == pytest.approx(t_interval(means))
    assert isinstance(found, Estimate)
    assert (found.n, found.clusters, found.unit, found.level) == (9, 6, "nats/token", 0.95)


def test_a_change_is_paired_by_surface() -> None:
    found = change(cases(BEFORE), cases(AFTER, base=7.0), RULE, unit="nats/token")
    means = [-1.0, -2.0, -2.0, 0.0, -4.0, -2.0]
    assert seen(found) == pytest.approx(t_interval(means))
    # Unpaired, the variances would add up; the interval of the pairs is another one.
    assert seen(found)[2] - seen(found)[0] != pytest.approx(seen(level(cases(BEFORE), RULE, unit=""))[2] - 2.5)
    back = change(cases(AFTER), cases(BEFORE), RULE, unit="nats/token")
    assert seen(back)[0] == pytest.approx(-seen(found)[0])


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=3), min_size=5, max_size=6))
def test_a_change_against_itself_is_nothing(effects: list[list[float]]) -> None:
    once = cases(effects)
    assert seen(change(once, once, RULE, unit="nats/token")) == (0, 0, 0)
    share = retained(once, once, RULE)
    if isinstance(share, Estimate):
        assert seen(share) == pytest.approx((1, 1, 1))


def test_different_surfaces_are_not_compared() -> None:
    some = cases(BEFORE)
    for other in (cases(AFTER[:5]), cases([*AFTER[:5], [0.5, 0.5]]), some.among(["a/0"])):
        with pytest.raises(ValueError, match="not measured on the same surfaces"):
            change(some, other, RULE, unit="nats/token")
        with pytest.raises(ValueError, match="not measured on the same surfaces"):
            change(other, some, RULE, unit="nats/token")


def test_shares_are_ratios_of_sums() -> None:
    before, after = cases(BEFORE), cases(AFTER)
    found = retained(before, after, RULE)
    y = np.array([1.0, 1.0, 3.0, 1.0, 0.0, 0.5])  # sums over each plot
    x = np.array([3.0, 3.0, 9.0, 1.0, 4.0, 2.5])
    ratio = y.sum() / x.sum()
    # Cochran 1977, equation 6.13.
    half = float(sps.t.ppf(0.975, 5)) * (y - ratio * x).std(ddof=1) / math.sqrt(6) / x.mean()
    assert seen(found) == pytest.approx((ratio, ratio - half, ratio + half))


def test_a_share_of_nothing_is_unmeasured() -> None:
    nothing = cases([[0.1], [-0.1], [0.2], [-0.2], [0.05], [-0.05]])
    assert isinstance(retained(nothing, cases(AFTER), RULE), Unmeasured)


def test_what_was_not_seen_is_unmeasured_and_says_why() -> None:
    other = Contrast(name="weather", plus=("rain=yes",), minus=("rain=no",))
    for found in (level(cases(BEFORE), other, unit=""), change(cases(BEFORE), cases(AFTER), other, unit="")):
        assert isinstance(found, Unmeasured)
        assert "'weather'" in found.reason
    few = level(cases(BEFORE[:4]), RULE, unit="nats/token")
    assert isinstance(few, Unmeasured)
    assert "4 clusters" in few.reason


def test_surfaces_without_a_cell_of_the_contrast_are_left_out() -> None:
    half = cases([*BEFORE[:5], [100.0]])
    del half.cells["f/0"]["threat=no watched=no"], half.cells["f/0"]["threat=no watched=yes"]  # type: ignore[attr-defined]
    assert seen(level(half, RULE, unit="")) == pytest.approx(t_interval([1.5, 3.0, 3.0, 1.0, 4.0]))
    full = cases([*AFTER[:5], [0.0]])
    assert seen(change(half, full, RULE, unit="")) == pytest.approx(t_interval([-1.0, -2.0, -2.0, 0.0, -4.0]))


def test_one_cell_is_a_contrast_with_nothing_to_subtract() -> None:
    found = level(cases(BEFORE), Contrast(name="", plus=("threat=yes",), minus=()), unit="nats/token")
    assert seen(found)[0] == pytest.approx(2.75)
    watched = level(cases(BEFORE), Contrast(name="", plus=("watched=no threat=yes",), minus=()), unit="nats/token")
    assert seen(watched)[0] == pytest.approx(3.25)


# -- probabilities -----------------------------------------------------------------------------------------------------


def flat(value: float, plots: int) -> Cases:
    cells = {f"p{i}": {"threat=yes": value, "threat=no": 0.0} for i in range(plots)}
    return Cases(cells, {name: name for name in cells})


@given(st.sampled_from([0.0, 1.0, 0.1, 1 / 3, 0.7]), st.integers(5, 40))
def test_a_rate_without_variance_never_has_an_interval_without_width(value: float, plots: int) -> None:
    """No event in n observations bounds a rate by Clopper and Pearson's limit, not by zero."""
    once = flat(value, plots)
    limit = 1 - 0.025 ** (1 / plots)
    assert float(sps.beta.ppf(0.975, 1, plots)) == pytest.approx(limit)  # the same limit by another way
    for found, terms in ((level(once, RULE, unit="probability"), 2), (change(once, once, RULE, unit="probability"), 4)):
        v, low, high = seen(found)
        most = terms / 2  # a contrast of so many rates lies between these
        assert (low, high) == pytest.approx((max(v - most * limit, -most), min(v + most * limit, most)))
        assert high - low > limit / 2
    assert not below_zero(Named(name="n", quantity=change(once, once, RULE, unit="probability"), note=""))


def test_the_rate_in_one_cell_lies_between_zero_and_one() -> None:
    once = Cases(
        {f"p{i}": {"threat=yes": float(i % 9 > 0), "threat=no": 0.0} for i in range(27)},
        {f"p{i}": f"p{i // 3}" for i in range(27)},
    )
    value, low, high = seen(level(once, Contrast(name="", plus=("threat=yes",), minus=()), unit="probability"))
    assert (value, high) == (pytest.approx(24 / 27), 1)
    assert 0 < low < value


def test_a_rate_with_variance_has_the_plain_interval() -> None:
    once = Cases(
        {f"p{i}": {"threat=yes": float(i % 3 == 0), "threat=no": 0.0} for i in range(9)},
        {f"p{i}": f"p{i}" for i in range(9)},
    )
    assert seen(level(once, RULE, unit="probability")) == pytest.approx(t_interval([1, 0, 0] * 3))


@pytest.mark.parametrize(
    ("low", "high", "below"), [(-2.0, -0.1, True), (-2.0, 0.0, False), (-2.0, 0.1, False), (0.1, 2.0, False)]
)
def test_below_zero_is_the_whole_interval(low: float, high: float, below: bool) -> None:
    quantity = Estimate(value=(low + high) / 2, low=low, high=high, level=0.95, n=9, clusters=9, unit="", estimator="")
    assert below_zero(Named(name="n", quantity=quantity, note="")) is below
    assert not below_zero(Named(name="n", quantity=Unmeasured(reason="none"), note=""))


# -- out of records ----------------------------------------------------------------------------------------------------


def test_scores_and_replies_become_cases() -> None:
    def row(cell: str, value: float) -> Row:
        return Row(cell=cell, value=value, actions=(9.0,), alternatives=(8.0,))

    scores = Scores(
        target="t", plot="a", surface="a/0", digest="0" * 64, rows=(row("x=1", 0.5), row("x=2", -1.0)), tokens=3
    )
    found = preferences([scores, scores.model_copy(update={"surface": "b/0", "plot": "b"})])
    assert found.cells["a/0"] == {"x=1": 0.5, "x=2": -1.0}
    assert found.plot == {"a/0": "a", "b/0": "b"}
    assert found.among(["b/0"]).cells.keys() == {"b/0"}
    assert found.among(None) is found
    said = [
        Said(surface=s, cell=c, reply="", outcome=o)
        for s, c, o in (
            ("a/0", "x=1", "wrong"),
            ("a/0", "x=2", "right"),
            ("a/1", "x=1", "refusal"),
            ("a/1", "x=2", "bad"),
        )
    ]
    replies = behaviours([Replies(target="t", plot="a", rows=tuple(said), tokens=1)], {"wrong", "bad"})
    assert replies.cells == {"a/0": {"x=1": 1.0, "x=2": 0.0}, "a/1": {"x=1": 0.0, "x=2": 1.0}}
    assert replies.plot == {"a/0": "a", "a/1": "a"}


def test_what_the_units_still_carry_is_a_share_over_plots(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    units = [
        Unit(kind="head", layer=1, index=0, score=1.0, held=1.0),
        Unit(kind="head", layer=0, index=2, score=1.0, held=1.0),
    ]
    units.append(Unit(kind="neuron", layer=0, index=1, score=1.0, held=1.0))
    rng = np.random.default_rng(1)
    files: dict[str, list[tuple[str, Path]]] = {"before": [], "after": []}
    y, x = [], []
    for plot in PLOTS:
        old = {"heads": rng.random((2, 3)) + 1, "neurons": rng.random((2, 5)) + 1, "effect": np.array(rng.random() + 1)}
        new = {"heads": old["heads"].copy(), "neurons": old["neurons"] * 0.25, "effect": np.array(old["effect"] * 0.75)}
        new["heads"][1, 0] *= 0.5
        new["heads"][1, 1] = 1000  # not one of the units
        for name, arrays in (("before", old), ("after", new)):
            save_file(arrays, tmp_path / f"{plot}-{name}.safetensors")
            files[name].append((plot, tmp_path / f"{plot}-{name}.safetensors"))
        x.append(old["heads"][1, 0] + old["heads"][0, 2])
        y.append(0.5 * old["heads"][1, 0] + old["heads"][0, 2])
    found = still_carried(units, files["before"], files["after"][::-1], kind="head")
    assert seen(found)[0] == pytest.approx(sum(y) / sum(x))
    assert seen(still_carried(units, files["before"], files["after"], kind="neuron")) == pytest.approx((0.25,) * 3)
    assert seen(still_carried(units, files["before"], files["before"], kind="head")) == pytest.approx((1, 1, 1))
    assert seen(effect_left(files["before"], files["after"])) == pytest.approx((0.75,) * 3)
