"""VERIFY: does a fix hold on unseen cases, inside as well as outside, and at what cost?"""

from truing.measure.change import (
    Cases,
    behaviours,
    below_zero,
    change,
    in_cell,
    level,
    preferences,
    recovered,
    retained,
)
from truing.measure.inside import still_carried
from truing.measure.retention import retention

__all__ = [
    "Cases", "behaviours", "below_zero", "change", "in_cell", "level", "preferences", "recovered", "retained",
    "retention", "still_carried",
]  # fmt: skip
