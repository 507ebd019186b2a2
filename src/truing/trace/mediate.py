"""The causal check, both ways: the chosen units are patched from the other twin.

removed   in the first cell, with values of the second: how much of the effect goes
restored  in the second cell, with values of the first: how much of it comes
"""

# B choices (rows of one batch)  L layers

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from truing.targets.local.change import counts
from truing.targets.local.inside import Held, Patch, Site, llama_shaped, run
from truing.trace.attribute import Trivial, read_side
from truing.trace.derive import decision_of, values
from truing.trace.readable import check_units
from truing.trace.twins import Side, Twin

Rule = Literal["attribution", "random", "largest change", "activation size", "shuffled", "another effect"]
OTHER: Rule = "another effect"


@dataclass(frozen=True, slots=True)
class Choice:
    """K units of one kind, chosen by one rule: (layer, index) pairs."""

    site: Site
    rule: Rule
    units: tuple[tuple[int, int], ...]
    draw: int = 0
    """Random and shuffled units are drawn several times; of other effects, which it is."""

    @property
    def k(self) -> int:
        """How many units."""
        return len(self.units)

    @property
    def label(self) -> str:
        """For rows of results."""
        return f"{self.site} {self.rule} {self.k} #{self.draw}"

    @property
    def back_label(self) -> str:
        """For rows of results of the way back."""
        return f"{self.label} restored"


@dataclass(frozen=True, slots=True)
class Ways:
    """Decisions, nats per token: in either cell as it is, and with each choice patched from the other."""

    first: float
    second: float
    removed: list[float]
    """In the first cell, with units from the second."""
    restored: list[float]
    """In the second, with units from the first."""


def choose(
    site: Site, k: int, score_LU: Tensor, trivial: Mapping[Trivial, Tensor], *, draws: int, seed: int
) -> list[Choice]:
    """K units by attribution, and as many by each baseline.

    largest change: those whose values differ most between twins; activation size: those whose values are largest;
    random: any others than the chosen; shuffled: the attribution's own scores dealt out anew inside each layer, so that
    the layers are right and the units wrong (some of the chosen may be among them).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = top(score_LU, k)
    taken_LU = torch.zeros_like(score_LU, dtype=torch.bool)
    for unit in chosen:
        taken_LU[unit] = True

    choices = [Choice(site, "attribution", chosen)]
    choices += [Choice(site, rule, top(table_LU, k)) for rule, table_LU in trivial.items()]
    for draw in range(draws):
        shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in score_LU])
        random = torch.rand(score_LU.shape, generator=generator).masked_fill(taken_LU, -1)
        choices += [Choice(site, "random", top(random, k), draw), Choice(site, "shuffled", top(shuffled, k), draw)]
    return choices


def top(score_LU: Tensor, k: int) -> tuple[tuple[int, int], ...]:
    """The (layer, index) of the K largest."""
    width = score_LU.shape[1]
    return tuple((int(i) // width, int(i) % width) for i in score_LU.flatten().topk(k).indices)


def back(choices: Sequence[Choice]) -> list[Choice]:
    """Those that are patched the other way too: one of each rule, and all of other effects."""
    return [c for c in choices if c.rule == OTHER or c.draw == 0]


def mediate(model: Any, twin: Twin, choices: Sequence[Choice]) -> tuple[float, float, list[float]]:
    """The decision in the first cell, in the second, and in the first with each choice patched from the second."""
    found = both_ways(model, twin, choices, ())
    return found.first, found.second, found.removed


@torch.no_grad()
def both_ways(model: Any, twin: Twin, choices: Sequence[Choice], back: Sequence[Choice]) -> Ways:
    """`choices` patched in the first cell, `back` in the second. TargetError where units cannot be reached or do not
    exist.
    """
    check_units(model, ((c.site, *unit) for c in (*choices, *back) for unit in c.units))
    first, decision = _held(model, twin.first)
    second, other = _held(model, twin.second)
    start = _alike(twin)
    return Ways(
        decision,
        other,
        _patched(model, twin.first, choices, (second, twin.onto_T, twin.from_T), start),
        _patched(model, twin.second, back, (first, twin.from_T, twin.onto_T), start),
    )


def _held(model: Any, side: Side) -> tuple[Held, float]:
    """What units are at one side, and its decision: by hand where blocks are Llama-shaped."""
    if not llama_shaped(model):
        inside = values(model, side.functional)
        return inside, inside.decision
    seen, _ = read_side(model, side)
    assert seen.logits is not None  # read() sets them
    return seen, float(decision_of(side.functional, seen.logits[None])[0])


def _patched(
    model: Any, side: Side, choices: Sequence[Choice], source: tuple[Held, Tensor, Tensor], start: int
) -> list[float]:
    """Decisions at one side with each choice patched, one row of a batch each."""
    if not choices:
        return []
    count = counts(model)
    take: dict[tuple[Site, int], Tensor] = {}
    for row, choice in enumerate(choices):
        for layer, index in choice.units:
            none = torch.zeros(len(choices), count[choice.site], dtype=torch.bool)
            take.setdefault((choice.site, layer), none)[row, index] = True
    kept = side.functional.before_M.unique()
    logits = run(model, side.functional.tree, kept, rows=len(choices), patch=Patch(take, *source), start=start)
    return decision_of(side.functional, logits).tolist()


def _alike(twin: Twin) -> int:
    """Nodes at the beginning that both cells share: their values are the same, so patching them changes nothing."""
    return twin.shared
