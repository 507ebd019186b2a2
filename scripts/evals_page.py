"""Put the counts of the last `make evals` into docs/explanation/evals.md. None is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_page import between

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evals.json"
PAGE = ROOT / "docs" / "explanation" / "evals.md"


def counts(found: dict[str, int]) -> str:
    """For a cell of a table."""
    return ", ".join(f"{name}: {count}" for name, count in found.items()) or "none"


def table(found: dict[str, Any]) -> str:
    """A line for each run."""
    heads = ("Task", "Samples", "Scripted", "Replies of the model", "Distinct", "Tool calls", "Samples ended", "Scores")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for r in found["rows"]:
        missing = f", missing: {r['missing']}" if r["missing"] else ""
        lines.append(
            f"| `{r['task']}`{r['variant'] and ' ' + r['variant']} | {r['samples']} | {r['scripted']} |"
            f" {counts(r['replies'])}{missing} | {r['distinct']} | {r['calls']} | {counts(r['ended'])} |"
            f" {counts(r['scores'])} |"
        )
    named = ", ".join(f"{name} {found['versions'][name]}" for name in ("inspect-ai", "inspect-evals"))
    return "\n".join([*lines, "", f"With {named}."])


def main() -> None:
    """Rewrite the table."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), "evals", table(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
