"""Put the figures of the last `make bench-engine` into docs/explanation/engine.md. None is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_page import between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "engine.md"


def table(found: dict[str, Any]) -> str:
    """Ratios, floors and equality, a line for each peer; then what stands beside nobody."""
    rows = found["rows"]
    figures = {(row["name"], row["peer"]): row for row in rows}
    lines = [
        "| Work | Beside | CPU ratio, median [least, most] | Wall ratio | Bar for both | Over the floor | Equal |",
        "|" + "---|" * 7,
    ]
    for row in (row for row in rows if row["name"].endswith(": ours, cpu")):
        name, peer = row["name"].removesuffix(": ours, cpu"), row["peer"]
        wall = figures[f"{name}: ours, wall", peer]
        over, same = figures.get((f"{name}: over the floor", None)), figures.get((f"{name}: equal to {peer}", peer))
        cells = [
            f"{name}: {row['value']:.1f} s",
            peer,
            spread(row),
            spread(wall),
            (row["bar"] or "").removeprefix("ratio "),
            f"{over['value']:.2f}" if over else "",
            f"{same['value']:.2g} {same['unit']}" if same else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| Measured besides | | Bar |", "|" + "---|" * 3]
    lines += [
        f"| {row['name']} | {row['value']:,.4g} {row['unit']} | {row['bar'] or ''} |"
        for row in rows
        if row["ratio"] is None and row["peer"] is None and not row["name"].endswith(": over the floor")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [*lines, "", f"On {found['machine']['cores']} cores ({found['machine']['processor']}), with {versions}."]
    )


def spread(row: dict[str, Any]) -> str:
    """A ratio, its median and its ends."""
    return "{median:.2f} [{min:.2f}, {max:.2f}]".format(**row["ratio"])


def main() -> None:
    """Rewrite the table."""
    found = json.loads((ROOT / "benchmarks" / "results" / "engine.json").read_text())
    PAGE.write_text(between(PAGE.read_text(), "engine", table(found)))


if __name__ == "__main__":
    main()
