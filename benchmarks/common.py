"""What every benchmark shares: rows with bars, a table, a results file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure against its bar. `holds` is None for a figure that is reported without a bar."""

    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    peer: str | None = None
    ratio: dict[str, float] | None = None
    floor: float | None = None
    bar: str | None = None
    holds: bool | None = None


def at_most(name: str, value: float, bar: float, unit: str, **more: Any) -> Row:
    """A figure that must not exceed its bar."""
    return Row(name, value, unit, bar=f"<= {bar:g}", holds=value <= bar, **more)


def median_at_most(name: str, values: Sequence[float], bar: float, unit: str) -> Row:
    """The median of several runs, with the least and the most of them, that must not exceed its bar."""
    return at_most(f"{name} (median of {len(values)})", median(values), bar, unit, low=min(values), high=max(values))


def measured(name: str, quantity: Mapping[str, Any]) -> Row:
    """A quantity of a record, as plain data; the reason in place of the unit where nothing was measured."""
    if (value := quantity.get("value")) is None:
        return Row(name, None, f"not measured: {quantity['reason']}")
    return Row(name, value, quantity["unit"], quantity["low"], quantity["high"])


def episodes(name: str, standing: Mapping[str, Any]) -> list[Row]:
    """How many episodes have each class, and harm with what undecided ones leave open, of a standing as plain data."""
    many = sum(count for _, count in standing["classes"])
    low, high = standing["worst_case"] or (None, None)
    return [
        *(Row(f"{name}: {ending}", float(count), f"of {many} episodes") for ending, count in standing["classes"]),
        measured(f"{name}: harm with the means, undecided as harmless", standing["harm"]),
        Row(f"{name}: harm with the means, whatever the undecided are", None, "probability", low, high),
    ]


def finish(name: str, rows: list[Row], packages: Sequence[str] = ()) -> None:
    """Print the table, write the results file, exit with 1 if a bar was missed."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.4g}"
        interval = f"[{row.low:.4g}, {row.high:.4g}]" if row.low is not None and row.high is not None else ""
        holds = {True: "holds", False: "MISSED", None: ""}[row.holds]
        if row.ratio:
            interval += " ratio {median:.2f} [{min:.2f}, {max:.2f}] to ".format(**row.ratio) + str(row.peer)
        print(f"{row.name:{width}}  {value:>10} {interval:22} {row.unit:12} {row.bar or '':10} {holds}")
    packages = ("truing", "torch", "transformers", "peft", "numpy", "pydantic", *packages)
    body = {
        "machine": machine(),
        "versions": {package: metadata.version(package) for package in packages}
        | {"python": platform.python_version()},
        "commit": commit(),
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")
    sys.exit(int(any(row.holds is False for row in rows)))


def machine() -> dict[str, Any]:
    """Cores, memory and processor, so that figures can be read."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"processor": model, "cores": os.cpu_count(), "memory_gib": round(memory), "system": platform.system()}
    torch = sys.modules.get("torch")  # where it was not needed, no accelerator was used
    return found | ({"accelerator": torch.cuda.get_device_name()} if torch and torch.cuda.is_available() else {})


def commit() -> str:
    """The commit that was measured, marked where files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    # A result that was written just now changes no result.
    changed = git("status", "--porcelain", "--", "src", "benchmarks", ":(exclude)benchmarks/results")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
