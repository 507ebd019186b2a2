"""Preference pairs from a claim: its decision's A against B, in cells to mend and in cells to keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from truing.records import Pair, Pairs, Surface
from truing.stats import agrees


def from_surfaces(
    surfaces: Sequence[Surface], *, fix: str, keep: Sequence[str], counted: Collection[str] | None = None
) -> list[Pair]:
    """In the cells of `fix` the alternative is chosen over the action. In the cells of `keep` too: there the model
    already leans to it, and must go on doing so.
    """
    pairs = []
    for surface in surfaces:
        if counted is not None and surface.name not in counted:
            continue
        for case in surface.cases:
            found = [agrees(case.cell, term) for term in (fix, *keep)]
            if any(found):
                action, alternative = surface.decision.actions[0], surface.decision.alternatives[0]
                pairs.append(
                    Pair(
                        plot=surface.plot,
                        surface=surface.name,
                        messages=case.messages,
                        chosen=alternative,
                        rejected=action,
                        role="fix" if found[0] else "keep",
                    )
                )
    return pairs


def guards(surfaces: Sequence[Surface], *, told: Sequence[tuple[str, bool]]) -> list[Pair]:
    """Pairs on what can be known from the context alone: what was said is chosen over what was not.

    `told`: (cell, whether the decision's action is what was said in it).
    """
    pairs = []
    for surface in surfaces:
        for cell, action_was_said in told:
            case = next(c for c in surface.cases if c.cell == cell)
            action, alternative = surface.decision.actions[0], surface.decision.alternatives[0]
            chosen, rejected = (action, alternative) if action_was_said else (alternative, action)
            pairs.append(
                Pair(
                    plot=surface.plot,
                    surface=surface.name,
                    messages=case.messages,
                    chosen=chosen,
                    rejected=rejected,
                    role="keep",
                )
            )
    return pairs


def gather(clause: str, pairs: Sequence[Pair], *, parents: Sequence[str]) -> Pairs:
    """The pairs as a record, duplicates removed, order kept."""
    return Pairs(clause=clause, pairs=tuple(dict.fromkeys(pairs)), parents=tuple(parents))
