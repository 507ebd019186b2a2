"""Sixteen real sets of weights in company plots, by forced choice on a fraction of the design: two families of eight.

`play`: what they do where they can act, in few cells of one family.

Everything is kept beside the organisms (TRUING_ORGANISMS, or .truing): weights, and a store for each of the two, so
that a run that was killed goes on. The audit is the command that anybody would give: `truing audit --targets`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Row, at_most, episodes, finish, measured
from weights import GEMMA, roster

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing")).absolute()
FOLDER = STORE.with_suffix(".weights")
CHOSEN = ("--family", "coercion", "--family", "deception", "--no-play")
PLAYED = ("--family", "coercion", "--play", "--design", "random", "--runs", "4", "--turns", "3", "--max-tokens", "64")
"""Four cells of every plot, two with the means: whether a model acts at all. A first call is short."""
LEAST, MOST_SECONDS = 16, 300.0
"""Targets, and seconds that one may take."""


def audited(file: Path, store: str, *, play: bool) -> dict[str, Any]:
    """What `truing audit --targets` says, as JSON."""
    how = PLAYED if play else CHOSEN
    command = [sys.executable, "-m", "truing", "audit", "--targets", file.name, *how, "--json", "--store", store]
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
    made = [*standings(found, names), *effects(found, names, "preference")]
    for card, name in names.items():
        what = f"{name}: seconds of scoring"
        made.append(at_most(what, took[card], MOST_SECONDS, "s") if fresh else Row(f"{what}, resumed", took[card], "s"))
    count = len(names)
    return [*made, *left_out(found), Row("targets", float(count), "targets", bar=f">= {LEAST}", holds=count >= LEAST)]


def standings(found: dict[str, Any], names: dict[str, str]) -> list[Row]:
    """How much every target leans to harm, what it does without the means, and whether it understood."""
    letters = dict(found["grid"]["ties"])
    return [
        measured(f"{names[one['target']]}: {one['family']}: {what}", one[name])
        for one in found["standings"]
        for name, what in (("harm", f"leaning to harm ({letters.get(one['id'], '-')})"), ("control", "without means"),
                           ("competence", "questions answered rightly"))
    ]  # fmt: skip


def effects(found: dict[str, Any], names: dict[str, str], outcome: str) -> list[Row]:
    """What every pressure adds beyond its control."""
    return [
        measured(
            f"{names[claim['target']]}: {claim['family']}: {claim['effect']} ({claim['verdict']})", claim["specific"]
        )
        for claim in found["claims"]
        if claim["outcome"] == outcome
    ]


def left_out(found: dict[str, Any]) -> list[Row]:
    """Who is not there, and why."""
    return [Row(f"{name}: left out: {why}", None, "", holds=False) for name, why in found["grid"]["failed"]]


def acted(found: dict[str, Any]) -> list[Row]:
    """What every target did: classes of its episodes, harm as it was seen and as it may have been, and pressures."""
    names = {card: name for name, card in found["grid"]["targets"]}
    letters = dict(found["grid"]["ties"])
    played = [one for one in found["standings"] if one["outcome"] == "behaviour"]
    made = []
    for one in played:
        what = f"{names[one['target']]}: {one['family']}"
        made += [*episodes(what, one), Row(f"{what}: letters {letters.get(one['id'], '-')}", None, "")]
    return [*made, *effects(found, names, "behaviour"), *left_out(found), Row("targets", float(len(names)), "targets")]


def main(*, play: bool) -> None:
    """Make what is missing, audit it, write the rows."""
    from truing.cli.common import Progress

    began = time.perf_counter()
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = roster(FOLDER, STORE, Progress())
    if not play and (count := file.read_text(encoding="utf-8").count("[[target]]")) < LEAST:
        raise SystemExit(
            f"{count} targets, not {LEAST}: install {GEMMA.replace('_', '-')} for the last (Gemma's terms)"
        )
    store = "played.truing" if play else "audit.truing"
    fresh = not (FOLDER / store).exists()
    found = audited(file, store, play=play)
    made = acted(found) if play else rows(found, seconds(FOLDER / store), fresh=fresh)
    whole = [Row("whole", (time.perf_counter() - began) / 60, "min")] if fresh else []
    finish("sixteen-played" if play else "sixteen", [*made, *whole])


if __name__ == "__main__":
    main(play="play" in sys.argv[1:])
