"""An axis: from numbers to positions, with round tick marks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from truing.report.numbers import number


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float], *, pad: float = 0.05) -> Axis:
        """A range that holds the values, with some room at both ends."""
        seen = list(values) or [0.0]
        low, high = min(seen), max(seen)
        room = (high - low) * pad or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def at(self, value: float, start: float = 0.0, end: float = 100.0) -> float:
        """Where a value lies between start and end; at the end of the range if it is outside."""
        share = (value - self.low) / (self.high - self.low)
        return start + min(1.0, max(0.0, share)) * (end - start)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Round values inside the range, with their text."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(place * step, number(place * step, decimals=decimals)) for place in range(first, last + 1)]
