"""Put the figures of the last `make bench-train`, and of train.py on cuda, into docs/explanation/fixing.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_page import at, between
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
    return "\n".join(
        [*lines, "", f"On {found['machine']['cores']} cores ({found['machine']['processor']}), {_with(found)}."]
    )


def accelerated(found: dict[str, Any]) -> str:
    """Tokens per second and peak memory, a line for each work."""
    rows = {row["name"]: row for row in found["rows"]}
    lines = [
        "| 1.2 billion random weights, bf16 | Ours, tokens/s | Over TRL's, median [least, most] | Peak memory, GiB |",
        "|" + "---|" * 4,
    ]
    for name, row in rows.items():
        if not row["ratio"]:
            continue
        peak, one = next((other, one) for other, one in rows.items() if other.startswith(f"{name}: peak memory"))
        theirs = peak.rpartition(" ")[2]
        lines.append(f"| {name} | {row['value']:,.0f} | {spread(row)} | {one['value']:.2f}, TRL's {theirs} |")
    return "\n".join([*lines, "", f"On one {found['machine']['accelerator']}, {_with(found)}."])


def _with(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"with {versions}; {at(found['commit'])}"


def main() -> None:
    """Rewrite the tables."""
    page = PAGE.read_text()
    for part, make in (("train", table), ("train-cuda", accelerated)):
        page = between(page, part, make(json.loads((ROOT / "benchmarks" / "results" / f"{part}.json").read_text())))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
