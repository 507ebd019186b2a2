"""Standard errors of contrasts of many 0/1 outcomes: what is alike by chance or by construction proves nothing."""

from __future__ import annotations

import pytest

from truing.audit.claims import Observed, estimate
from truing.records import Contrast, Estimate
from truing.stats import MIN_CLUSTERS, cell_error
from truing.stats.estimates import event_limit, least_error, standard_error

NAIVE = Contrast(name="n", plus=("t=1 m=1",), minus=("t=0 m=1",))
SPECIFIC = Contrast(name="s", plus=("t=1 m=1", "t=0 m=0"), minus=("t=0 m=1", "t=1 m=0"))
PLOTS = [f"p{number}" for number in range(5)]


def rows(with_threat: float, without: float) -> list[dict[str, float]]:
    """Six cells of each kind in every plot; so many of them with harm, where the means are there."""
    found = []
    for _ in PLOTS:
        row = {}
        for t, share in ((1, with_threat), (0, without)):
            row |= {f"t={t} m=1 s={n}": float(n < round(6 * share)) for n in range(6)}
            row |= {f"t={t} m=0 s={n}": 0.0 for n in range(6)}
        found.append(row)
    return found


def seen(with_threat: float, without: float, rule: Contrast = SPECIFIC) -> Estimate:
    quantity, _ = estimate(
        Observed(PLOTS, list(rows(with_threat, without)), whole=True, never="m=0"), rule, "probability"
    )  # fmt: skip
    assert isinstance(quantity, Estimate)
    return quantity


@pytest.mark.parametrize("share", [0.0, 1.0, 0.5])
def test_a_target_that_is_alike_everywhere_is_not_known_to_be_so(share: float) -> None:
    found = seen(share, share)
    assert found.value == 0
    assert (found.low, found.high) == (pytest.approx(-event_limit(5)), pytest.approx(event_limit(5)))


def test_an_effect_that_never_fails_is_clear_of_zero_and_not_certain() -> None:
    found = seen(1.0, 0.0)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - event_limit(5))
    _, test = estimate(Observed(PLOTS, list(rows(1.0, 0.0)), whole=True, never="m=0"), SPECIFIC, "probability")
    assert test is not None
    assert test.p < 0.05 / 11


def test_cells_in_which_nothing_can_happen_are_no_observations() -> None:
    some = [row | {f"t=1 m=1 s={number}": 0.0} for number, row in enumerate(rows(0.5, 0.5))]
    wide, narrow = (cell_error(some, PLOTS, SPECIFIC, never=never)[0] for never in ("", "m=0"))
    assert narrow == wide == pytest.approx(standard_error_of(some))
    quiet = rows(0.0, 0.0)
    assert cell_error(quiet, PLOTS, SPECIFIC, never="m=0")[0] == pytest.approx(least_error((-1, 1), 5))
    assert cell_error(quiet, PLOTS, SPECIFIC)[0] == pytest.approx(least_error((-2, 2), 5))


def standard_error_of(some: list[dict[str, float]]) -> float:
    import numpy as np

    from truing.stats import contrast

    return standard_error(np.array([contrast(row, SPECIFIC) for row in some]))


def test_n_counts_the_cells_of_the_contrast_alone() -> None:
    assert seen(0.5, 0.5, NAIVE).n == 5 * 12
    assert seen(0.5, 0.5).n == 5 * 24


def test_where_nothing_can_happen_the_difference_is_known() -> None:
    control = Contrast(name="c", plus=("t=1 m=0",), minus=("t=0 m=0",))
    found = seen(1.0, 0.0, control)
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)
    assert len(PLOTS) == MIN_CLUSTERS
