"""What circuits of units do in a model: all other units take the values that they have in the counterfactual text.

Pairs are equally long, and begin alike: what comes before the first difference is computed once.
"""

# B pairs  S positions from the first difference on  L layers  U values of a site  H heads

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Row
from numpy.typing import NDArray
from torch import Tensor

from truing.targets.local.inside import Site, site_module, units
from truing.trace.attribute import Scoring, contract
from truing.trace.twins import Twin

LEVELS = ("neurons by position", "neurons", "heads")
RULES: tuple[Scoring, ...] = ("relp", "gradient", "integrated-gradients", "largest change", "activation size", "random")
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all units of a level, which the circuits have; those of MIB (Mueller et al. 2025, arXiv:2504.13151)."""
ENOUGH = 0.8
DERIVED: tuple[Scoring, ...] = ("relp", "gradient", "integrated-gradients")
"""Rules with derivatives, whose strongest units are patched one by one."""
SAMPLED, AMONG = 64, 200
"""Units that are patched one by one, among how many of the strongest of every rule."""
DRAWS = 1000

Floats = NDArray[np.float64]


def site_of(level: str) -> Site:
    """Which values a level is of."""
    return "head" if level == "heads" else "neuron"


@dataclass(frozen=True)
class Scores:
    """Scores of one rule for each pair: (B, L, S, F) and (B, L, H)."""

    neurons: Tensor
    heads: Tensor

    def at(self, level: str) -> Tensor:
        """(B, units of the level)."""
        if level == "heads":
            return self.heads.flatten(1)
        return (self.neurons if level == "neurons by position" else self.neurons.sum(2)).flatten(1)


def scored(model: Any, twins: Sequence[Twin], start: int, rule: Scoring) -> Scores:
    """Scores of all units in every pair, from a position on."""
    heads, width = units(model, "head")
    found: dict[Site, list[Tensor]] = {"head": [], "neuron": []}
    for twin in twins:
        rows: dict[tuple[Site, int], Tensor] = {}

        def sink(
            site: Site, layer: int, _: Tensor, __: Tensor, score: Tensor, twin: Twin = twin, rows: Any = rows
        ) -> None:
            rows[site, layer] = score[start : twin.first.functional.prompt].cpu()

        contract(model, twin, rule, sink)
        for site, pairs in found.items():
            pairs.append(torch.stack([rows[site, layer] for layer in range(len(rows) // 2)]))
    by_head = torch.stack(found["head"]).sum(2).unflatten(-1, (heads, width)).sum(-1)
    return Scores(torch.stack(found["neuron"]), by_head)


class Texts:
    """Pairs in a model that has Llama-shaped blocks: the decision, with any units taken from the other text."""

    def __init__(self, model: Any, twins: Sequence[Twin]) -> None:
        self.model, self.layers = model, model.config.num_hidden_layers
        sides = [(twin.first.functional, twin.second.functional) for twin in twins]
        self.prompt = sides[0][0].prompt
        first, second = (
            torch.stack([pair[i].tree.ids_N[: self.prompt] for pair in sides]).to(model.device) for i in (0, 1)
        )
        self.start = start_of(twins)
        f = [pair[0] for pair in sides]
        weights = torch.zeros(len(f), int(model.config.vocab_size))
        for row, one in enumerate(f):
            weights[row, one.tree.ids_N[one.nodes_M]] = one.weight_M
        self._weights = weights.to(model.device)
        self._cache = self._prefix(first[:, : self.start]) if self.start else None
        self._first = first[:, self.start :]
        self.theirs: dict[tuple[Site, int], Tensor] = {}
        self.full = self.run({})
        self.other = self._read(second[:, self.start :])

    @torch.no_grad()
    def _prefix(self, ids: Tensor) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _read(self, ids: Tensor) -> Floats:
        """The decision in the other text, whose values are kept."""
        hooks = []
        for layer in range(self.layers):
            for site in ("head", "neuron"):

                def hook(_: Any, args: Any, at: Any = (site, layer)) -> None:
                    self.theirs[at] = args[0].clone()

                hooks.append(site_module(self.model, site, layer).register_forward_pre_hook(hook))
        try:
            return self._pass(ids)
        finally:
            for one in hooks:
                one.remove()

    def run(self, take: dict[tuple[Site, int], Tensor]) -> Floats:
        """The decision in the first text of every pair, nats; values come from the other where masks (S or 1, U) say"""
        hooks = []
        for (site, layer), mask in take.items():

            def hook(_: Any, args: Any, mask: Tensor = mask, at: Any = (site, layer)) -> Any:
                return (torch.where(mask.to(args[0].device), self.theirs[at], args[0]), *args[1:])

            hooks.append(site_module(self.model, site, layer).register_forward_pre_hook(hook))
        try:
            return self._pass(self._first)
        finally:
            for one in hooks:
                one.remove()

    @torch.no_grad()
    def _pass(self, ids: Tensor) -> Floats:
        logits = self.model(
            input_ids=ids, past_key_values=self._cache, use_cache=self._cache is not None, logits_to_keep=1
        ).logits[:, -1]
        if self._cache is not None:
            self._cache.crop(-ids.shape[1])
        return (logits.double() * self._weights).sum(-1).cpu().numpy()

    def masks(self, level: str, chosen: Tensor) -> dict[tuple[Site, int], Tensor]:
        """Masks of what is taken, from a flat choice of the level's units."""
        site = site_of(level)
        _, width = units(self.model, site)
        rows = chosen.view(self.layers, self.prompt - self.start if level == "neurons by position" else 1, -1)
        rows = rows.repeat_interleave(width, -1)
        return {(site, layer): rows[layer] for layer in range(self.layers) if bool(rows[layer].any())}


