"""What tokens cost, by a dated table; what is not in it has no known price."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated

from pydantic import Field

from truing.records import Value
from truing.records.content import folder, read

MILLION = 1_000_000
FREE = frozenset({"local", "scripted"})
"""Kinds of targets that nobody bills."""
_SNAPSHOT = re.compile(r"[-@](\d{8}|\d{4}-\d{2}-\d{2}|latest)$")
Dollars = Annotated[float, Field(ge=0)]


class Price(Value):
    """US dollars for a million tokens, at the standard rate: no discount for batches or for what comes from a cache."""

    input: Dollars
    output: Dollars

    def of(self, read: int, wrote: int) -> float:
        """Dollars for so many tokens."""
        return (read * self.input + wrote * self.output) / MILLION


class Table(Value):
    """Prices as they stood on a day."""

    date: str
    sources: dict[str, str]
    """Where a provider publishes its prices."""
    models: dict[str, Price]
    """By Inspect's name of a model."""


@cache
def table() -> Table:
    """The table that ships."""
    return read(folder("truing.targets", "prices.yaml"), Table, schema="prices/1")


def price(name: str, given: Mapping[str, Price] | None = None) -> Price | None:
    """The price of a target: as given, free, or out of the table, a dated snapshot at its model's. None: unknown."""
    if given and name in given:
        return given[name]
    kind, _, model = name.partition("/")
    if kind in FREE:
        return Price(input=0, output=0)
    models = table().models
    return models.get(model) or models.get(_SNAPSHOT.sub("", model))
