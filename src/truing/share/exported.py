"""A case as an attribution graph in the JSON that Neuronpedia and circuit-tracer read.

Both know features of dictionaries, not neurons, and logits of one token, not decisions. What is mapped to what
stands in docs/reference/graphs.md. Ids here never collide, and nobody needs to parse them.
"""

# N nodes

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import truing
from truing.errors import RecordError
from truing.files import write_whole
from truing.records import ADDS, NODE_KINDS, TAKES, CaseGraph, Circuit, NodeKind, check_fit, rest_of_all
from truing.text import one_line, short

MOST_BYTES = 100 << 20
"""Neuronpedia takes no larger file."""
COMPATIBLE = {
    "embedding": "embedding", "bias": "bias", "neuron": "cross layer transcoder",
    "remainder": "mlp reconstruction error", "decision": "logit",
}  # fmt: skip
NATIVE = COMPATIBLE | {"neuron": "mlp neuron"}
"""Neuronpedia's scores know no such type; it shows them beside logits."""
UNITS: dict[NodeKind, str] = {
    "embedding": "token", "bias": "bias", "neuron": "mlp_neuron", "remainder": "remainder", "decision": "decision",
}  # fmt: skip
PLACEHOLDER = "placeholder"
WORDS = 4
"""Tokens of a neuron's label that stand in its name."""


def neuronpedia(case: CaseGraph, circuit: Circuit, *, scan: str = "", native: bool = False) -> dict[str, Any]:
    """The graph as plain data; the same case gives the same.

    `scan`: the model's name on Neuronpedia; else the id of the target. `native`: neurons have a type of their own,
    rather than the one that both programs take for features; features have theirs either way. RecordError where the
    graph does not fit the case.
    """
    check_fit(case, circuit)
    ids = node_ids(case, circuit)
    nodes = _nodes(case, circuit, ids, NATIVE if native and case.unit == "neuron" else COMPATIBLE)
    links = [
        {"source": ids[source], "target": ids[target], "weight": weight}
        for source, target, weight in zip(
            circuit.source_E.tolist(), circuit.target_E.tolist(), circuit.weight_E.tolist(), strict=True
        )
    ]
    groups = [[short(one.name), *(ids[node] for node in one.nodes)] for one in case.supernodes]
    q_params = {"pinnedIds": [], "supernodes": groups, "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": _metadata(case, scan), "qParams": q_params, "nodes": nodes, "links": links}


