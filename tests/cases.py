"""Random graphs of cases: right in form, with accounts that close."""

from __future__ import annotations

import numpy as np

from truing.records import (
    Blob,
    CaseGraph,
    Circuit,
    Curve,
    Estimate,
    Labelled,
    Named,
    Place,
    Supernode,
    Unmeasured,
    digest,
)

HOSTILE = "<script>alert(1)</script>"
WORDS = (
    " the",
    " capital",
    "\n",
    '"><img src=x onerror=alert(2)>',
    "</title>",
    " ",
    "",
    "\u202eabc",
    "\x00",
    "&amp;",
    "é",
)


def circuit(
    tokens: int = 9, layers: int = 4, neurons: int = 30, rests: int = 12, edges: int = 200, *, seed: int = 0
) -> Circuit:
    """Nodes at random places, and random edges to those that have inputs."""
    rng = np.random.default_rng(seed)
    rows = {(3, -1, -1, -1), (1, -1, -1, -1), *((0, -1, place, 100 + place) for place in range(tokens))}
    while len(rows) < tokens + 2 + rests:
        rows.add((3, int(rng.integers(layers)), int(rng.integers(tokens)), -1))
    while len(rows) < tokens + 2 + rests + neurons:
        rows.add((2, int(rng.integers(layers)), int(rng.integers(tokens)), int(rng.integers(1000))))
    nodes = [*sorted(rows, key=lambda row: (row[1], row[0] == 2, row)), (4, layers, -1, -1)]
    kind, layer, position, index = np.array(nodes).T
    fed = np.isin(kind, [2, 4]).nonzero()[0]
    pairs = set()
    for target in fed:  # at least one input each
        pairs.add((int(rng.integers((layer < layer[target]).sum())), int(target)))
    while len(pairs) < edges:
        target = int(rng.choice(fed))
        pairs.add((int(rng.integers((layer < layer[target]).sum())), target))
    source, into = np.array(sorted(pairs, key=lambda pair: pair[::-1])).T
    weight = rng.normal(size=len(source)).astype(np.float32)
    value = np.bincount(into, weights=weight, minlength=len(kind))
    size = np.abs(weight) / np.bincount(into, weights=np.abs(weight), minlength=len(kind))[into]
    influence = np.zeros(len(kind))
    influence[-1] = 1.0
    for edge in np.argsort(-into, kind="stable"):
        influence[source[edge]] += influence[into[edge]] * size[edge]
    return Circuit(
        kind.astype(np.int8), layer.astype(np.int32), position.astype(np.int32), index.astype(np.int32),
        value.astype(np.float32), influence.astype(np.float32), source.astype(np.int32), into.astype(np.int32), weight,
    )  # fmt: skip


def case(graph: Circuit, /, *, prompt: int | None = None, **more: object) -> CaseGraph:
    """A record about a graph: hostile tokens, two continuations, curves and checks."""
    count, data = int(graph.of("embedding").sum()), graph.packed()
    prompt = max(1, count - 3) if prompt is None else prompt
    before = [place - 1 for place in range(count)]
    if count - prompt > 1:
        before[-1] = prompt - 1
    share = Estimate(value=0.5, low=0.4, high=0.6, level=0.95, n=9, clusters=9, unit="share", estimator="bootstrap")
    said: dict[str, object] = {
        "target": "a" * 64, "claim": None, "tokens": tuple(WORDS[place % len(WORDS)] for place in range(count)),
        "before": tuple(before), "segments": tuple(HOSTILE if place < prompt else "reply" for place in range(count)),
        "prompt": prompt, "actions": (f"Yes {HOSTILE}",), "alternatives": ("No",), "value": 0.25,
        "accounted": float(graph.value_N[-1]), "rule": "relp", "basis": "neurons",
        "layers": int(graph.layer_N[-1]), "selected": int(graph.of("neuron").sum()), "candidates": 1000,
        "closure_error": 2e-7, "replacement": 0.4, "completeness": 0.6, "kept": (0.8, 0.98),
        "graph": Blob(digest=digest(data), size=len(data), media="safetensors"),
        "curves": tuple(
            Curve(name=name, ablation="mean", choice=choice, points=((1, 0.1), (10, 0.5), (100, 0.9)))
            for name in ("faithfulness", "completeness") for choice in ("influence", "random")
        ),
        "checks": (Named(name="kept", quantity=share), Named(name="left", quantity=Unmeasured(reason="no time"))),
        "verdict": "weak", "why": f"fewer than half {HOSTILE}",
    }  # fmt: skip
    return CaseGraph.model_validate(said | more)


def named(graph: Circuit, /, *, most: int = 64, **more: object) -> CaseGraph:
    """The case with labels of its neurons and two supernodes; hostile texts."""
    nodes = graph.of("neuron").nonzero()[0].tolist()
    units = sorted({(int(graph.layer_N[n]), int(graph.index_N[n])) for n in nodes})[:most]
    score = Estimate(value=0.3, low=0.2, high=0.4, level=0.95, n=900, clusters=32, unit="correlation", estimator="r")
    labels = tuple(
        Labelled(
            layer=layer, index=index, tokens=((f" w{layer}.{index}", 0.5), (HOSTILE, -0.25)), pairs=((" of the", 1.5),),
            strongest=(Place(before=HOSTILE, token=f" high{layer}.{index}", after="\u202e\n\x00", activation=2.5),),
            weakest=(Place(before="", token=f" low{layer}.{index}", after='"><img src=x>', activation=-2.5),),
            score=score, shuffled=Unmeasured(reason="one text"),
        )
        for layer, index in units
    )  # fmt: skip
    half = len(nodes) // 2
    some = (Supernode(name=f"{HOSTILE} for", nodes=tuple(nodes[:half])), Supernode(name="b", nodes=tuple(nodes[half:])))
    return case(graph, **{"labels": labels, "supernodes": some} | more)
