"""Attribution: which heads and neurons carry the difference between twins, to first order under the linear rules."""

# L layers  H heads  F neurons  S segments  T nodes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.targets.local import Functional
from truing.targets.local.inside import Activations, read, units
from truing.trace.linear import head_cotangent, logit_cotangent, recursion
from truing.trace.twins import Side, Twin


@dataclass(frozen=True, slots=True)
class Attribution:
    """Per unit, summed over aligned positions: what of the effect it carries, and how much it changes at all.

    score = (value in first cell - value in second) * total derivative of the decision: nats per token; positive
    where the unit carries the effect. Shapes: heads (L, H), neurons (L, F); by segment: (S, L, F). The effect itself,
    the decision in the first cell minus that in the second, is a scalar.
    """

    heads: Tensor
    neurons: Tensor
    heads_change: Tensor
    neurons_change: Tensor
    neurons_by_segment: Tensor
    effect: Tensor


def read_side(model: Any, side: Side) -> tuple[Activations, Tensor]:
    """Activations of one side, and the nodes whose logits were kept."""
    kept_M = side.functional.before_M.unique()
    return read(model, side.functional.tree, kept_M), kept_M


def decision_cotangent(model: Any, side: Side, seen: Activations, kept_M: Tensor) -> tuple[Tensor, float]:
    """Cotangent of the decision at the end of the residual stream, and its value m (see linear.logit_cotangent)."""
    f = side.functional
    return logit_cotangent(model, seen, f.tree.ids_N[f.nodes_M], f.before_M, f.weight_M, kept_M)


def decision_value(f: Functional, logits_BMV: Tensor) -> Tensor:
    """The decision from logits at the kept nodes, for each row: shape (B,), nats per token."""
    _, row_M = f.before_M.unique(return_inverse=True)
    log_p = torch.log_softmax(logits_BMV.float(), -1)[:, row_M, f.tree.ids_N[f.nodes_M]]
    return (log_p.double() * f.weight_M.double()).sum(-1)


@torch.no_grad()
def attribute(model: Any, twin: Twin, segments: Sequence[str]) -> Attribution:
    """One backward recursion at the first cell, contracted with the differences to the second."""
    a, kept = read_side(model, twin.first)
    b, _ = read_side(model, twin.second)
    assert a.logits is not None and b.logits is not None  # noqa: PT018 - read() sets both
    effect = (
        decision_value(twin.first.functional, a.logits[None])[0]
        - decision_value(twin.second.functional, b.logits[None])[0]
    )
    heads, width = units(model, "head")
    onto, taken = twin.onto_T, twin.from_T
    index = {label: i for i, label in enumerate(segments)}
    segment_T = torch.tensor([index[twin.first.segment_T[int(t)]] for t in onto])
    found: dict[str, list[Tensor]] = {name: [] for name in ("heads", "neurons", "heads_change", "neurons_change", "by")}

    def sink(layer: int, after: Tensor, before: Tensor) -> None:
        down = model.model.layers[layer].mlp.down_proj.weight
        moved = a.neurons[layer][onto] - b.neurons[layer][taken]
        score_TF = moved * (after[0, onto] @ down)
        found["neurons"].append(score_TF.sum(0))
        found["neurons_change"].append(moved.abs().sum(0))
        found["by"].append(torch.zeros(len(segments), score_TF.shape[1]).index_add(0, segment_T, score_TF))
        moved = a.heads[layer][onto] - b.heads[layer][taken]
        score = moved * head_cotangent(model, layer, before[0, onto])
        found["heads"].append(score.sum(0).view(heads, width).sum(-1))
        found["heads_change"].append(moved.abs().sum(0).view(heads, width).sum(-1))

    R_TD, _ = decision_cotangent(model, twin.first, a, kept)
    recursion(model, a, R_TD[None], sink=sink, through_mlps=True)
    stacked = {name: torch.stack(rows[::-1]) for name, rows in found.items()}
    return Attribution(
        stacked["heads"],
        stacked["neurons"],
        stacked["heads_change"],
        stacked["neurons_change"],
        stacked["by"].transpose(0, 1).contiguous(),
        effect,
    )
