"""Lines of `truing trace` about lenses and probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truing.cli.common import number

if TYPE_CHECKING:
    from truing.records import Measurement

BAR = 16
"""Letters of the longest bar."""
HEADLINE = "layers together"
"""What a probe's verdict is on; every other area is shown below it."""


def lens_body(read: Measurement) -> dict[str, Any]:
    """The decision by layer as plain data."""
    return {"id": read.id, "note": read.note, "layers": [_value(read, n) for n in range(len(read.quantities))]}


def lens_lines(read: Measurement) -> list[str]:
    """A line for each layer, with a bar as long as the decision is large there, to the right where it is positive."""
    values = [_value(read, n) for n in range(len(read.quantities))]
    most = max(map(abs, values)) or 1.0
    return [
        f"lens      read after each layer, {read.note} (what can be read off, not what the model uses)",
        *(f"layer {n:3} {value:+9.4f} nats/token {_bar(value / most)}".rstrip() for n, value in enumerate(values)),
        f"lens      {read.id}",
    ]


def probe_lines(measured: Measurement) -> list[str]:
    """The headline first; below it what it has to be better than, and each layer."""
    body = measured.plain()["body"]
    areas = {row["name"]: row["quantity"] for row in body["quantities"]}
    layers = {name: found for name, found in areas.items() if name.startswith("layer ")}
    beside = {name: found for name, found in areas.items() if name not in layers and name != HEADLINE}
    return [
        body["note"],
        f"AUROC in plots left out: {number(areas[HEADLINE])}",
        *(f"beside  {name:42} {number(found)}" for name, found in beside.items()),
        *(f"alone   {name:42} {number(found)}" for name, found in layers.items()),
        f"measurement {measured.id}",
    ]


def _value(read: Measurement, place: int) -> float:
    found: float = read.quantities[place].quantity.model_dump()["value"]
    return found


def _bar(share: float) -> str:
    length = round(abs(share) * BAR)
    return f"{'-' * length:>{BAR}}|" if share < 0 else f"{'':{BAR}}|{'+' * length}"
