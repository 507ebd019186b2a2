"""Attribution graphs as arrays: what every node adds to every other. They stand in files that records name.

Nodes are in order: a source stands before what it adds to. What a node's inputs add up to is its value, to rounding:
whatever is not listed one by one is in a remainder.
"""

# N nodes  E edges

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from truing.errors import RecordError

if TYPE_CHECKING:  # a check of a signature needs no arrays, and loads none
    import numpy as np
    from numpy.typing import NDArray

NodeKind = Literal["embedding", "bias", "neuron", "remainder", "decision"]
NODE_KINDS: tuple[NodeKind, ...] = ("embedding", "bias", "neuron", "remainder", "decision")
"""Their places are the numbers in `kind_N`. embedding: a token; bias: all biases and constants of the model; neuron: an
MLP activation at one position; remainder: neurons of a layer at a position that are not listed one by one; decision:
what is explained."""
EVERYWHERE = -1
"""Position of a node that has none, and layer of one that is in none."""
ADDS, TAKES = 0, 1
"""Index of a remainder of all layers: of what adds to its targets, and of what takes away; in one, they would cancel
out. Older files, and those of other programs, have one of both, without an index."""
_TYPES = {
    "kind_N": "int8", "layer_N": "int32", "position_N": "int32", "index_N": "int32", "value_N": "float32",
    "influence_N": "float32", "source_E": "int32", "target_E": "int32", "weight_E": "float32",
}  # fmt: skip
MOST = 50_000_000
"""Nodes or edges; a file that says more is refused."""


@dataclass(frozen=True, slots=False, eq=False)
class Circuit:
    """Nodes and signed edges. Weights and values are in the unit of the target: activation, or nats (per token)."""

    kind_N: NDArray[np.int8]
    layer_N: NDArray[np.int32]
    """The layer of a neuron or remainder, -1 for embeddings, biases and the remainder of all layers; the number of
    layers for the decision."""
    position_N: NDArray[np.int32]
    """Place in the text, counted from 0; -1 where there is none."""
    index_N: NDArray[np.int32]
    """Which neuron of its layer; the token of an embedding; ADDS or TAKES of a remainder of all layers; else -1."""
    value_N: NDArray[np.float32]
    """Activation of a neuron, value of the decision; 0 for others."""
    influence_N: NDArray[np.float32]
    """The share of the decision's inputs, direct and indirect, that runs through a node of this graph; 0 to 1."""
    source_E: NDArray[np.int32]
    target_E: NDArray[np.int32]
    weight_E: NDArray[np.float32]

    def __post_init__(self) -> None:
        import numpy as np

        arrays = {name: getattr(self, name) for name in _TYPES}
        for name, array in arrays.items():
            if array.dtype.name != _TYPES[name] or array.ndim != 1:
                raise RecordError(f"{name} of a graph is {array.ndim}-dimensional {array.dtype.name}; it must be a list"
                                  f" of {_TYPES[name]}")  # fmt: skip
        for end in "NE":
            lengths = {name: len(array) for name, array in arrays.items() if name.endswith(f"_{end}")}
            if len(set(lengths.values())) > 1 or max(lengths.values()) > MOST:
                raise RecordError(f"the arrays of a graph do not fit each other: {lengths}")
        if not all(np.isfinite(array).all() for array in (self.value_N, self.influence_N, self.weight_E)):
            raise RecordError("a graph holds values, influences or weights that are not finite")
        decisions = (self.kind_N == NODE_KINDS.index("decision")).nonzero()[0].tolist()
        if decisions != [len(self) - 1]:
            raise RecordError(f"a graph has one decision, which is its last node; this one has {len(decisions)}")
        if not 0 <= self.kind_N.min() <= self.kind_N.max() < len(NODE_KINDS):
            raise RecordError(f"a graph holds a node of unknown kind {int(self.kind_N.max())}; known: 0 to 4")
        if len(self.source_E) and not (
            self.source_E.min() >= 0 and self.target_E.max() < len(self) and (self.source_E < self.target_E).all()
        ):
            raise RecordError("an edge of a graph does not go from a node to a later one")

    def __len__(self) -> int:
        return len(self.kind_N)

    def of(self, kind: NodeKind) -> NDArray[np.bool_]:
        """Which nodes are of a kind, shape (N,)."""
        found: NDArray[np.bool_] = self.kind_N == NODE_KINDS.index(kind)
        return found

    def normalized(self) -> NDArray[np.float64]:
        """Each edge's |weight| over the sum of |weight| into the same target, shape (E,)."""
        import numpy as np

        size = np.abs(self.weight_E.astype(np.float64))
        total = np.bincount(self.target_E, weights=size, minlength=len(self))
        found: NDArray[np.float64] = size / np.maximum(total, 1e-30)[self.target_E]
        return found

    def closure(self) -> float:
        """The largest |sum of a node's inputs - its value| over the sum of their absolute values."""
        import numpy as np

        weight_E = self.weight_E.astype(np.float64)
        total, size = (np.bincount(self.target_E, weights=w, minlength=len(self)) for w in (weight_E, np.abs(weight_E)))
        counted = self.of("neuron") | self.of("decision")
        return float((np.abs(total - self.value_N)[counted] / np.maximum(size[counted], 1e-30)).max())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each node that says what it is, unique in the graph."""
        short = dict(zip(NODE_KINDS, ("E", "B", "N", "R", "D"), strict=True))
        return tuple(
            "_".join([short[NODE_KINDS[k]], *(str(n) for n in (layer, position, index) if n != EVERYWHERE)])
            if NODE_KINDS[k] != "remainder" or layer != EVERYWHERE else rest_of_all(index)
            for k, layer, position, index in zip(
                self.kind_N.tolist(), self.layer_N.tolist(), self.position_N.tolist(), self.index_N.tolist(),
                strict=True,
            )
        )  # fmt: skip

    def packed(self) -> bytes:
        """The arrays as a safetensors file."""
        import numpy as np
        from safetensors.numpy import save

        packed: bytes = save({name: np.ascontiguousarray(getattr(self, name)) for name in _TYPES})
        return packed

    @classmethod
    def unpacked(cls, data: bytes) -> Circuit:
        """The arrays of a file from anywhere. RecordError where they are no graph."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            found = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise RecordError(f"the arrays of a graph do not parse: {str(error)[:200]}") from error
        if set(found) != set(_TYPES):
            raise RecordError(f"a graph has the arrays {', '.join(_TYPES)}; the file has {sorted(found)[:12]}")
        return cls(**{name: found[name] for name in _TYPES})


def rest_of_all(index: int) -> str:
    """The name of a remainder of all layers."""
    return {ADDS: "R_adds", TAKES: "R_takes"}.get(index, "R")


__all__ = ["ADDS", "EVERYWHERE", "NODE_KINDS", "TAKES", "Circuit", "NodeKind", "rest_of_all"]
