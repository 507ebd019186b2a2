"""The largest resident size of this process."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_rss_mb() -> float:
    """Since the process began, or where Linux lets it be forgotten, since then."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii")):
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak() -> None:
    """Let the peak be that of what comes from now on, where that can be done (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
