"""Whether the graph of a case is one of that case. Both may come from anywhere, and neither names the other wholly."""

from __future__ import annotations

from truing.errors import RecordError
from truing.records.base import digest
from truing.records.circuit import EVERYWHERE, Circuit
from truing.records.kinds import CaseGraph

MOST_LAYERS = 4096
MOST_BYTES = 256 << 20
"""Of one graph that is read as a whole."""


def circuit_of(case: CaseGraph, data: bytes) -> Circuit:
    """The graph that a case names, out of its bytes. RecordError where they are others, or do not fit the case."""
    check_size(case)
    if len(data) != case.graph.size or digest(data) != case.graph.digest:
        raise RecordError(f"the graph of case {case.id[:12]} has {len(data)} bytes of digest {digest(data)[:12]}; the"
                          f" record names {case.graph.size} bytes of {case.graph.digest[:12]} (altered?)")  # fmt: skip
    circuit = Circuit.unpacked(data)
    check_fit(case, circuit)
    return circuit


def check_size(case: CaseGraph) -> None:
    """RecordError where the graph of a case is too large to be read as a whole."""
    if case.graph.size > MOST_BYTES:
        raise RecordError(f"the graph of case {case.id[:12]} has {case.graph.size} bytes; at most {MOST_BYTES} are"
                          " read. Prune it further")  # fmt: skip


def check_fit(case: CaseGraph, circuit: Circuit) -> None:
    """RecordError where tokens of a case do not fit each other, or its graph has places that the case does not."""
    said, count = f"case {case.id[:12]}", len(case.tokens)
    if not len(case.before) == len(case.segments) == count or not 0 <= case.prompt <= count:
        raise RecordError(f"{said} has {count} tokens, {len(case.before)} places before them, {len(case.segments)}"
                          f" segments, and a prompt of {case.prompt}")  # fmt: skip
    if any(not EVERYWHERE <= before < place for place, before in enumerate(case.before)):
        raise RecordError(f"a token of {said} does not stand after the one that is before it")
    if not 0 < case.layers <= MOST_LAYERS:
        raise RecordError(f"{said} says that the model has {case.layers} layers; 1 to {MOST_LAYERS} are read")
    bounds = ((circuit.position_N, count - 1, "token"), (circuit.layer_N, case.layers, "layer"))
    for places, last, what in bounds:
        if not EVERYWHERE <= places.min() <= places.max() <= last:
            raise RecordError(f"the graph of {said} has {what}s from {places.min()} to {places.max()}; the case has"
                              f" {EVERYWHERE} to {last}")  # fmt: skip
    if circuit.influence_N.min() < 0:
        raise RecordError(f"the graph of {said} has an influence that is negative")
    _check_named(case, circuit, said)


def _check_named(case: CaseGraph, circuit: Circuit, said: str) -> None:
    """RecordError where labels, names or supernodes are of neurons that the graph does not have, or of one twice."""
    neurons = circuit.of("neuron").nonzero()[0].tolist()
    units, called = [one.unit for one in case.labels], [one.unit for one in case.names]
    there = {f"{circuit.layer_N[node]}.{circuit.index_N[node]}" for node in neurons}
    members = [node for group in case.supernodes for node in group.nodes]
    for what, some, known in (
        ("labels", units, there), ("names", called, there), ("supernodes", members, set(neurons)),
    ):  # fmt: skip
        if lost := [one for one in some if one not in known]:
            raise RecordError(f"{what} of {said} name {lost[0]}, which is no neuron of its graph")
        if len(set(some)) < len(some):
            raise RecordError(f"{what} of {said} name one neuron twice")
