"""Sixteen real sets of weights in company plots, by forced choice on a fraction of the design: two families of eight.

Everything is kept beside the organisms (TRUING_ORGANISMS, or .truing): weights, and a store of the audit, so that a run
that was killed goes on. The audit is the command that anybody would give: `truing audit --targets`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Row, at_most, finish
from weights import GEMMA, roster

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing")).absolute()
FOLDER = STORE.with_suffix(".weights")
FAMILIES = ("coercion", "deception")
LEAST, MOST_SECONDS = 16, 300.0
"""Targets, and seconds that one may take."""


def audited(file: Path) -> dict[str, Any]:
    """What `truing audit --targets` says, as JSON."""
    families = [part for name in FAMILIES for part in ("--family", name)]
    command = [sys.executable, "-m", "truing", "audit", "--targets", file.name, *families, "--no-play", "--json",
               "--store", "audit.truing"]  # fmt: skip
    done = subprocess.run(command, cwd=file.parent, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:  # it said why
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds(store_path: Path) -> dict[str, float]:
    """What scoring took, by target, as the store has it."""
    from truing import open_store
    from truing.records import Scores

    took: dict[str, float] = {}
    with open_store(store_path, mode="read") as store:
        for entry in store.ls("scores"):
            one = store.get(entry.id)
            assert isinstance(one, Scores)
            took.setdefault(one.target, 0.0)
            if one.tokens:  # one unit's records have its seconds each, and its tokens once
                took[one.target] += entry.seconds or 0.0
    return took


def rows(found: dict[str, Any], took: dict[str, float], *, fresh: bool) -> list[Row]:
    """Every figure of the grid but slopes: what is made of one model is not as many observations.

    Seconds are held against their bar only where none of them is of an earlier run.
    """
    names = {card: name for name, card in found["grid"]["targets"]}
    letters = dict(found["grid"]["ties"])
    made = []
    for one in found["standings"]:
        what = f"{names[one['target']]}: {one['family']}"
        for name, label in (("harm", f"leaning to harm ({letters.get(one['id'], '-')})"), ("control", "without means"),
                            ("competence", "questions answered rightly")):  # fmt: skip
            made.append(_row(f"{what}: {label}", one[name]))
    for claim in found["claims"]:
        what = f"{names[claim['target']]}: {claim['family']}: {claim['effect']} ({claim['verdict']})"
        made.append(_row(what, claim["specific"]))
    for card, name in names.items():
        what = f"{name}: seconds of scoring"
        made.append(at_most(what, took[card], MOST_SECONDS, "s") if fresh else Row(f"{what}, resumed", took[card], "s"))
    made += [Row(f"{name}: left out: {why}", None, "", holds=False) for name, why in found["grid"]["failed"]]
    count = len(names)
    return [*made, Row("targets", float(count), "targets", bar=f">= {LEAST}", holds=count >= LEAST)]


def _row(name: str, one: dict[str, Any]) -> Row:
    return Row(name, one.get("value"), one.get("unit", "not measured"), one.get("low"), one.get("high"))


def main() -> None:
    """Make what is missing, audit it, write the rows."""
    from truing.cli.common import Progress

    began = time.perf_counter()
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = roster(FOLDER, STORE, Progress())
    if (count := file.read_text(encoding="utf-8").count("[[target]]")) < LEAST:
        raise SystemExit(
            f"{count} targets, not {LEAST}: install {GEMMA.replace('_', '-')} for the last (Gemma's terms)"
        )
    fresh = not (FOLDER / "audit.truing").exists()
    made = rows(audited(file), seconds(FOLDER / "audit.truing"), fresh=fresh)
    finish("sixteen", [*made, Row("whole", (time.perf_counter() - began) / 60, "min")] if fresh else made)


if __name__ == "__main__":
    main()
