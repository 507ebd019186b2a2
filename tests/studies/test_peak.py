"""The peak of what comes from now on, not of what was."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import pytest

from truing.studies.peak import forget_peak, peak_rss_mb


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone lets a peak be forgotten")
def test_a_peak_can_be_forgotten() -> None:
    size = 200 * 2**20
    block = mmap(-1, size)  # not from what the process has freed, and goes back to the system
    block.write(bytes(size))
    high = peak_rss_mb()
    assert high > 200
    block.close()
    forget_peak()
    assert peak_rss_mb() < high - 100