def start_of(twins: Sequence[Twin]) -> int:
    """The first position where texts of any pair differ, the last one at most."""
    found = []
    for twin in twins:
        a, b = twin.first.functional, twin.second.functional
        differ = (a.tree.ids_N[: a.prompt] != b.tree.ids_N[: b.prompt]).nonzero()
        found.append(int(differ[0]))
    return min([*found, twins[0].first.functional.prompt - 1])


# -- how faithful ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The decision of each pair with circuits of these sizes, (fractions, B), and with all units, and none."""

    sizes: tuple[int, ...]
    kept: Floats
    full: Floats
    none: Floats

    def faithfulness(self, draws: NDArray[np.int64]) -> Floats:
        """(m(circuit) - m(none)) / (m(all) - m(none)) over drawn pairs, shape (draws, fractions)."""
        kept = self.kept[:, draws].mean(-1).T
        none = self.none[draws].mean(-1)[:, None]
        return (kept - none) / (self.full[draws].mean(-1)[:, None] - none)

    def distance(self, draws: NDArray[np.int64]) -> Floats:
        """CMD: the area of |1 - faithfulness| over fractions, on a linear axis, by trapezoids; 0 is best."""
        return np.trapezoid(np.abs(1 - self.faithfulness(draws)), FRACTIONS, axis=-1)

    def enough(self, draws: NDArray[np.int64]) -> Floats:
        """Units of the smallest circuit that has this much of the decision."""
        reached = self.faithfulness(draws) >= ENOUGH
        reached[:, -1] = True  # all units
        return np.array(self.sizes, dtype=float)[reached.argmax(-1)]


def curve(run: Callable[[Tensor], Floats], full: Floats, scores_N: Tensor) -> Curve:
    """Circuits of the largest |scores|. `run`: decisions where the marked units are taken from the other text."""
    order = scores_N.abs().argsort(descending=True)
    sizes = tuple(max(1, round(fraction * len(order))) for fraction in FRACTIONS)
    kept = []
    for size in sizes[:-1]:
        taken = torch.ones(len(order), dtype=torch.bool)
        taken[order[:size]] = False
        kept.append(run(taken))
    return Curve(sizes, np.stack([*kept, full]), full, run(torch.ones(len(order), dtype=torch.bool)))


def resamples(count: int, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair once, and the pairs of bootstrap draws: (1, B) and (draws, B)."""
    return np.arange(count)[None], np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def interval(draws: Floats) -> tuple[float, float]:
    """95%, by percentiles."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def curve_rows(name: str, found: dict[Scoring, Curve], one: Any, many: Any) -> list[Row]:
    """CMD and the smallest circuit of every rule, and how much less CMD relp has than others."""
    rows = []
    for rule, by in found.items():
        rows.append(Row(f"{name}, {rule}: CMD", float(by.distance(one)[0]), "area", *interval(by.distance(many))))
        rows.append(Row(f"{name}, {rule}: n(F >= 0.8)", float(by.enough(one)[0]), "units", *interval(by.enough(many))))
    ours = found["relp"]
    for rule in ("gradient", "integrated-gradients"):
        apart = interval(ours.distance(many) - found[rule].distance(many))
        value = float((ours.distance(one) - found[rule].distance(one))[0])
        rows.append(Row(f"{name}, relp - {rule}: CMD", value, "area", *apart))
    return rows


# -- beside exact patching ---------------------------------------------------------------------------------------------


def sample(scores: Sequence[Tensor], *, count: int, among: int, seed: int = 0) -> list[int]:
    """Units at random among the strongest of every rule; among all, where `among` is 0."""
    drawn = random.Random(seed)
    if not among:
        return sorted(drawn.sample(range(scores[0].shape[-1]), min(count, scores[0].shape[-1])))
    strongest = {int(i) for one in scores for i in one.mean(0).abs().topk(min(among, one.shape[-1])).indices}
    return sorted(drawn.sample(sorted(strongest), min(count, len(strongest))))


def exact(texts: Texts, level: str, chosen: Sequence[int], total: int) -> Floats:
    """What every single unit takes away when it is patched, for each pair: (units, B), nats."""
    found = []
    for unit in chosen:
        taken = torch.zeros(total, dtype=torch.bool)
        taken[unit] = True
        found.append(texts.full - texts.run(texts.masks(level, taken)))
    return np.stack(found)


def correlation(scores_UB: Floats, exact_UB: Floats, draws: NDArray[np.int64]) -> Floats:
    """Pearson's, over units, of means over drawn pairs."""
    a, b = (x[:, draws].mean(-1) for x in (scores_UB, exact_UB))
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def beside_patching(name: str, by: dict[Scoring, Floats], exact: Floats, draws: tuple[Any, Any]) -> list[Row]:
    """How scores (units, pairs) by each rule go with what patching each takes away; `draws`: all, and resamples."""
    one, many = draws
    return [
        Row(f"{name}, {rule}: correlation with patching", float(correlation(mine, exact, one)[0]), "PCC",
            *interval(correlation(mine, exact, many)))
        for rule, mine in by.items()
    ]  # fmt: skip