def write_neuronpedia(
    path: Path, case: CaseGraph, circuit: Circuit, *, scan: str = "", native: bool = False
) -> dict[str, Any]:
    """Write that file, whole or not at all, and give it. RecordError where it is larger than Neuronpedia takes."""
    graph = neuronpedia(case, circuit, scan=scan, native=native)
    data = json.dumps(graph, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MOST_BYTES:
        raise RecordError(f"the graph of case {case.id[:12]} has {len(data)} bytes as JSON; Neuronpedia takes at most"
                          f" {MOST_BYTES}. Prune it further")  # fmt: skip
    write_whole(path, data)
    return graph


def node_ids(case: CaseGraph, circuit: Circuit) -> list[str]:
    """An id for each node. Remainders are R_layer_position: as errors they would have the ids of neurons of layer 0."""
    last = max(0, len(case.tokens) - 1)
    found = []
    for kind, layer, position, index in _rows(circuit):
        if kind == "neuron":
            found.append(f"{layer}_{index}_{position}")
        elif kind == "embedding":
            found.append(f"E_{index}_{position}")
        elif kind == "decision":
            found.append(f"{case.layers + 1}_0_{last}")
        elif kind == "remainder" and layer < 0:
            found.append(rest_of_all(index))
        else:
            places = [str(place) for place in (layer, position) if place >= 0]
            found.append("_".join(["R" if kind == "remainder" else "B", *places]))
    if len(set(found)) < len(found):
        raise RecordError(f"two nodes of the graph of case {case.id[:12]} stand at the same place")
    return found


def cantor(x: int, y: int) -> int:
    """One number for two of at least 0: how `feature` tells layer and index in schema version 1."""
    return (x + y) * (x + y + 1) // 2 + y


def _rows(circuit: Circuit) -> list[tuple[NodeKind, int, int, int]]:
    kinds = [NODE_KINDS[kind] for kind in circuit.kind_N.tolist()]
    return list(
        zip(kinds, circuit.layer_N.tolist(), circuit.position_N.tolist(), circuit.index_N.tolist(), strict=True)
    )


def _nodes(case: CaseGraph, circuit: Circuit, ids: list[str], types: dict[str, str]) -> list[dict[str, Any]]:
    ranks, values = _ranks(circuit), circuit.value_N.tolist()
    said = _labels(case)
    nodes = []
    for number, (kind, layer, position, index) in enumerate(_rows(circuit)):
        node = _place(case, kind, layer, position, index) | {
            "node_id": ids[number], "feature_type": types[kind], "run_idx": 0,
            "unit": "feature" if kind == "neuron" and case.unit == "feature" else UNITS[kind],
            "reverse_ctx_idx": 0, "token_prob": 0.0, "is_target_logit": False,
            "influence": None if kind == "decision" else ranks[number],
            "share": float(circuit.influence_N[number]), "activation": values[number] if kind == "neuron" else None,
        }  # fmt: skip
        node["clerp"] += said.get((layer, index), "") if kind == "neuron" else ""
        if kind == "decision":
            node |= {"token_prob": probability(case), "is_target_logit": True, "value": values[number]}
        nodes.append(node)
    if not any(kind != "decision" and layer >= 1 for kind, layer, _, _ in _rows(circuit)):
        nodes.insert(-1, _placeholder(types))
    return nodes


def _labels(case: CaseGraph) -> dict[tuple[int, int], str]:
    """What follows a neuron's name: the tokens of its label where it is high, else those where it is low."""
    found = {}
    for one in case.labels:
        high = [token for token, value in one.tokens if value > 0]
        words = (high or [token for token, _ in one.tokens])[:WORDS]
        said = ", ".join(f"'{one_line(token)[:20]}'" for token in words)
        found[one.layer, one.index] = f": {'' if high else 'low at '}{said}" if said else ""
    return found


def _place(case: CaseGraph, kind: NodeKind, layer: int, position: int, index: int) -> dict[str, Any]:
    """What the programs know a node by; `ctx_idx` and `layer` are 0 for what is everywhere, which `everywhere` says."""
    at, high = max(0, position), max(0, layer)
    match kind:
        case "neuron":
            return {"feature": cantor(high, index) if index >= 0 else -1, "layer": str(high), "ctx_idx": at,
                    "jsNodeId": f"{high}_{index}-0", "clerp": f"{case.unit} {high}.{index}"}  # fmt: skip
        case "embedding":
            return {"feature": at, "layer": "E", "ctx_idx": at, "jsNodeId": f"E_{index}-{at}", "clerp": "",
                    "token_id": index}  # fmt: skip
        case "decision":
            last = max(0, len(case.tokens) - 1)
            return {"feature": 0, "layer": str(case.layers + 1), "ctx_idx": last, "jsNodeId": f"L_0-{last}",
                    "clerp": f'Output "{_said(case)}" (p={probability(case):.3f})'}  # fmt: skip
    side = {ADDS: 1, TAKES: -1}.get(index, 0) if kind == "remainder" and layer < 0 else 0
    which = {1: " and adds", -1: " and takes away", 0: ""}[side]
    named = "biases" if kind == "bias" else f"other {case.unit}s of the layer" if layer >= 0 else f"not listed{which}"
    return {"feature": -1, "layer": str(high), "ctx_idx": at, "jsNodeId": f"{UNITS[kind]}_{layer}_{position}-{index}",
            "clerp": named, "everywhere": layer < 0 or position < 0, "side": side}  # fmt: skip


def _placeholder(types: dict[str, str]) -> dict[str, Any]:
    """The viewer fails where no node but logits is above layer 0."""
    return {
        "node_id": "R_placeholder", "feature": -1, "layer": "1", "ctx_idx": 0, "feature_type": types["remainder"],
        "jsNodeId": "placeholder-0", "clerp": "nothing runs through this", "unit": PLACEHOLDER, "run_idx": 0,
        "reverse_ctx_idx": 0, "token_prob": 0.0, "is_target_logit": False, "influence": 1.0, "activation": None,
    }  # fmt: skip


def _ranks(circuit: Circuit) -> list[float]:
    """The share of all influence that a node and those with more of it have: small where a node matters, shape (N,)."""
    influence = circuit.influence_N.astype(np.float64).copy()
    influence[-1] = 0.0
    order = np.argsort(-influence, kind="stable")
    found = np.ones(len(influence))
    found[order] = influence[order].cumsum() / max(influence.sum(), 1e-30)
    return [round(min(1.0, rank), 9) for rank in found.tolist()]


def probability(case: CaseGraph) -> float:
    """The logistic function of the decision: what p means here, where there is no single token to have one."""
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, case.value))))


def _said(case: CaseGraph) -> str:
    """The decision as the text of a token: a viewer splits it at "(p=" and at quotation marks."""
    sides = (", ".join(texts[:3]) for texts in (case.actions, case.alternatives))
    said = " rather than ".join(sides).replace('"', "'").replace("(p=", "(p =").replace("\n", "⏎")
    return said if len(said) <= 120 else said[:119] + "…"


def _nodes_are(case: CaseGraph) -> str:
    return "MLP neurons" if case.unit == "neuron" else case.basis


def _missing(case: CaseGraph) -> str:
    return "" if case.unit == "neuron" else " and what no feature stands for"


def _metadata(case: CaseGraph, scan: str) -> dict[str, Any]:
    nodes, edges = case.kept
    about = (
        f"Truing, case {case.id}. Verdict of the causal checks: {case.verdict}: {case.why}. Nodes are"
        f" {_nodes_are(case)} under linear rules ({case.rule}), errors are {case.unit}s that are not"
        f" listed{_missing(case)}, and the one logit is a decision between texts. One case illustrates; it is no"
        " evidence for a claim."
    )
    return {
        "slug": f"truing-{case.id[:12]}", "scan": scan or case.target, "transcoder_list": [],
        "prompt_tokens": list(case.tokens), "prompt": "".join(case.tokens[: case.prompt]), "node_threshold": nodes,
        "schema_version": 1,
        "info": {"description": about, "generator": {"name": "truing", "version": truing.__version__}},
        "generation_settings": {"max_n_logits": 1, "max_feature_nodes": case.selected},
        "pruning_settings": {"node_threshold": nodes, "edge_threshold": edges},
        "truing": {
            "case": case.id, "target": case.target, "layers": case.layers, "prompt": case.prompt,
            "before": list(case.before), "segments": list(case.segments), "value": case.value,
            "accounted": case.accounted, "closure_error": case.closure_error, "replacement": case.replacement,
            "completeness": case.completeness, "verdict": case.verdict,
        },
    }  # fmt: skip
