"""How much of a graph runs through each node and edge, and what can be left out of it.

Equations: Ameisen et al. 2025, "Circuit Tracing", sections on graph pruning and on scores. Unlike there, what is left
out is not forgotten: it counts as error, and the accounts of the smaller graph close as well.
"""

# N nodes  E edges

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from truing.records import ADDS, EVERYWHERE, NODE_KINDS, TAKES, Circuit

Floats = NDArray[np.float64]
BINS = 512


@dataclass(frozen=True, slots=True)
class Scores:
    """How much is explained by tokens and biases rather than by remainders; both 0 to 1, remainders count as error.

    replacement: the share of influence that ends in them; completeness: the share of the inputs of nodes, weighted by
    their influence, that are no remainders.
    """

    replacement: float
    completeness: float


def influence(circuit: Circuit) -> Floats:
    """The share of the decision's inputs, direct and indirect, that runs through each node; 1 for the decision; (N,).

    w (1 - N)^-1, with N the normalized edges and w the decision. Nodes are in order, so one walk back is exact.
    """
    found = np.zeros(len(circuit))
    found[-1] = 1.0
    share_E = circuit.normalized()
    if not len(share_E):
        return found
    order = np.argsort(-circuit.target_E, kind="stable")
    targets, starts = np.unique(-circuit.target_E[order], return_index=True)
    for target, start, stop in zip(-targets, starts, [*starts[1:], len(order)], strict=True):
        edges = order[start:stop]
        np.add.at(found, circuit.source_E[edges], found[target] * share_E[edges])
    return found


def scores(circuit: Circuit, influence_N: Floats | None = None) -> Scores:
    """Replacement and completeness scores."""
    through = influence(circuit) if influence_N is None else influence_N
    errors = circuit.of("remainder")
    explained = through[circuit.of("embedding") | circuit.of("bias")].sum()
    inputs = np.bincount(circuit.target_E, minlength=len(circuit)) > 0
    wrong = np.bincount(
        circuit.target_E, weights=circuit.normalized() * errors[circuit.source_E], minlength=len(circuit)
    )
    whole = through[inputs].sum()
    return Scores(
        replacement=float(explained / max(explained + through[errors].sum(), 1e-30)),
        completeness=float(((1 - wrong[inputs]) * through[inputs]).sum() / max(whole, 1e-30)),
    )


def closure(circuit: Circuit) -> float:
    """The largest |sum of a node's inputs - its value| over the sum of their absolute values."""
    return circuit.closure()


def least(values: Floats, share: float) -> float:
    """The value v such that those of at least v, the largest ones, first sum to a share of the whole.

    Found in a histogram of magnitudes, and exactly in its one bin that matters: nothing is sorted as a whole.
    """
    some = values[values > 0]
    if not len(some) or share >= 1:
        return 0.0
    wanted, above = share * some.sum(), 0.0
    while len(some) > BINS:
        low, high = np.log(some.min()), np.log(some.max())
        if high - low < 1e-9:
            return float(some.min())
        bins = np.minimum(((np.log(some) - low) * (BINS / (high - low))).astype(np.int64), BINS - 1)
        sums = np.bincount(bins, weights=some, minlength=BINS)[::-1].cumsum() + above
        place = int(np.searchsorted(sums, wanted))
        above = float(sums[place - 1]) if place else above
        inside = some[bins == BINS - 1 - min(place, BINS - 1)]
        if len(inside) == len(some):
            break
        some = inside
    ordered = np.sort(some)[::-1]
    place = int(np.searchsorted(ordered.cumsum() + above, wanted))
    return float(ordered[min(place, len(ordered) - 1)])


def prune(circuit: Circuit, *, nodes: float = 0.8, edges: float = 0.98) -> Circuit:
    """The nodes that carry so much of the influence, and the edges between them that do.

    Tokens and the decision stay. What is left out of a node's inputs is in the remainders of all layers, what adds in
    one and what takes away in the other, so that the sum is its value as before, and the sum of absolute contributions
    too. Neurons that nothing reads, or that nothing is listed for, are left out.
    """
    through = influence(circuit)
    always = circuit.of("embedding") | circuit.of("decision")
    kept_N = always | (through >= least(through[~always], nodes))
    inside = kept_N[circuit.source_E] & kept_N[circuit.target_E]
    weight_E = np.where(inside, circuit.weight_E, 0)
    some = _with(circuit, weight_E)
    score_E = some.normalized() * influence(some)[circuit.target_E]
    kept_E = inside & (score_E >= least(score_E, edges))
    inner, leaves = circuit.of("neuron"), circuit.of("remainder") | circuit.of("bias")
    while True:
        reads = np.bincount(circuit.source_E[kept_E], minlength=len(circuit)) > 0
        fed = np.bincount(circuit.target_E[kept_E], minlength=len(circuit)) > 0
        lost = kept_N & ((inner & ~(reads & fed)) | (leaves & ~reads))
        if not lost.any():
            return _cut(circuit, kept_N, kept_E)
        kept_N &= ~lost
        kept_E &= kept_N[circuit.source_E] & kept_N[circuit.target_E]


def _with(circuit: Circuit, weight_E: NDArray[np.float32]) -> Circuit:
    return replace(circuit, weight_E=weight_E.astype(np.float32))


def _cut(circuit: Circuit, kept_N: NDArray[np.bool_], kept_E: NDArray[np.bool_]) -> Circuit:
    """The part of a graph, with what each node lost in its first two nodes, the remainders of all layers."""
    # The old ones are of what is lost.
    kept_N = kept_N & ~(circuit.of("remainder") & (circuit.layer_N == EVERYWHERE))
    kept_E = kept_E & kept_N[circuit.source_E]
    place_N = np.cumsum(kept_N) + 1  # 0 and 1 are the remainders
    source_E, target_E, weight_E = ([array] for array in (place_N[circuit.source_E[kept_E]],
                                    place_N[circuit.target_E[kept_E]], circuit.weight_E[kept_E]))  # fmt: skip
    for rest, side in ((ADDS, circuit.weight_E > 0), (TAKES, circuit.weight_E < 0)):
        lost_E = side & ~kept_E & kept_N[circuit.target_E]
        lost_N = np.bincount(circuit.target_E[lost_E], weights=circuit.weight_E[lost_E], minlength=len(circuit))
        targets = lost_N.nonzero()[0]
        source_E.append(np.full(len(targets), rest))
        target_E.append(place_N[targets])
        weight_E.append(lost_N[targets].astype(np.float32))

    def nodes(array: NDArray[np.generic], *first: float) -> NDArray[np.generic]:
        return np.concatenate([np.array(first, dtype=array.dtype), array[kept_N]])

    remainder = NODE_KINDS.index("remainder")
    found = Circuit(
        nodes(circuit.kind_N, remainder, remainder),  # type: ignore[arg-type]
        nodes(circuit.layer_N, EVERYWHERE, EVERYWHERE),  # type: ignore[arg-type]
        nodes(circuit.position_N, EVERYWHERE, EVERYWHERE),  # type: ignore[arg-type]
        nodes(circuit.index_N, ADDS, TAKES), nodes(circuit.value_N, 0, 0),  # type: ignore[arg-type]
        nodes(circuit.influence_N, 0, 0),  # type: ignore[arg-type]
        np.concatenate(source_E).astype(np.int32), np.concatenate(target_E).astype(np.int32), np.concatenate(weight_E),
    )  # fmt: skip
    # What ran through neurons that are gone runs through the remainders now.
    return replace(found, influence_N=influence(found).astype(np.float32))
