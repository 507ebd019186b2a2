"""Where along the layers a case's decision forms: a curve, from the measurement beside the case."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from truing.records import BY_LAYER, CaseGraph, Estimate, Measurement
from truing.report.curves import Curve, curves
from truing.report.numbers import number
from truing.report.pool import Pool


@dataclass(frozen=True, slots=True)
class Forming:
    """A chart, what is said of it, and the same as a table."""

    plot: Markup
    said: str
    rows: tuple[tuple[int, str], ...]


def forming(case: CaseGraph, pool: Pool) -> Forming | None:
    """The curve of a case, or of the case that it was made of; None where no lens was put on either."""
    cases = {case.id, *(one.id for one in pool.some(CaseGraph, case.parents))}
    found = [
        one for one in pool.all(Measurement)
        if one.name == BY_LAYER and one.targets == (case.target,) and cases & set(one.parents)
    ]  # fmt: skip
    points = _points(found[0]) if found else {}
    if not points:
        return None
    plot = curves([Curve("decision", tuple(points.values()))], list(points), zero=True, step="layer")
    rows = tuple((layer, number(value, signed=True)) for layer, value in points.items())
    return Forming(plot, found[0].note, rows)


def _points(measurement: Measurement) -> dict[int, float]:
    """The decision by layer, in order."""
    found = {}
    for one in measurement.quantities:
        if isinstance(one.quantity, Estimate) and (match := re.fullmatch(r"layer (\d{1,5})", one.name)):
            found[int(match[1])] = one.quantity.value
    return dict(sorted(found.items()))
