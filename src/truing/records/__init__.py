"""Frozen values that flow between stages. Bytes from outside are parsed here and nowhere else."""

from __future__ import annotations

import json
from typing import Any

from truing.errors import RecordError
from truing.records.base import Id, Record, Value, canonical, digest, digest_of
from truing.records.cases import check_fit, check_size, circuit_of
from truing.records.circuit import ADDS, EVERYWHERE, NODE_KINDS, TAKES, Circuit, NodeKind, rest_of_all
from truing.records.kinds import (
    BY_LAYER,
    KINDS,
    Answer,
    Arrays,
    Case,
    CaseGraph,
    Claim,
    Clause,
    Contrast,
    Curve,
    Decision,
    Deed,
    Design,
    Drawn,
    Edge,
    Episodes,
    Gate,
    GateVerdict,
    Graph,
    Grid,
    Half,
    Label,
    Labels,
    Loop,
    Measurement,
    Mediation,
    Message,
    Node,
    Outcome,
    Pair,
    Pairs,
    Played,
    Replies,
    Row,
    Said,
    Sample,
    Scores,
    Spec,
    Standing,
    Step,
    Stratum,
    Surface,
    Surfaces,
    Target,
    Tool,
    ToolCall,
    Training,
    Turn,
    Unit,
    Verdict,
)
from truing.records.neurons import Called, Labelled, Place, Supernode
from truing.records.values import Blob, Estimate, Named, Quantity, Unmeasured, blobs_in

__all__ = [
    "ADDS", "BY_LAYER", "EVERYWHERE", "KINDS", "NODE_KINDS", "TAKES", "Answer", "Arrays", "Blob", "Called", "Case",
    "CaseGraph", "Circuit", "Claim", "Clause", "Contrast", "Curve", "Decision", "Deed", "Design", "Drawn", "Edge",
    "Episodes", "Estimate", "Gate", "GateVerdict", "Graph", "Grid", "Half", "Id", "Label", "Labelled", "Labels", "Loop",
    "Measurement", "Mediation", "Message", "Named", "Node", "NodeKind", "Outcome", "Pair", "Pairs", "Place", "Played",
    "Quantity", "Record", "Replies", "Row", "Said", "Sample", "Scores", "Spec", "Standing", "Step", "Stratum",
    "Supernode", "Surface", "Surfaces", "Target", "Tool", "ToolCall", "Training", "Turn", "Unit", "Unmeasured", "Value",
    "Verdict", "blobs_in", "canonical", "check_fit", "check_size", "circuit_of", "digest", "digest_of", "parse",
    "rest_of_all",
]  # fmt: skip


def parse(data: bytes, *, id: Id | None = None) -> Record:  # noqa: A002 - the field's own name
    """A record from bytes, from a store or from outside. RecordError names what does not fit.

    With `id`, the bytes must be canonical and hash to it.
    """
    try:
        plain: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(plain, dict) or plain.keys() != {"kind", "schema", "parents", "body"}:
        raise RecordError("a record has the four keys kind, schema, parents and body")
    kind = KINDS.get(plain["kind"]) if isinstance(plain["kind"], str) else None
    if kind is None:
        raise RecordError(f"unknown kind of record {plain['kind']!r}; known: {', '.join(sorted(KINDS))}")
    if plain["schema"] != kind.schema_number:
        raise RecordError(
            f"{kind.kind} record has schema {plain['schema']!r}, this version of Truing reads {kind.schema_number}"
        )
    record = kind.from_plain(plain)
    if id is not None and (digest(data) != id or record.id != id):
        raise RecordError(f"{kind.kind} record {id[:12]} does not have the content that its id names (altered?)")
    return record
