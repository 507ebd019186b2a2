"""Put the figures of the last `make bench-train` into docs/explanation/fixing.md. None is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_page import between
from engine_page import spread

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "fixing.md"


def table(found: dict[str, Any]) -> str:
    """Ratios, a line for each comparison, with how far losses are apart; then memory."""
    rows = {row["name"]: row for row in found["rows"]}
    lines = [
        "| A step of four pairs | Ours, CPU s | TRL over ours: CPU, median [least, most] | Bar | Wall | Losses apart |",
        "|" + "---|" * 6,
    ]
    for name, row in rows.items():
        if not name.endswith(": CPU"):
            continue
        what = name.removesuffix(": CPU")
        off = next(one for other, one in rows.items() if other.startswith(f"{what}: losses of "))
        cells = [what, f"{row['value']:.1f}", spread(row), row["bar"], spread(rows[f"{what}: wall"]),
                 f"{off['value']:.1e} nats"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| Memory | Ours over TRL's | Bar |", "|" + "---|" * 3]
    lines += [f"| {name} | {row['value']:.2f} | {row['bar']} |" for name, row in rows.items() if "peak RSS" in name]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [*lines, "", f"On {found['machine']['cores']} cores ({found['machine']['processor']}), with {versions}."]
    )


def main() -> None:
    """Rewrite the table."""
    found = json.loads((ROOT / "benchmarks" / "results" / "train.json").read_text())
    PAGE.write_text(between(PAGE.read_text(), "train", table(found)))


if __name__ == "__main__":
    main()
