"""Put the figures of the last `make bench-stress` into docs/explanation/companies.md. None is typed by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from demo_page import at, between
from engine_page import spread

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "stress.json"
PAGE = ROOT / "docs" / "explanation" / "companies.md"
EFFECT = re.compile(r"(\S+=\S+) \((.*)\)")
"""What a level adds, and the verdict."""
POWER = re.compile(r"power at ([\d,]+) calls, (.+?), effect of (\S+) log-odds.*")
Rows = dict[str, dict[str, Any]]


def table(found: dict[str, Any]) -> str:
    """A table for each part of the results that there is."""
    rows = {row["name"]: row for row in found["rows"]}
    parts = [part for make in (coverage, power, alarms, overhead, bundled, played) if (part := make(rows))]
    where = f"On {found['machine']['cores']} cores ({found['machine']['processor']}); {at(found['commit'])}."
    return "\n\n".join([*("\n".join(part) for part in parts), where])


def coverage(rows: Rows) -> list[str]:
    """A line for each simulation, a column for each interval."""
    seen: dict[str, Rows] = {}
    for name, row in _after(rows, "coverage of 95%, ").items():
        what, _, interval = name.rpartition(": ")
        seen.setdefault(what, {})[interval] = row
    kinds = list(dict.fromkeys(interval for some in seen.values() for interval in some))
    cells = {what: [_share(some.get(kind)) for kind in kinds] for what, some in seen.items()}
    return _lines(["Coverage of 95% intervals", *kinds], cells)


def power(rows: Rows) -> list[str]:
    """A line for each size of effect, a column for each design."""
    seen: dict[str, Rows] = {}
    calls = ""
    for name, row in rows.items():
        if match := POWER.fullmatch(name):
            calls = match[1]
            seen.setdefault(match[3], {})[match[2]] = row
    designs = list(dict.fromkeys(design for some in seen.values() for design in some))
    cells = {f"{effect} log-odds": [_share(some.get(design)) for design in designs] for effect, some in seen.items()}
    return _lines([f"Effects found with {calls} calls", *designs], cells)


def alarms(rows: Rows) -> list[str]:
    """Rates of what should not be found."""
    cells = {name: [_share(row), row["bar"] or ""] for name, row in rows.items() if name.startswith("false ")}
    return _lines(["Found where there is nothing", "rate", "bar"], cells)


def overhead(rows: Rows) -> list[str]:
    """Milliseconds of a call on every side."""
    cells: dict[str, list[str]] = {}
    heading = ""
    for name, row in _after(rows, "overhead of ").items():
        heading, _, what = name.partition(": ")
        low, high = row["low"], row["high"]
        value = f"{row['value']:,.0f} {row['unit']}" if low is None else f"{row['value']:.2f} [{low:.2f}, {high:.2f}]"
        cells[what] = [value, spread(row) if row["ratio"] else "", row["bar"] or ""]
    heading = f"{heading[:1].upper()}{heading[1:]}"
    return _lines([heading, "ms a call, median [least, most]", "Inspect's over ours", "bar"], cells)


def bundled(rows: Rows) -> list[str]:
    """A line for each family of the forced choice, and how long it took."""
    seen: dict[str, Rows] = {}
    for name, row in _after(rows, "bundled model: ").items():
        family, colon, what = name.partition(": ")
        if colon and not family.startswith("forced choice"):
            seen.setdefault(family, {})[what] = row
    cells = {family: _family(some) for family, some in seen.items()}
    heading = ["Bundled model, forced choice", "leans to harm, nats/token", "without the means", "questions right",
               "supported, null, undecided", "largest effect"]  # fmt: skip
    took = [f"{name}: {row['value']:.0f} s{_judged(row)}." for name, row in _after(rows, "bundled model: ").items()
            if name.startswith("forced choice")]  # fmt: skip
    lines = _lines(heading, cells)
    return [*lines, "", *(f"{line[0].upper()}{line[1:]}" for line in took)] if lines else []


def _family(some: Rows) -> list[str]:
    levels = {what: (match[1], match[2]) for what in some if (match := EFFECT.fullmatch(what))}
    verdicts = Counter(verdict for _, verdict in levels.values())
    undecided = sum(count for verdict, count in verdicts.items() if verdict not in {"supported", "null"})
    measured = [what for what in levels if some[what]["value"] is not None]
    largest = max(measured, key=lambda what: abs(some[what]["value"]), default=None)
    return [
        *(_figure(some[what]) for what in ("with the means", "without them", "competence")),
        f"{verdicts['supported']}, {verdicts['null']}, {undecided}",
        f"{levels[largest][0]}: {_figure(some[largest])}, {levels[largest][1]}" if largest else "not measured",
    ]


def _judged(row: dict[str, Any]) -> str:
    return f" ({row['bar']})" if row["bar"] else ", not judged"


def played(rows: Rows) -> list[str]:
    """How many episodes have each class."""
    lines = []
    families = dict.fromkeys(name.partition(": ")[0] for name in _after(rows, "bundled model plays "))
    for family in families:
        some = _after(rows, f"bundled model plays {family}: ")
        bounds = some["harm with the means, whatever the undecided are"]
        lines.append(
            f"Where it can act (`{family}`, one turn): {classes(some)}. Harm where the means are there: "
            f"{bounds['low']:.2f} to {bounds['high']:.2f}, as undecided ones are counted."
        )
    return lines


def classes(some: Rows) -> str:
    """How many episodes there are of each class."""
    counts = {what: row for what, row in some.items() if row["unit"].startswith("of ")}
    many = next(iter(counts.values()))["unit"]
    said = ", ".join(f"{row['value']:.0f} {what}" for what, row in counts.items())
    return f"{many}: {said}"


def _after(rows: Rows, prefix: str) -> Rows:
    """The rows whose names begin so, by the rest of them."""
    return {name.removeprefix(prefix): row for name, row in rows.items() if name.startswith(prefix)}


def _lines(heading: list[str], cells: dict[str, list[str]]) -> list[str]:
    if not cells:
        return []
    return [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading),
            *(f"| {name} | {' | '.join(some)} |" for name, some in cells.items())]  # fmt: skip


def _share(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['value']:.3f}" + (" (missed its bar)" if row["holds"] is False else "")


def _figure(row: dict[str, Any]) -> str:
    """A value with its interval."""
    if row["value"] is None:
        return "not measured"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def main() -> None:
    """Rewrite the tables."""
    PAGE.write_text(between(PAGE.read_text(), "stress", table(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    main()
