"""The verdict on the units that carry an effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from truing.records import Estimate, Mediation, Quantity
from truing.trace.attribute import Trivial

Verdict = Literal["supported", "weak", "refuted", "inconclusive"]
HALF = 0.5
"""Share of the effect that an explanation must account for."""
MARGIN = 0.05
"""Share of the effect by which units must exceed those of any other: twins are paired, and tell far smaller ones."""

TRIVIAL: dict[Trivial, str] = {"largest change": "the largest change", "activation size": "activation size"}
"""Choices that need no attribution, and how they are said."""


def judge(mediated: Sequence[Mediation]) -> tuple[Verdict, str]:
    """The verdict and its grounds.

    supported: some K heads or neurons chosen by attribution mediate at least half of the effect, and more than random
    and shuffled choices of as many (intervals apart), and put into the other twin they bring back more of it than those
    do; and either way they exceed as many units of any ordinary effect (paired, all intervals above the margin). weak:
    they mediate more than random and shuffled ones, but less than half or more than all, or do not bring it back, or
    units of another effect do about as much. refuted: every choice mediates clearly less than half, or no more than
    random or shuffled units may. inconclusive: the intervals do not tell, or nothing was measured. A record without the
    way back, or without other effects, is judged by what it has.
    """
    best: tuple[Verdict, str] | None = None
    failed = measured = 0
    for m in sorted(mediated, key=lambda m: m.k):
        share = m.share
        if m.choice != "attribution" or not isinstance(share, Estimate):
            continue
        rivals = {r.choice: r for r in mediated if (r.kind, r.k) == (m.kind, m.k) and r.choice != "attribution"}
        shams = [r for name, r in rivals.items() if name in ("random", "shuffled")]
        controls = [r.share for r in shams if isinstance(r.share, Estimate)]
        if not controls:
            continue
        measured += 1
        if share.low <= max(q.high for q in controls):
            failed += share.high < HALF or share.high <= max(q.high for q in controls)
            continue
        remark = "; patching them overshoots" if share.low > 1 else ""
        if trivial := [name for name in TRIVIAL if name in rivals and _as_well(rivals[name].share, share)]:
            remark += f"; units chosen by {' or '.join(TRIVIAL[name] for name in trivial)} alone do as well"
        comes, other_way = _comes_back(m, shams)
        others = [r for r in mediated if (r.kind, r.k, r.choice) == (m.kind, m.k, "another effect")]
        own, beyond = _of_its_own(m, others)
        said = f"{m.k} {m.kind}s mediate {_percent(share)} of the effect{other_way}{beyond}{remark}"
        if HALF <= share.low <= 1 and comes and own:
            return "supported", said
        best = ("weak", said)
    if best:
        return best
    if measured and failed == measured:
        return (
            "refuted",
            "no choice by attribution mediates half of the effect and more than random and shuffled units do",
        )
    if measured:
        return "inconclusive", "the intervals do not tell units chosen by attribution from random and shuffled ones"
    return "inconclusive", "no share was measured beside those of random and shuffled units"


def _comes_back(chosen: Mediation, shams: Sequence[Mediation]) -> tuple[bool, str]:
    """Whether units put into the other twin bring back more of the effect than sham ones do, and how that is said."""
    back = chosen.restored
    if back is None:
        return True, ""
    if not isinstance(back, Estimate):
        return False, "; what they bring back in the other twin is not measured"
    controls = [r.restored for r in shams if isinstance(r.restored, Estimate)]
    if controls and back.low > max(q.high for q in controls):
        return True, f", and bring back {_percent(back)} in the other twin"
    return False, f"; in the other twin they bring back {_percent(back)}, not clearly more than sham units"


def _as_well(trivial: Quantity, share: Estimate) -> bool:
    """Whether units that were chosen without a derivative may mediate as much."""
    return isinstance(trivial, Estimate) and trivial.high >= share.low


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def worth_comparing(mediated: Sequence[Mediation]) -> list[Mediation]:
    """The units by attribution that are supported before other effects are looked at."""
    groups = [(m, [r for r in mediated if (r.kind, r.k) == (m.kind, m.k)]) for m in mediated]
    return [m for m, group in groups if m.choice == "attribution" and judge(group)[0] == "supported"]


def _of_its_own(chosen: Mediation, others: Sequence[Mediation]) -> tuple[bool, str]:
    """Whether the units exceed those of every ordinary effect, either way, and how that is said.

    `others`: of the effect that comes closest in what goes, and last of that which does in what comes.
    """
    if not others or chosen.beyond is None or chosen.beyond_restored is None:
        return True, ""
    units = f"{chosen.kind}s of the ordinary effect"
    ways = ((chosen.beyond, others[0].of, "mediate"), (chosen.beyond_restored, others[-1].of, "bring back"))
    for gap, of, verb in ways:
        if not isinstance(gap, Estimate) or gap.low < MARGIN:
            return False, f"; but they {verb} {_said(gap)} more than as many {units} {of!r}, not clearly {MARGIN:.0%}"
    return True, f"; and {_said(chosen.beyond)} more than as many {units} that comes closest, {others[0].of!r}"


def _said(share: Quantity | None) -> str:
    return _percent(share) if isinstance(share, Estimate) else str(share)
