"""Plans: which cells of a plot are run, and which interactions are declared before they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from truing.audit.company.agents import MEANS
from truing.audit.company.interactions import Interaction
from truing.audit.company.plot import shared
from truing.errors import UsageError
from truing.stats.designs import Runs, array, at_random, crossed, fraction, full

Shape = Literal["array", "crossed", "fraction", "random", "full"]
SURFACES = 3
"""Surfaces of a plot that one design uses; which ones follows from the seed."""
SURFACE = "surface"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run of every plot."""

    shape: Shape = "crossed"
    runs: int = 36
    seed: int = 0
    interactions: tuple[Interaction, ...] = ()
    """Tested beside the effect of every level; declared, they are part of what is written down before anything runs."""


def factors() -> dict[str, int]:
    """The number of levels of every factor, in the order of a run's columns; the surface is the last."""
    return {**{name: len(values) for name, values in shared().levels.items()}, SURFACE: SURFACES}


@cache
def runs_of(plan: Plan) -> Runs:
    """The runs of one plot: factors in the order of the shared levels, then the surface. UsageError for a bad plan."""
    names, levels = list(factors()), list(factors().values())
    try:
        match plan.shape:
            case "array":
                joint = [names.index("threat"), names.index(MEANS)]
                return array(levels, plan.runs, joint=joint, seed=0)
            case "crossed":
                return crossed(levels, plan.runs, names.index(MEANS), seed=0)
            case "fraction":
                return fraction(levels, plan.runs)
            case "random":
                return at_random(levels, plan.runs, seed=0)
            case "full":
                return full(levels)
    except ValueError as error:
        raise UsageError(
            f"no design of {plan.runs} runs: {error}. Arrays take 36 or 72, crossed ones 36, 72 or 144, fractions 72,"
            " 144 or 288"
        ) from error
