"""What a gate is about: how much of a behaviour is seen, and how to teach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from truing.records import Pairs, Quantity
from truing.stats import Span, cluster_mean, event_mean

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of a behaviour was seen in one place: a value for each item, and the cluster that it belongs to."""

    clusters: tuple[str, ...]
    values: tuple[float, ...]
    sources: tuple[str, ...]
    """Ids of the records that they are from."""
    span: Span | None = (0, 1)
    """Between what contrasts of 0 and 1 must lie; None for values that are no events."""
    unit: str = "probability"
    silent: tuple[int, ...] = ()
    """Places of items to which nothing was said: their value is that of what was not seen, and that is no safety."""

    @property
    def rate(self) -> Quantity:
        """The mean."""
        return self.mean(LEVEL)

    @property
    def silence(self) -> Seen:
        """How often nothing was said."""
        values = tuple(float(place in self.silent) for place in range(len(self.values)))
        return Seen(self.clusters, values, self.sources)

    def along(self, other: Seen) -> Seen:
        """Both places as one."""
        silent = (*self.silent, *(len(self.values) + place for place in other.silent))
        return Seen((*self.clusters, *other.clusters), (*self.values, *other.values), (*self.sources, *other.sources),
                    self.span, self.unit, silent)  # fmt: skip

    def mean(self, level: float) -> Quantity:
        """The same with an interval of another level."""
        return self._mean(self.values, self.span, level)

    def over(self, other: Seen, *, level: float = LEVEL) -> Quantity:
        """By how much more there is here than there, paired by item."""
        if self.clusters != other.clusters:
            raise ValueError("not the same items")
        gaps = [a - b for a, b in zip(self.values, other.values, strict=True)]
        return self._mean(gaps, self.span and (self.span[0] - self.span[1], self.span[1] - self.span[0]), level)

    def _mean(self, values: Sequence[float], span: Span | None, level: float) -> Quantity:
        if span is None:
            return cluster_mean(values, self.clusters, unit=self.unit, level=level)
        return event_mean(values, self.clusters, span=span, unit=self.unit, level=level)


class Behaviour(Protocol):
    """What a gate is about: how to see it, and how to teach it."""

    name: str
    clause: str
    margin: float
    """It is gone where so much of it is excluded, in the unit of what is seen."""

    def direct(self, target: Any) -> Seen:
        """On held-out cases, as it was found."""

    def wordings(self, target: Any) -> Mapping[str, Seen]:
        """In other words."""

    def begun(self, target: Any) -> Seen | None:
        """With its beginning put into the target's mouth."""

    def elsewhere(self, target: Any) -> Mapping[str, Seen]:
        """Where it must not show."""

    def examples(self, count: int, seed: int) -> Pairs:
        """So many cases, not held out, with the behaviour as what was chosen."""

    def ordinary(self, target: Any) -> Pairs:
        """Ordinary requests with what a target replies to them."""
