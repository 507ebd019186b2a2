"""VERIFY: does a fix hold on unseen cases, inside as well as outside, and at what cost?"""

from truing.measure.change import (
    Cases,
    behaviours,
    below_zero,
    change,
    level,
    preferences,
    retained,
)
from truing.measure.inside import effect_left, still_carried
from truing.measure.retention import passages, requests, retention

__all__ = [
    "Cases", "behaviours", "below_zero", "change", "effect_left", "level", "passages", "preferences", "requests",
    "retained", "retention", "still_carried",
]  # fmt: skip
