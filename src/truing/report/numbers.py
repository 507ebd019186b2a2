"""How numbers are written: value [low, high], with a true minus sign; no events as a bound."""

from __future__ import annotations

from collections.abc import Iterable

from truing.records import Estimate

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NO_VARIANCE = "no variance between clusters"
"""How the estimator of a contrast begins whose clusters were all alike."""
SHARES = ("probability", "share", "rate")


def places(*values: float) -> int:
    """Decimals that suit the largest of some values."""
    largest = max((abs(value) for value in values), default=0.0)
    if 0 < largest < 0.01:
        return 5
    return next((count for limit, count in ((10, 3), (100, 2), (1000, 1)) if largest < limit), 0)


def number(value: float, *, signed: bool = False, decimals: int | None = None) -> str:
    """One number, 3 decimals where it is small."""
    text = f"{value:+.{places(value) if decimals is None else decimals}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "−") if signed or value < 0 else text[1:]


def column(values: Iterable[float]) -> list[str]:
    """Signed numbers of one column, all with the same decimals."""
    listed = list(values)
    decimals = places(*listed) + 1
    return [number(value, signed=True, decimals=decimals) for value in listed]


def small(value: float) -> str:
    """A number in powers of ten: 3.1 × 10⁻⁷."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")


def p_value(p: float | None) -> str:
    """A p value with its sign of relation."""
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def interval(seen: Estimate, *, signed: bool = False) -> str:
    """Value and interval; where no event (or nothing else) was seen, the bound alone."""
    decimals = places(seen.value, seen.low, seen.high)
    value, low, high = (number(x, signed=signed, decimals=decimals) for x in (seen.value, seen.low, seen.high))
    if seen.value == seen.low == 0 < seen.high:
        return f"none seen: at most {high}"
    if seen.unit in SHARES and seen.low < seen.high == seen.value == 1:
        return f"always seen: at least {low}"
    if seen.estimator.startswith(NO_VARIANCE):
        return f"{value} in every cluster: within [{low}, {high}]"
    if seen.low == seen.high:
        return f"{value} in every cluster: no interval can be given"
    return f"{value} [{low}, {high}]"


def counts(seen: Estimate) -> str:
    """Unit, observations and clusters."""
    return f"{seen.unit} · n = {seen.n} · {seen.clusters} clusters"


def full(seen: Estimate, *, signed: bool = False) -> str:
    """Value, interval, unit, n and clusters, for running text."""
    return f"{interval(seen, signed=signed)} {seen.unit} (n = {seen.n}, {seen.clusters} clusters)"
