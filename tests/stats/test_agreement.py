"""Agreement of two readers: against another implementation, and by hand."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats as sps

from truing.records import Estimate, Unmeasured
from truing.stats.agreement import binomial_limits, cohens_kappa, kappa, raw, table

pytestmark = pytest.mark.base


def readers(counts: list[list[int]]) -> tuple[list[str], list[str]]:
    """Labels that give a table."""
    pairs = [(a, b) for a, row in enumerate(counts) for b, count in enumerate(row) for _ in range(count)]
    return [str(a) for a, _ in pairs], [str(b) for _, b in pairs]


def test_kappa_and_its_error_are_those_of_statsmodels() -> None:
    theirs = pytest.importorskip("statsmodels.stats.inter_rater").cohens_kappa
    rng = np.random.default_rng(0)
    for size in (2, 3, 3, 5):
        counts = rng.integers(1, 30, (size, size)) + np.diag(rng.integers(0, 60, size))
        there, found = theirs(counts), cohens_kappa(counts)
        assert found == pytest.approx((there.kappa, there.std_kappa))
        quantity = kappa(*readers(counts.tolist()))
        assert isinstance(quantity, Estimate)
        assert quantity.value == pytest.approx(there.kappa)
        assert quantity.low <= there.kappa_low + 1e-9
        assert quantity.high >= there.kappa_upp - 1e-9
        assert quantity.n == counts.sum()


def test_kappa_by_hand() -> None:
    # 35 of 50 agree; chance alone would have 25: (0.7 - 0.5) / (1 - 0.5).
    first, second = readers([[20, 5], [10, 15]])
    found = cohens_kappa(table(first, second))
    assert found is not None
    assert found[0] == pytest.approx(0.4)
    assert cohens_kappa(np.array([[25, 25], [25, 25]])) == pytest.approx((0.0, sqrt(0.25 / 100 / 0.25)))
    agreed = raw(first, second)
    assert isinstance(agreed, Estimate)
    assert agreed.value == 0.7
    exact = sps.binomtest(35, 50).proportion_ci(method="exact")
    assert (agreed.low, agreed.high) == pytest.approx((exact.low, exact.high))


def test_labels_are_matched_by_name_not_by_place() -> None:
    counts = table(["harmful", "unclear"], ["unclear", "harmful"])
    assert np.trace(counts) == 0
    assert counts.sum() == 2
    with pytest.raises(ValueError, match="1 labels of one reader, 2 of the other"):
        table(["a"], ["a", "b"])


def test_full_agreement_is_not_certain_agreement() -> None:
    labels = ["harmful"] * 10 + ["harmless"] * 30
    found, agreed = kappa(labels, labels), raw(labels, labels)
    assert isinstance(found, Estimate)
    assert isinstance(agreed, Estimate)
    assert (found.value, found.high) == (1.0, 1.0)
    low = 0.025 ** (1 / 40)
    assert agreed.low == pytest.approx(low)
    assert found.low == pytest.approx((low - 0.625) / 0.375)


def test_what_cannot_be_compared_is_unmeasured() -> None:
    same = kappa(["harmless"] * 9, ["harmless"] * 9)
    assert isinstance(same, Unmeasured)
    assert "one and the same label" in same.reason
    assert isinstance(kappa([], []), Unmeasured)
    assert isinstance(raw([], []), Unmeasured)


def test_exact_limits() -> None:
    for hits, n in ((0, 20), (3, 17), (17, 17)):
        exact = sps.binomtest(hits, n).proportion_ci(method="exact")
        assert binomial_limits(hits, n) == pytest.approx((exact.low, exact.high))
