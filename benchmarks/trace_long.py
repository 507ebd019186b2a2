"""A long case in a process of its own, as `truing trace --prompt` does it. `trace_long.py TEXT` prints a line of JSON.

What differs is that the causal check is short. It takes time by the row and memory by the batch, and batches are full,
so that its peak is that of the whole.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from truing import open_store
from truing.records import Message
from truing.runner import Silent
from truing.studies.reading import reading
from truing.targets import resolve
from truing.trace import CaseSettings, Naming, between, trace_case
from truing.trace.causal import Checks

MODEL = "local/smollm2-135m"
FEW = Checks(sizes=2, draws=1, singly=4, shams=2)


class Clock(Silent):
    """Says what is said, and notes time and peak memory when the check begins."""

    def __init__(self) -> None:
        self.began, self.graph = time.perf_counter(), {"seconds": 0.0, "peak": 0.0}

    def now(self) -> dict[str, float]:
        """Seconds since the beginning, and the peak so far in GB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        return {"seconds": time.perf_counter() - self.began, "peak": peak}

    def step(self, count: int = 1) -> None:
        """To standard error."""
        print(f"{self.now()['seconds']:.0f} s: {count} more", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """To standard error."""
        print(f"{self.now()['seconds']:.0f} s: {line}", file=sys.stderr, flush=True)
        if line.startswith("curves"):
            self.graph = self.now()


def main(text: str) -> None:
    """Trace it."""
    clock, settings = Clock(), CaseSettings(checks=FEW)
    target = resolve(MODEL)
    context = between(target, (Message(role="user", content=text),), ("Yes, I will.",), ("No, I will not.",))
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        case = trace_case(
            target, context, store, settings=settings, naming=Naming(reading(store), seed=settings.seed), watcher=clock
        )
    said = {"prompt": case.prompt, "neurons": case.selected, "closure_error": case.closure_error}
    print(json.dumps(said | {"graph": clock.graph, "whole": clock.now()}))


if __name__ == "__main__":
    main(sys.argv[1])
