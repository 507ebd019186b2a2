"""Figures of the loop: `make bench-loop`. Resumable: a finished real-model run is kept in build/bench-loop."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import ROOT, Row, at_most, finish, median_at_most

WORK = ROOT / "build" / "bench-loop"
MODEL = "local/smollm2-135m"
RUNS = 3


def truing(*args: str, env: dict[str, str] | None = None) -> tuple[str, float, float]:
    """Standard output, wall seconds and CPU seconds of one command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "truing", *args], stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, **(env or {})})  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def real_loop() -> tuple[dict[str, Any], float]:
    """The demo on a fresh store, once; its result and wall time are kept beside the sources they were measured with."""
    kept, store = WORK / "loop.json", WORK / "store"
    stamp = subprocess.run(
        ["git", "rev-parse", "HEAD:src"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if kept.exists():
        said = json.loads(kept.read_text())
        if said["sources"] == stamp:
            return said["result"], said["wall"]
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    out, wall, _ = truing("loop", MODEL, "--store", str(store), "--json")
    result = json.loads(out)
    kept.write_text(json.dumps({"sources": stamp, "result": result, "wall": wall}))
    return result, wall


def start_up() -> list[Row]:
    """Help, conversion, later loads."""
    helps = [truing("--help")[2] for _ in range(5)]
    first, again = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as cache:
            for seconds in (first, again):
                said = truing("target", "show", MODEL, "--json", env={"TRUING_CACHE": cache})[0]
                seconds.append(json.loads(said)["seconds"])
    return [
        median_at_most("truing --help, CPU", helps, 0.4, "s"),
        median_at_most("bundled model, first use, imports in", first, 20, "s"),
        median_at_most("bundled model, later use, imports in", again, 8, "s"),
        median_at_most("bundled model, later use after imports", [later_use() for _ in range(RUNS)], 2, "s"),
    ]


def later_use() -> float:
    """Seconds to load the cached model in a process that has its imports behind it."""
    code = (
        "import time, torch, transformers, transformers.models.llama.modeling_llama\n"
        "from truing.targets import resolve\n"
        "resolve('local/tiny')\n"
        "t = time.perf_counter(); resolve('local/smollm2-135m'); print(time.perf_counter() - t)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def tiny() -> list[Row]:
    """The whole loop on the tiny model."""
    walls = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            walls.append(truing("loop", "local/tiny", "--store", f"{folder}/store", "--json")[1])
    return [median_at_most("loop on local/tiny, wall", walls, 20, "s")]


def quantity(name: str, q: dict[str, Any], *, bar: str | None = None, holds: bool | None = None) -> Row:
    """A row from an estimate."""
    if "reason" in q:
        return Row(f"{name}: {q['reason']}", None, "not measured", bar=bar, holds=False if bar else None)
    return Row(name, q["value"], q["unit"], q["low"], q["high"], bar=bar, holds=holds)


def demo() -> list[Row]:
    """Time, memory and findings of the demo."""
    result, wall = real_loop()
    _, cached, _ = truing("loop", MODEL, "--store", str(WORK / "store"), "--json")
    rows = [
        at_most("make demo after set-up, wall", wall, 600, "s"),
        at_most("make demo, peak RSS", result["peak_rss_mb"] / 1024, 6, "GiB"),
        at_most("make demo again, all cached", cached, 15, "s"),
        at_most("closure error of the trace", result["graph"]["closure_error"], 1e-4, "relative"),
    ]
    for claim in result["claims"]:
        label = f"{claim['family']} as {claim['outcome']} ({claim['verdict']})"
        rows += [quantity(f"{label}: naive", claim["naive"]), quantity(f"{label}: beyond control", claim["specific"])]
    for mediated in result["graph"]["mediated"]:
        what = f"{mediated['k']} {mediated['kind']}s by {mediated['choice']}"
        rows.append(quantity(what, mediated["share"]))
        if mediated.get("restored"):
            rows.append(quantity(f"{what}, restored", mediated["restored"]))
    for name, q in result["runout"].items():
        rows.append(quantity(f"runout, {name}", q, bar="< 0", holds="high" in q and q["high"] < 0))
    for name, q in (*result["retention"].items(), *result["relearning"].items()):
        cost = name == "bits per byte, after - before"
        rows.append(quantity(name, q, bar="<= 0.02" if cost else None, holds=q["high"] <= 0.02 if cost else None))
    rows.append(Row(f"gate: {result['gate']['verdict']}", None, ""))
    return rows


if __name__ == "__main__":
    finish("loop", [*start_up(), *tiny(), *demo()])
