"""Numbers as Truing gives them: never bare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from truing.records.base import Value


class Estimate(Value):
    """A number with its interval, n, clusters, unit and estimator. There is no constructor that omits them."""

    value: float
    low: float
    high: float
    level: float
    """Coverage of the interval, 0 to 1."""
    n: int
    """Observations."""
    clusters: int
    """Independent units (plots, topics, passages) that the interval is taken over."""
    unit: str
    estimator: str

    @model_validator(mode="after")
    def _ordered(self) -> Estimate:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"interval [{self.low}, {self.high}] does not hold its value {self.value}")
        return self

    def __str__(self) -> str:
        return (
            f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] {self.unit}"
            f" ({self.level:.0%}, n={self.n}, clusters={self.clusters})"
        )


class Unmeasured(Value):
    """What was not measured, and why. Never 0, never absent."""

    reason: str

    def __str__(self) -> str:
        return f"not measured: {self.reason}"


Quantity = Estimate | Unmeasured


class Blob(Value):
    """Names a content-addressed file of the store."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    media: str
    """What the bytes are: "safetensors", "text/html", ..."""


class Named(Value):
    """A quantity with its name, as lists of them stand in records."""

    name: str
    quantity: Quantity
    note: str = ""

    def row(self) -> dict[str, Any]:
        """Flat form, for tables and JSON."""
        return {"name": self.name, "note": self.note, **self.quantity.model_dump()}


def blobs_in(value: object) -> Iterator[Blob]:
    """Every Blob inside a record or a part of it, in the order of its fields; repeats included."""
    if isinstance(value, Blob):
        yield value
    elif isinstance(value, Value):
        for name in type(value).model_fields:
            yield from blobs_in(getattr(value, name))
    elif isinstance(value, tuple):
        for part in value:
            yield from blobs_in(part)
