"""What is different between two graphs of the same decision: in two models, or in two cells of the same case.

A neuron survives fine-tuning, so that the same (layer, neuron) can be looked for in both. What it adds to the decision
is its activation times its derivative, a * d. The difference is split as products are under the half rule,

    a2 d2 - a1 d1 = (a2 - a1)(d1 + d2) / 2  +  (a1 + a2)(d2 - d1) / 2
                    activation part            weight part

which closes exactly: how differently it fires, and how differently what it writes is read. Contributions are direct
ones, which sum to the decision with its probabilities held, so that the parts of all neurons and embeddings sum to its
whole difference. By the entropies of what was held that is more than the decision itself: their difference is the last
part.
"""

# T nodes  L layers  F neurons  S segments  D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.records import Named
from truing.stats import cluster_mean
from truing.targets.local.inside import Activations
from truing.trace.attribute import decision_cotangent, read_side
from truing.trace.derive import decision_of
from truing.trace.linear import recursion
from truing.trace.twins import Side

SHOWN = 20
"""Neurons whose change is given one by one."""
UNIT = "nats/token"


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first, of one case; nats per token."""

    activation_SLF: Tensor
    weight_SLF: Tensor
    """By segment, summed over its aligned positions."""
    embedding_S: Tensor
    """Of what tokens add themselves."""
    rest: Tensor
    """Of nodes that have no counterpart; a scalar."""
    whole: Tensor
    """Of the decision with its probabilities held, which contributions add up to; a scalar."""
    entropy: Tensor
    """By how much the decision itself differs more; a scalar."""
    size: Tensor
    """The sum of absolute contributions of both graphs; a scalar."""

    @property
    def error(self) -> float:
        """|sum of parts - whole| over the sum of absolute contributions: of the accounts, not of their difference."""
        parts = [self.activation_SLF, self.weight_SLF, self.embedding_S, self.rest]
        total = sum(float(part.double().sum()) for part in parts)
        return abs(total - float(self.whole)) / max(float(self.size), 1e-30)


@torch.no_grad()
def difference(
    models: tuple[Any, Any], sides: tuple[Side, Side], onto_T: Tensor, from_T: Tensor, segments: Sequence[str]
) -> Difference:
    """Of two models in one case, or of one model in two; `onto_T` of the first stand for `from_T` of the second."""
    first, second = (_direct(model, side) for model, side in zip(models, sides, strict=True))
    index = {label: i for i, label in enumerate(segments)}
    where = torch.tensor([index[sides[0].segment_T[int(t)]] for t in onto_T])

    def by_segment(parts_T: Tensor) -> Tensor:
        return (
            parts_T.new_zeros(len(segments), *parts_T.shape[1:]).index_add(0, where.to(parts_T.device), parts_T).cpu()
        )

    activation, weight = [], []
    for layer in range(len(first.given)):
        a, d = first.values[layer][onto_T], first.given[layer][onto_T]
        b, e = second.values[layer][from_T], second.given[layer][from_T]
        activation.append(by_segment((b - a) * (d + e) / 2))
        weight.append(by_segment((a + b) * (e - d) / 2))
    embeddings = second.embedding_T[from_T] - first.embedding_T[onto_T]
    alone = [_without(one, nodes) for one, nodes in ((first, onto_T), (second, from_T))]
    return Difference(
        torch.stack(activation, 1), torch.stack(weight, 1), by_segment(embeddings), (alone[1] - alone[0]).cpu(),
        torch.tensor(second.value - first.value, dtype=torch.double),
        torch.tensor(second.decision - first.decision - (second.value - first.value), dtype=torch.double),
        (first.size + second.size).cpu(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Direct:
    """What every neuron is, (T, F) a layer, what the decision makes of one unit of it, and what tokens add."""

    values: list[Tensor]
    given: list[Tensor]
    embedding_T: Tensor
    value: float
    """The decision with its probabilities held."""
    decision: float

    @property
    def size(self) -> Tensor:
        """The sum of absolute contributions."""
        parts = [(a * d).abs().double().sum() for a, d in zip(self.values, self.given, strict=True)]
        return torch.stack([*parts, self.embedding_T.abs().double().sum()]).sum()


def _direct(model: Any, side: Side) -> _Direct:
    seen: Activations
    seen, kept = read_side(model, side)
    given: list[Tensor] = []

    def sink(layer: int, after_BTD: Tensor, _: Tensor) -> None:
        given.append(after_BTD[0] @ model.model.layers[layer].mlp.down_proj.weight)

    R_TD, value = decision_cotangent(model, side, seen, kept)
    R_BTD = recursion(model, seen, R_TD[None], sink=sink, through_mlps=False)
    assert seen.logits is not None  # read_side() sets them
    decision = float(decision_of(side.functional, seen.logits[None])[0])
    return _Direct(seen.neurons, given[::-1], (R_BTD[0] * seen.embed_TD).sum(-1), value, decision)


def _without(one: _Direct, nodes: Tensor) -> Tensor:
    """What nodes other than these add."""
    left = torch.ones(len(one.embedding_T), dtype=torch.bool)
    left[nodes] = False
    parts = [(a[left] * d[left]).double().sum() for a, d in zip(one.values, one.given, strict=True)]
    return torch.stack([*parts, one.embedding_T[left].double().sum()]).sum()


def strongest(mean: Difference, count: int = SHOWN) -> list[tuple[int, int]]:
    """The (layer, neuron) whose contribution changes most, either sign."""
    change_LF = (mean.activation_SLF + mean.weight_SLF).sum(0)
    width = change_LF.shape[1]
    return [(int(i) // width, int(i) % width) for i in change_LF.abs().flatten().topk(count).indices]


def average(found: Sequence[Difference]) -> Difference:
    """The mean over cases."""
    names = Difference.__slots__
    return Difference(*(torch.stack([getattr(one, name) for one in found]).mean(0) for name in names))


def quantities(
    found: Sequence[Difference], plots: Sequence[str], chosen: Sequence[tuple[int, int]], segments: Sequence[str]
) -> tuple[Named, ...]:
    """The difference over cases: whole, by part, by segment, by layer, and of chosen neurons, with t intervals over
    plots. The neurons are to be chosen on other cases than these.
    """

    def named(name: str, values: Sequence[Tensor], note: str = "") -> Named:
        return Named(name=name, quantity=cluster_mean([float(v) for v in values], plots, unit=UNIT), note=note)

    rows = [
        named("difference", [one.whole + one.entropy for one in found], "second minus first; the sum of these parts"),
        named("activation part", [one.activation_SLF.sum() for one in found], "how differently neurons fire"),
        named("weight part", [one.weight_SLF.sum() for one in found], "how differently what they write is read"),
        named("embedding part", [one.embedding_S.sum() for one in found]),
    ]
    if any(bool(one.rest) for one in found):
        rows.append(named("without counterpart", [one.rest for one in found], "tokens that do not align"))
    rows.append(named("entropy part", [one.entropy for one in found], "of distributions that contributions hold still"))
    for part in ("activation", "weight"):
        tables = [getattr(one, f"{part}_SLF") for one in found]
        rows += [named(f"{part} part in {label}", [t[s].sum() for t in tables]) for s, label in enumerate(segments)]
        rows += [
            named(f"{part} part in layer {layer}", [t[:, layer].sum() for t in tables])
            for layer in range(tables[0].shape[1])
        ]
        rows += [named(f"{part} part of neuron {l}.{i}", [t[:, l, i].sum() for t in tables]) for l, i in chosen]  # noqa: E741
    return tuple(rows)
