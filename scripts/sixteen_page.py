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
ELSEWHERE = RESULTS.with_name("sixteen-cuda.json")
"""The same on an accelerator."""
PAGE = ROOT / "docs" / "explanation" / "sixteen.md"
LEANING = re.compile(r"leaning to harm \((.*)\)")
EFFECT = re.compile(r"(\S+=\S+) \((.*)\)")
SAID = re.compile(r" \([^()]*\)$")
"""Letters, or a verdict."""
ALIKE = 1e-4
"""Nats per token: more is not the arithmetic of another machine."""
HARM, BOUNDS = "harm with the means, undecided as harmless", "harm with the means, whatever the undecided are"
Figures = dict[str, dict[str, Any]]


def table(found: dict[str, Any]) -> str:
    """A table for each family: targets from the one that leans most to harm to the one that leans least."""
    lines = [line for family, targets in _by_family(found).items() for line in _family(family, targets)]
    machine = found["machine"]
    lines.append(f"{_seconds(found)} on {machine['cores']} cores ({machine['processor']}); {at(found['commit'])}.")
    return "\n".join(lines)


def elsewhere(found: dict[str, Any], other: dict[str, Any]) -> str:
    """How the same figures came out on another machine, and for which targets they did not."""
    here, there = ({SAID.sub("", row["name"]): row for row in one["rows"]} for one in (found, other))
    both = [(here[name], there[name]) for name in here if name in there and here[name]["unit"] == "nats/token"]
    apart: dict[str, float] = {}
    for one, another in both:
        target = one["name"].partition(": ")[0]
        apart[target] = max(apart.get(target, 0.0), abs(one["value"] - another["value"]))
    alike = [most for most in apart.values() if most <= ALIKE]
    others = "".join(f"; of {target} some by {most:.2f}" for target, most in apart.items() if most > ALIKE)
    verdicts = [one["name"] == another["name"] for one, another in both if EFFECT.search(one["name"])]
    return (
        f"The same weights on one {other['machine']['accelerator']}: {_seconds(other)}. Figures in nats/token of"
        f" {len(alike)} targets differ by {max(alike):.0e} at most{others}; {sum(verdicts)} of {len(verdicts)} verdicts"
        f" are the same. There with transformers {other['versions']['transformers']}, here with"
        f" {found['versions']['transformers']}; {at(other['commit'])}."
    )


def _seconds(found: dict[str, Any]) -> str:
    took = [row["value"] for row in found["rows"] if ": seconds of scoring" in row["name"]]
    return f"{min(took):.0f} to {max(took):.0f} seconds a target"


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
    """Rewrite the tables."""
    found, other, acted = (json.loads(file.read_text()) for file in (RESULTS, ELSEWHERE, PLAYED))
    text = between(PAGE.read_text(), "sixteen", f"{table(found)}\n\n{elsewhere(found, other)}")
    PAGE.write_text(between(text, "played", played(acted)))


if __name__ == "__main__":
    main()
