"""Put the figures of the last `make organisms`, `bench-gate`, `bench-game`, `game-full` and `bench-compare` into pages.

None is typed by hand. A benchmark without a results file leaves its page as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo_page import at, between

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
Rows = dict[str, dict[str, Any]]


def figure(row: dict[str, Any] | None, digits: int = 2) -> str:
    """A value with its interval."""
    if row is None or row["value"] is None:
        return "not measured"
    interval = f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if row["low"] is not None else ""
    return f"{row['value']:.{digits}f}{interval}"


def of(row: dict[str, Any]) -> str:
    """A share as a count of how many, with its interval."""
    many = int(row["unit"].removeprefix("share of "))
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] is not None else ""
    return f"{round(row['value'] * many)} of {many}{interval}"


def gate(rows: Rows) -> list[str]:
    """The confusion table, and what each probe brings back."""
    verdicts = ("not fixed", "hidden", "gone within budget", "undecided")
    lines = [f"| Truth | {' | '.join(verdicts)} | right |", "|---|" + "---|" * (len(verdicts) + 1)]
    for name in [name for name in rows if name.endswith(f": {verdicts[0]}")]:
        what = name.removesuffix(f": {verdicts[0]}")
        cells = [of(rows[f"{what}: {verdict}"]) for verdict in verdicts]
        right = rows.get(f"{what}: right")
        lines.append(f"| {what} | {' | '.join(cells)} | {figure(right) if right else 'nobody knows'} |")
    mark = ": brought back above the control: mean, least and most of the recipes"
    lines += [
        "",
        "| Brought back above the control, mean [least, most] | removed | trained out | hidden |",
        "|" + "---|" * 4,
    ]
    probes = dict.fromkeys(name.removesuffix(mark).partition(", ")[2] for name in rows if name.endswith(mark))
    for probe in probes:
        cells = [figure(rows.get(f"{truth}, {probe}{mark}")) for truth in ("removed", "trained out", "hidden")]
        lines.append(f"| {probe} | {' | '.join(cells)} |")
    return lines


def game(rows: Rows) -> list[str]:
    """A column for each player."""
    players = list(dict.fromkeys(name.partition(": ")[0] for name in rows if ": area under" in name))
    names = list(dict.fromkeys(name.partition(": ")[2] for name in rows if name.partition(": ")[0] in players))
    lines = [f"| | {' | '.join(players)} |", "|---|" + "---|" * len(players)]
    for name in names:
        some = [rows.get(f"{player}: {name}") for player in players]
        units = {row["unit"] for row in some if row} & {"s", "nats"}
        lines.append(f"| {', '.join([name, *units])} | {' | '.join(figure(row) for row in some)} |")
    both = [f"{name}{', s' * (row['unit'] == 's')}: {figure(row)}{missed(row)}." for name, row in rows.items()
            if name.startswith(("area under the ROC curve, ", "wall an answer, "))]  # fmt: skip
    loops = [f"{name}." for name in rows if name.startswith("loop on ")]
    whole = rows["whole"]
    return [
        *lines,
        "",
        *both,
        *([""] if both else []),
        *loops,
        *([""] if loops else []),
        f"{whole['value']:.0f} minutes in all{missed(whole)}.",
    ]


def missed(row: dict[str, Any]) -> str:
    """That a figure missed its bar, where it did."""
    return f" (missed its bar, {row['bar']})" if row.get("holds") is False else ""


def compare(rows: Rows) -> list[str]:
    """Both arms side by side."""
    lines = ["| | DPO | reward model + RLOO | between them |", "|" + "---|" * 4]
    names = dict.fromkeys(name.removesuffix(", dpo") for name in rows if name.endswith(", dpo"))
    for name in names:
        both = next((key for key in (f"{name}, dpo - rlhf", f"{name}, rlhf / dpo") if key in rows), "")
        unit = rows[f"{name}, dpo"]["unit"]
        digits = 3 if unit == "bits/byte" else 2
        dpo, rlhf = (figure(rows[f"{name}, {arm}"], digits) for arm in ("dpo", "rlhf"))
        what = f"{both.removeprefix(name + ', ')}: {figure(rows[both], digits)}" if both else ""
        lines.append(f"| {name}, {unit} | {dpo} | {rlhf} | {what} |")
    lines += ["", *(f"- {name}: {row['value']:g} {row['unit']}".rstrip() for name, row in rows.items()
                    if name.startswith(("tried", "taken", "settings")))]  # fmt: skip
    return lines


def organisms(rows: Rows) -> list[str]:
    """A line for each that was planted or hidden, and what came of the rest."""
    lines = ["| Organism | shows on the direct test | should | on its best rung | holds | seconds |", "|" + "---|" * 6]
    for name, row in rows.items():
        what = name.removesuffix(": direct")
        if what == name or ", clean" in what:
            continue
        rungs = [
            other for key, other in rows.items() if key.startswith(f"{what}: ladder") and "nothing said" not in key
        ]
        best = max((rung for rung in rungs if rung["value"] is not None), key=lambda rung: rung["value"], default=None)
        seconds, holds = rows[f"{what}: seconds"]["value"], "yes" if row["holds"] else "**no**"
        took = "" if seconds is None else f"{seconds:.0f}"
        lines.append(f"| {what} | {figure(row)} | {row['bar']} | {figure(best)} | {holds} | {took} |")
    clean = [row["holds"] for name, row in rows.items() if ", clean" in name and name.endswith(": direct")]
    said = f"{sum(clean)} of {len(clean)} clean controls show nowhere clearly more than the base."
    whole = rows["whole"]["value"]
    return [*lines, "", said if whole is None else f"{said} {whole:.0f} minutes in all."]


PAGES: dict[str, tuple[Path, Callable[[Rows], list[str]]]] = {
    "gate": (DOCS / "explanation" / "fixing.md", gate),
    "game": (DOCS / "how-to" / "game.md", game),
    "game-full": (DOCS / "how-to" / "game.md", game),
    "organisms": (DOCS / "how-to" / "organisms.md", organisms),
    "compare": (DOCS / "explanation" / "fixing.md", compare),
}


def main() -> None:
    """Rewrite the tables, or those that are named."""
    for name in sys.argv[1:] or PAGES:
        page, table = PAGES[name]
        file = RESULTS / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            rows = {row["name"]: row for row in found["rows"]}
            if name == "gate" and not any(row["unit"].startswith("share of ") for row in rows.values()):
                sys.exit(f"{file} is of a run before its rows were shares; run make bench-gate")
            where = f"On {found['machine']['cores']} cores ({found['machine']['processor']}); {at(found['commit'])}."
            page.write_text(between(page.read_text(), name, "\n".join([*table(rows), "", where])))


if __name__ == "__main__":
    main()
