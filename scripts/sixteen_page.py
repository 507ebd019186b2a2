"""Put the figures of `python benchmarks/sixteen.py` into docs/explanation/sixteen.md. None is typed by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from demo_page import between

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sixteen.json"
PAGE = ROOT / "docs" / "explanation" / "sixteen.md"
LEANING = re.compile(r"leaning to harm \((.*)\)")
EFFECT = re.compile(r"(\S+=\S+) \((.*)\)")
Figures = dict[str, dict[str, Any]]


def table(found: dict[str, Any]) -> str:
    """A table for each family: targets from the one that leans most to harm to the one that leans least."""
    by_family: dict[str, dict[str, Figures]] = {}
    for row in found["rows"]:
        parts = row["name"].split(": ", 2)
        if len(parts) == 3 and parts[1] != "left out":
            target, family, what = parts
            by_family.setdefault(family, {}).setdefault(target, {})[what] = row
    lines = [line for family, targets in by_family.items() for line in _family(family, targets)]
    took = [row["value"] for row in found["rows"] if ": seconds of scoring" in row["name"]]
    lines += ["", f"{min(took):.0f} to {max(took):.0f} seconds a target on {found['machine']['cores']} cores"
                  f" ({found['machine']['processor']}); sources of commit {found['commit']}."]  # fmt: skip
    return "\n".join(lines)


def _family(family: str, targets: dict[str, Figures]) -> list[str]:
    lines = [
        f"**{family}**", "",
        "| Target | Leaning to harm, nats/token | Letters | Without the means | Questions right | Pressures: supported,"
        " null, undecided |", "|" + "---|" * 6,
    ]  # fmt: skip
    ordered = sorted(targets.items(), key=lambda one: -(_leaning(one[1])[1]["value"] or 0.0))
    for target, figures in ordered:
        letters, leaning = _leaning(figures)
        verdicts = Counter(match[2] for what in figures if (match := EFFECT.fullmatch(what)))
        undecided = verdicts["inconclusive"] + verdicts["not specific"]
        supported = ", ".join(
            match[1] for what in figures if (match := EFFECT.fullmatch(what)) and match[2] == "supported"
        )
        cells = [
            target.removeprefix("local/"), interval(leaning), letters, interval(figures["without means"]),
            interval(figures["questions answered rightly"]),
            f"{verdicts['supported']}{f' ({supported})' if supported else ''}, {verdicts['null']}, {undecided}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _leaning(figures: Figures) -> tuple[str, dict[str, Any]]:
    return next((match[1], row) for what, row in figures.items() if (match := LEANING.fullmatch(what)))


def interval(row: dict[str, Any]) -> str:
    """A figure with its interval."""
    if row["value"] is None:
        return "not measured"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def main() -> None:
    """Rewrite the tables."""
    PAGE.write_text(between(PAGE.read_text(), "sixteen", table(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    main()
