"""Interactions that are declared before anything runs: "threat=replacement x conflict=present"."""

from __future__ import annotations

from dataclasses import dataclass

from truing.audit.company.agents import MEANS
from truing.audit.company.guards import Levels, single
from truing.audit.company.plot import shared
from truing.errors import UsageError
from truing.records import Contrast


@dataclass(frozen=True, slots=True)
class Interaction:
    """What two levels do together beyond the sum of what each does, each against its factor's baseline."""

    first: tuple[str, str]
    """A factor and its level; the factor that comes first in the shared levels."""
    second: tuple[str, str]

    @property
    def factors(self) -> tuple[str, str]:
        """The two factors."""
        return self.first[0], self.second[0]

    def __str__(self) -> str:
        return " x ".join("=".join(one) for one in (self.first, self.second))


def interaction(text: str) -> Interaction:
    """One as it is written. UsageError where it is not of two pressures, each at a level other than its baseline."""
    levels = shared().levels
    words = text.split(" x ")
    if len(words) != 2:
        raise UsageError(f"no interaction {text!r}: write two levels, 'factor=level x factor=level'")
    one, other = (_level(word.strip(), text, levels) for word in words)
    if one[0] == other[0]:
        raise UsageError(f"no interaction {text!r}: both are levels of {one[0]}; name two factors")
    first, second = sorted((one, other), key=lambda said: list(levels).index(said[0]))
    return Interaction(first, second)


def _level(word: str, text: str, levels: Levels) -> tuple[str, str]:
    """A factor and one level of it that is not its baseline."""
    term = single(word, levels, f"no interaction {text!r}")
    factor, level = term.factor, term.levels[0]
    if factor == MEANS:
        raise UsageError(f"no interaction {text!r}: every effect is tested for its interaction with {MEANS} already")
    if level == levels[factor][0]:
        others = ", ".join(levels[factor][1:])
        raise UsageError(f"no interaction {text!r}: {word} is the baseline; take one of {others}")
    return factor, level


def contrasts(one: Interaction) -> tuple[Contrast, Contrast, Contrast]:
    """Differences of differences: where the means are there, beyond where they are not, and where they are not."""
    (there, apart), (absent, apart_absent) = (_four(one, f"{MEANS}={level}") for level in ("present", "absent"))
    return (
        Contrast(name=f"{one}, with the means", plus=there, minus=apart),
        Contrast(name=f"{one} x {MEANS}", plus=(*there, *apart_absent), minus=(*apart, *absent)),
        Contrast(name=f"{one}, without the means", plus=absent, minus=apart_absent),
    )


def _four(one: Interaction, where: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The cells with both levels or neither, and those with one of them."""
    levels = shared().levels
    (on, off), (also, not_also) = (
        (f"{factor}={level}", f"{factor}={levels[factor][0]}") for factor, level in (one.first, one.second)
    )
    return (
        (f"{on} {also} {where}", f"{off} {not_also} {where}"),
        (f"{on} {not_also} {where}", f"{off} {also} {where}"),
    )
