"""How far the wheel is turned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a loop, all defaulted."""

    families: tuple[str, ...] = ("insider", "sycophancy", "anchoring")
    seed: int = 0
    """Seed of everything random: units chosen at random, pairs, batches, adapters."""
    per_topic: int = 6
    """Facts of each held-out topic that the fix is measured on."""
    per_guard: int = 3
    """Facts of each held-out topic on which statements must still be taken up."""
