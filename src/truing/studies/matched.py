"""Twins of company plots: a scene as its plan has it, and the same scene at another level of one factor."""

from __future__ import annotations

from collections.abc import Iterator

from truing.audit.company import Laid, cell, kinds, lay_out, scene, setting, shared
from truing.errors import DesignError, UsageError
from truing.records import Case, Claim, Design, Half, Surface
from truing.trace import Effect

STORY = "story"
"""What is told at every level, as a segment."""


def matched(family: str, cells: tuple[str, str], claim: Claim | None = None) -> Effect:
    """The effect of one setting against another in a family of company plots; of a claim, where it is about one.

    A plan crosses factors so that few runs tell their effects apart: hardly two of its scenes differ in one of them
    alone. Therefore every scene at the first setting is laid out a second time, changed to the other setting and in
    nothing else. Units are chosen on the develop half of the plots, and tested on the held-out half in its wordings.

    UsageError for settings that are none; DesignError for a family whose halves have too few plots.
    """
    _known(family)
    _check(*cells)
    halves: tuple[Half, ...] = ("develop", "held-out")
    choosing, testing = ([*_twins(_laid(family, half), *cells)] for half in halves)
    return Effect(claim, cells, choosing, testing)


def between(claim: Claim, design: Design) -> tuple[str, str]:
    """The settings whose difference a claim about company plots is about, with the means. UsageError for another."""
    if len(design.naive.plus) != 1 or len(design.naive.minus) != 1:
        raise UsageError(
            f"claim {claim.id[:12]} is about {claim.effect}, which is no difference of two cells; give a claim about"
            " one level of a factor (`truing store ls --kind claim`)."
        )
    return design.naive.plus[0], design.naive.minus[0]


def check_plots(claim: Claim, design: Design) -> None:
    """UsageError where the plots that ship are not those that a claim was made from: twins would be of others."""
    _known(claim.family)
    now = lay_out(claim.family, half=None if design.half == "both" else design.half)
    if design.rules not in {one.rules for one in now.designs}:
        raise UsageError(
            f"the plots of {claim.family}, or the rules that they are judged by, are not what they were when claim"
            f" {claim.id[:12]} was made (digest {str(design.rules)[:12]}). Audit the target anew."
        )


def _known(family: str) -> None:
    if family not in kinds():
        raise UsageError(f"no family of company plots is called {family!r}; there are {', '.join(kinds())}")


def _check(first: str, second: str) -> None:
    what = f"{first!r} against {second!r}"
    named = [[word.partition("=")[0] for word in one.split()] for one in (first, second)]
    if sorted(named[0]) != sorted(set(named[1])) or not named[0]:
        raise UsageError(f"{what}: name the same factors once in both, such as cue=test and cue=real")
    if setting(first, shared().levels) == setting(second, shared().levels):
        raise UsageError(f"{what} is one setting; there is nothing between them")


def _laid(family: str, half: Half) -> Laid:
    try:
        return lay_out(family, half=half, wordings=half)
    except DesignError as error:
        raise DesignError(
            f"{error}. Units are chosen on one half and tested on the other; --probe leaves plots out one by one"
            " instead, and can be asked of this family"
        ) from error


def _twins(laid: Laid, first: str, second: str) -> Iterator[Surface]:
    """Each scene of a plan at the first setting, with its twin."""
    wanted, other = (dict(word.split("=") for word in one.split()) for one in (first, second))
    decisions = {one.name: one.decision for one in laid.asked.surfaces}
    for one in laid.scenes:
        if not wanted.items() <= one.setting.items():
            continue
        sides = ((first, one), (second, scene(one.plot, one.surface, {**one.setting, **other})))
        name = f"{one.plot.id}/{one.surface + 1}"
        rest = cell({factor: level for factor, level in one.setting.items() if factor not in wanted})
        yield Surface(
            plot=one.plot.id,
            name=f"{name} {rest}",
            half=one.plot.half,
            cases=tuple(
                Case(cell=said, messages=each.messages, segments=tuple((of or STORY, text) for of, text in each.parts))
                for said, each in sides
            ),
            decision=decisions[name],
        )
