"""Put the figures of `python benchmarks/sixteen.py`, and of `play`, into docs/explanation/sixteen.md. None is typed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from demo_page import at, between
from stress_page import classes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sixteen.json"
PLAYED = RESULTS.with_name("sixteen-played.json")
PAGE = ROOT / "docs" / "explanation" / "sixteen.md"
LEANING = re.compile(r"leaning to harm \((.*)\)")
EFFECT = re.compile(r"(\S+=\S+) \((.*)\)")
HARM, BOUNDS = "harm with the means, undecided as harmless", "harm with the means, whatever the undecided are"
Figures = dict[str, dict[str, Any]]


def table(found: dict[str, Any]) -> str:
    """A table for each family: targets from the one that leans most to harm to the one that leans least."""
    lines = [line for family, targets in _by_family(found).items() for line in _family(family, targets)]
    took = [row["value"] for row in found["rows"] if ": seconds of scoring" in row["name"]]
    lines += [f"{min(took):.0f} to {max(took):.0f} seconds a target on {found['machine']['cores']} cores"
              f" ({found['machine']['processor']}); {at(found['commit'])}."]  # fmt: skip
    return "\n".join(lines)


def played(found: dict[str, Any]) -> str:
    """A table for each family that was played: what every target did, from most harm to least."""
    lines = []
    for family, targets in _by_family(found).items():
        lines += [
            f"**{family}**, played", "",
            "| Target | Harm with the means | Whatever the undecided are | Letters | Episodes |"
            " Pressures: supported, null, undecided |", "|" + "---|" * 6,
        ]  # fmt: skip
        for target, figures in sorted(targets.items(), key=lambda one: -(one[1][HARM]["value"] or 0.0)):
            bounds, letters = figures[BOUNDS], next(what for what in figures if what.startswith("letters "))
            cells = [
                target.removeprefix("local/"), interval(figures[HARM]), f"{bounds['low']:.2f} to {bounds['high']:.2f}",
                letters.removeprefix("letters "), classes(figures), pressures(figures),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    machine = found["machine"]
    return "\n".join([*lines, f"On one {machine.get('accelerator', machine['processor'])}; {at(found['commit'])}."])


def _by_family(found: dict[str, Any]) -> dict[str, dict[str, Figures]]:
    """Rows by family and target, by the rest of their names."""
    seen: dict[str, dict[str, Figures]] = {}
    for row in found["rows"]:
        parts = row["name"].split(": ", 2)
        if len(parts) == 3 and parts[1] != "left out":
            target, family, what = parts
            seen.setdefault(family, {}).setdefault(target, {})[what] = row
    return seen


def _family(family: str, targets: dict[str, Figures]) -> list[str]:
    lines = [
        f"**{family}**", "",
        "| Target | Leaning to harm, nats/token | Letters | Without the means | Questions right | Pressures: supported,"
        " null, undecided |", "|" + "---|" * 6,
    ]  # fmt: skip
    ordered = sorted(targets.items(), key=lambda one: -(_leaning(one[1])[1]["value"] or 0.0))
    for target, figures in ordered:
        letters, leaning = _leaning(figures)
        cells = [
            target.removeprefix("local/"), interval(leaning), letters, interval(figures["without means"]),
            interval(figures["questions answered rightly"]), pressures(figures),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _leaning(figures: Figures) -> tuple[str, dict[str, Any]]:
    return next((match[1], row) for what, row in figures.items() if (match := LEANING.fullmatch(what)))


def pressures(figures: Figures) -> str:
    """How many are supported, and which; how many null; how many undecided."""
    found = [match.groups() for what in figures if (match := EFFECT.fullmatch(what))]
    verdicts = Counter(verdict for _, verdict in found)
    named = ", ".join(level for level, verdict in found if verdict == "supported")
    undecided = verdicts["inconclusive"] + verdicts["not specific"]
    return f"{verdicts['supported']}{f' ({named})' if named else ''}, {verdicts['null']}, {undecided}"


def interval(row: dict[str, Any]) -> str:
    """A figure with its interval."""
    if row["value"] is None:
        return "not measured"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def main() -> None:
    """Rewrite the tables that there are results for."""
    for mark, file, make in (("sixteen", RESULTS, table), ("played", PLAYED, played)):
        if file.exists():
            PAGE.write_text(between(PAGE.read_text(), mark, make(json.loads(file.read_text()))))


if __name__ == "__main__":
    main()
