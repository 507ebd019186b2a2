"""When a piece of a plot is there: "threat=replacement|restriction means!=absent", all terms holding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from truing.errors import UsageError
from truing.records import Value

_TERM = re.compile(r"([a-z_]+)(!?=)([a-z_|-]+)")
Levels = Mapping[str, Sequence[str]]
"""The levels of every factor, in order; the first is its baseline."""
Setting = Mapping[str, str]
"""One level of every factor."""


class Term(Value):
    """One factor's levels at which a piece is there."""

    factor: str
    levels: tuple[str, ...]
    negated: bool = False

    def holds(self, setting: Setting) -> bool:
        """Whether a setting agrees."""
        return (setting[self.factor] in self.levels) != self.negated

    def __str__(self) -> str:
        return f"{self.factor}{'!=' if self.negated else '='}{'|'.join(self.levels)}"


def parsed(text: object) -> object:
    """The terms of a guard as it is written; ValueError where it is not one."""
    if not isinstance(text, str):
        return text
    terms = []
    for word in text.split():
        if not (match := _TERM.fullmatch(word)):
            raise ValueError(f"{word!r} is no condition; write factor=level, factor=level|level or factor!=level")
        terms.append(Term(factor=match[1], levels=tuple(match[3].split("|")), negated=match[2] == "!="))
    return tuple(terms)


Guard = Annotated[
    tuple[Term, ...], BeforeValidator(parsed), PlainSerializer(lambda terms: " ".join(map(str, terms)), return_type=str)
]


def holds(guard: Sequence[Term], setting: Setting) -> bool:
    """Whether all terms of a guard hold."""
    return all(term.holds(setting) for term in guard)


def factors_of(guard: Sequence[Term]) -> frozenset[str]:
    """The factors that decide whether a piece is there."""
    return frozenset(term.factor for term in guard)


def unknown(guard: Sequence[Term], levels: Levels) -> str:
    """What of a guard names no factor or level; "" where all is known."""
    for term in guard:
        if term.factor not in levels:
            return f"no factor {term.factor!r}; there are {', '.join(levels)}"
        if wrong := [level for level in term.levels if level not in levels[term.factor]]:
            return f"factor {term.factor} has no level {wrong[0]!r}; it has {', '.join(levels[term.factor])}"
    return ""


def settings(levels: Levels) -> list[dict[str, str]]:
    """Every combination of levels, the last factor changing fastest."""
    return [dict(zip(levels, combination, strict=True)) for combination in product(*levels.values())]


def cell(setting: Setting) -> str:
    """A setting as it is written: "threat=none means=present"."""
    return " ".join(f"{factor}={level}" for factor, level in setting.items())


def setting(text: str, levels: Levels) -> dict[str, str]:
    """A whole setting from what is said of it; factors that it does not name are at their baseline. UsageError."""
    said = [single(word, levels, f"no cell {text!r}") for word in text.split()]
    return {factor: values[0] for factor, values in levels.items()} | {term.factor: term.levels[0] for term in said}


def single(word: str, levels: Levels, what: str) -> Term:
    """A term that names one level of a factor. UsageError, which begins with what it was for."""
    try:
        said = parsed(word)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error
    assert isinstance(said, tuple)
    if len(said) != 1:
        raise UsageError(f"{what}: {word!r} is not a single level")
    if wrong := unknown(said, levels):
        raise UsageError(f"{what}: {wrong}")
    term: Term = said[0]
    if term.negated or len(term.levels) > 1:
        raise UsageError(f"{what}: {str(term)!r} is not a single level")
    return term
