"""False alarms, counted on planted personas: pressures that nobody planted, and differences between equal targets."""

from __future__ import annotations

from math import sqrt

import numpy as np
from common import Row
from numpy.typing import NDArray

from truing.audit.claims import Draft, Observed, judged
from truing.audit.company.effects import NEVER
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.plans import Plan, factors, runs_of
from truing.audit.company.plot import shared
from truing.records import Target, digest_of
from truing.stats.designs import Runs, relabelled
from truing.stats.ties import differing

Floats = NDArray[np.float64]
ALPHA = 0.05


def chance(odds: Floats) -> Floats:
    """Probability of log-odds."""
    return 1 / (1 + np.exp(-odds))


def limited(name: str, count: int, repeats: int, *, judged: bool = True) -> Row:
    """A rate of false alarms with its Monte-Carlo error, and whether it is no more than three of it above 5%."""
    found, error = count / repeats, sqrt(ALPHA * (1 - ALPHA) / repeats)
    most = ALPHA + 3 * error
    more = {"bar": f"<= {ALPHA} + 3 SE", "holds": found <= most} if judged else {}
    return Row(name, found, "share", max(0.0, found - 3 * error), found + 3 * error, **more)


def invented(laid: Laid, cells: list[list[str]], done: Floats) -> bool:
    """Whether any effect is supported in what was observed; rows are plots, columns their cells."""
    rows = [dict(zip(names, map(float, row), strict=True)) for names, row in zip(cells, done, strict=True)]
    seen = Observed([str(number) for number in range(len(rows))], rows, whole=True, never=NEVER)
    card = Target(name="scripted/null", weights=digest_of(0), template="", dtype="none", abilities=("Chat",))
    drafts = [Draft(one, "", "behaviour", seen, (), (), effect=one.question) for one in laid.designs]
    return any(claim.verdict == "supported" for claim in judged(card, drafts))


def pressures(rate: float, repeats: int, *, plots: int = 5, between: float = 0.7) -> Row:
    """How often a persona without any pressure has one supported, after Holm over its effects.

    Plots differ in how much harm there is, and shift every effect by a draw of their own with mean 0.
    """
    rng, laid, plan = np.random.default_rng(11), lay_out("oversight"), Plan()
    sizes, names = list(factors().values()), list(factors())
    means = names.index("means")
    count = 0
    for _ in range(repeats):
        designs = [relabelled(runs_of(plan), sizes, seed=int(rng.integers(2**31))) for _ in range(plots)]
        done = []
        for rows in designs:
            odds = np.log(rate / (1 - rate)) + 0.7 * rng.standard_normal()
            shifts = [between * rng.standard_normal(size) * (np.arange(size) > 0) for size in sizes]
            add = sum(shift[rows[:, k]] for k, shift in enumerate(shifts) if k != means)
            done.append((rng.random(len(rows)) < chance(odds + add)) * (rows[:, means] == 1))
        count += invented(laid, [[cell(row, laid) for row in rows] for rows in designs], np.array(done))
    return limited(
        f"false alarms: any of {len(laid.designs)} effects supported where none is planted, harm {rate:g},"
        f" {plots} plots, {between:g} between plots",
        count, repeats,
    )  # fmt: skip


def cell(row: Runs, laid: Laid) -> str:
    """A run as a cell is written."""
    setting = laid.scenes[0].setting
    said = [f"{name}={shared().levels[name][row[k]]}" for k, name in enumerate(setting)]
    return " ".join([*said, f"surface={row[-1] + 1}"])


def ties(rates: list[float], repeats: int, *, plots: int, between: float, judged: bool = True) -> Row:
    """How often two targets with the same rate are said to differ, in a grid of these."""
    rng, truth = np.random.default_rng(7), np.array(rates)
    same = truth[:, None] == truth[None]
    count = 0
    for _ in range(repeats):
        odds = np.log(truth / (1 - truth))[:, None] + 0.7 * rng.standard_normal(plots)[None]
        odds = odds + between * rng.standard_normal((len(truth), plots))
        seen = rng.binomial(18, chance(odds)) / 18
        count += any(same[i, j] for i, j in differing(seen, seen))
    said = " and ".join(f"{rates.count(rate)} at {rate:g}" for rate in dict.fromkeys(rates))
    return limited(
        f"false differences among equal targets: {said}, {plots} plots, {between:g} between plots", count, repeats,
        judged=judged,
    )  # fmt: skip


def rows() -> list[Row]:
    """All of them; the last is what unequal variances can do to ties, and has no bar."""
    return [
        pressures(0.2, 400),
        pressures(0.5, 400),
        ties([0.05] * 16, 1000, plots=5, between=0.7),
        ties([0.3] * 16, 1000, plots=5, between=0.7),
        ties([0.3] * 16, 1000, plots=10, between=0.7),
        ties([0.02] * 8 + [0.5] * 8, 1000, plots=5, between=0.7, judged=False),
    ]


if __name__ == "__main__":
    for one in rows():
        print(one)
