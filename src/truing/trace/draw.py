"""The effect graph: what inputs and neurons add to each other and to the decision, first cell minus second.

Nodes are (layer, neuron, segment), inputs by segment, and one remainder per segment that holds all other neurons, so
that the inputs of every node add up to its value: exact accounting, checked on every run.
"""

# B target nodes  T nodes of the tree  S segments  D width

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from truing.records import Edge, Node
from truing.targets.local.change import layers
from truing.targets.local.inside import Activations, llama_shaped
from truing.trace.accounts import TOGETHER, Account, Spot, by_autograd
from truing.trace.attribute import decision_cotangent, read_side
from truing.trace.linear import neuron_cotangent, recursion
from truing.trace.readable import check_units
from truing.trace.twins import Side, Twin

OUTPUT, BIASES = "decision", "biases"


@torch.no_grad()
def account(model: Any, side: Side, spots: Sequence[Spot], segments: Sequence[str]) -> Account:
    """All contributions into every spot and into the decision, in one batched recursion: of Llama-shaped blocks."""
    seen, kept = read_side(model, side)
    new = partial(torch.zeros, device=seen.embed_TD.device)
    where = {label: torch.tensor([s == label for s in side.segment_T]).to(seen.embed_TD) for label in segments}
    rows, nodes = len(spots) + 1, len(seen.embed_TD)
    R_BTD = new(rows, nodes, seen.embed_TD.shape[1])
    R_BTD[-1], value = decision_cotangent(model, side, seen, kept)
    flow = new(rows, len(spots) + 2 * len(segments), dtype=torch.double)
    absolute = new(rows, dtype=torch.double)
    where_ST = torch.stack([where[label] for label in segments])

    def inject(layer: int, R_BTD: Tensor) -> Tensor:
        R_BTD = R_BTD.clone()
        for row, (at, neuron, segment) in enumerate(spots):
            if at == layer:
                R_BTD[row] += neuron_cotangent(model, seen, layer, neuron) * where[segment][:, None]
        return R_BTD

    def sink(layer: int, after: Tensor, _: Tensor) -> None:
        down = model.model.layers[layer].mlp.down_proj.weight
        rest_BT = (after * (seen.neurons[layer] @ down.T)).sum(-1)
        for column, (at, neuron, segment) in enumerate(spots):
            if at == layer:
                part_BT = (after @ down[:, neuron]) * seen.neurons[layer][:, neuron] * where[segment]
                flow[:, column] += part_BT.sum(-1).double()
                absolute.add_(part_BT.abs().sum(-1).double())
                rest_BT -= part_BT
        flow[:, len(spots) : len(spots) + len(segments)] += (rest_BT @ where_ST.T).double()
        absolute.add_(rest_BT.abs().sum(-1).double())

    R_BTD = recursion(model, seen, R_BTD, sink=sink, through_mlps=False, inject=inject)
    inputs_BT = (R_BTD * seen.embed_TD).sum(-1)
    flow[:, len(spots) + len(segments) :] = (inputs_BT @ where_ST.T).double()
    absolute += inputs_BT.abs().sum(-1).double()
    values = torch.tensor([*_values(seen, spots, where), value], dtype=torch.double)
    flow, absolute = flow.cpu(), absolute.cpu()
    error = ((flow.sum(-1) - values).abs() / absolute.clamp(min=1e-12)).max()
    return Account(flow, values, float(error))


def _values(seen: Activations, spots: Sequence[Spot], where: dict[str, Tensor]) -> list[float]:
    return [float((seen.neurons[layer][:, i] * where[segment]).sum()) for layer, i, segment in spots]


def draw(
    model: Any,
    pairs: Sequence[Twin],
    spots: Sequence[Spot],
    segments: Sequence[str],
    *,
    keep: float = 0.98,
    at_once: int = TOGETHER,
) -> tuple[tuple[Node, ...], tuple[Edge, ...], float]:
    """Nodes, edges (smallest dropped until a share `keep` of the absolute flow is left) and the closure error.

    The mean over twins of the first cell's account minus the second's. By hand where blocks are Llama-shaped, else by
    autograd, so many targets `at_once`. TargetError for a spot that the model does not have.
    """
    check_units(model, (("neuron", layer, index) for layer, index, _ in spots))
    by_hand = llama_shaped(model)
    flow: Tensor | None = None
    values: Tensor | None = None
    errors: list[float] = []
    for twin in pairs:
        first, second = (
            account(model, side, spots, segments)
            if by_hand
            else by_autograd(model, side, spots, segments, at_once=at_once)
            for side in (twin.first, twin.second)
        )
        errors += [first.error, second.error]
        flow = first.flow - second.flow if flow is None else flow + first.flow - second.flow
        values = first.values - second.values if values is None else values + first.values - second.values
    assert flow is not None and values is not None  # noqa: PT018 - there are twins
    flow, values = flow / len(pairs), values / len(pairs)
    top = len(layers(model))
    names = [f"n{layer}.{i}.{segment}" for layer, i, segment in spots]
    nodes = [
        Node(id=name, kind="neuron", layer=layer, segment=segment, index=i, value=float(v), contribution=float(c))
        for name, (layer, i, segment), v, c in zip(names, spots, values, flow[-1], strict=False)
    ]
    for offset, kind in ((0, "rest"), (len(segments), "input")):
        for number, segment in enumerate(segments):
            direct = float(flow[-1, len(spots) + offset + number])
            name = f"{kind}.{segment}"
            names.append(name)
            level = -1 if kind == "input" else top // 2
            nodes.append(Node(id=name, kind=kind, layer=level, segment=segment, value=direct, contribution=direct))
    if len(names) < flow.shape[1]:
        given = float(flow[-1, -1])
        names.append(BIASES)
        if bool(flow[:, -1].any()):
            nodes.append(Node(id=BIASES, kind="bias", layer=-1, segment=BIASES, value=given, contribution=given))
    total = float(values[-1])
    nodes.append(Node(id=OUTPUT, kind="output", layer=top, segment="reply", value=total, contribution=total))
    return tuple(nodes), _edges(flow, names, [*names[: len(spots)], OUTPUT], keep), float(torch.tensor(errors).max())


def _edges(flow: Tensor, sources: Sequence[str], targets: Sequence[str], keep: float) -> tuple[Edge, ...]:
    order = flow.abs().flatten().argsort(descending=True, stable=True)
    share = flow.abs().flatten()[order].cumsum(0) / flow.abs().sum().clamp(min=1e-12)
    count = int((share < keep).sum()) + 1
    width = flow.shape[1]
    picked = [(int(i) // width, int(i) % width) for i in order[:count]]
    return tuple(
        Edge(source=sources[column], target=targets[row], weight=float(flow[row, column]))
        for row, column in picked
        if flow[row, column] != 0
    )
