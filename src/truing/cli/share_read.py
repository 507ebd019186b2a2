"""`truing share read`: the graph of a case from another lab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import emit, json_option, store_option
from truing.text import short

if TYPE_CHECKING:
    from truing.records import Circuit
    from truing.share.graphs import Imported, Traced

CLOSES = 1e-3
"""Above this relative error the nodes of a graph are not what its edges add up to."""
SHOWN = 10
NO_RECORD = "a file of this kind is no record: it does not say which weights were read, nor what was checked"


@click.command("read", epilog="Example:  truing share read graph.json --store theirs")
@click.argument("file", type=click.Path(path_type=Path))
@store_option
@json_option
def command(file: Path, store_path: Path, *, as_json: bool) -> None:
    """Read the graph of a case from a file, check it, and say what it holds.

    One of Truing's (NAME.json, with NAME.safetensors beside it) is kept in the store with its target; who made it is
    not known, and nothing is computed again. The JSON of Neuronpedia or circuit-tracer is no record, and is not kept.
    Exit code 4, and nothing written, for a file that is damaged, or holds no graph.
    """
    from truing.share.graphs import Traced
    from truing.share.received import read_graph

    read = read_graph(file)
    if isinstance(read, Traced):
        kept, why = _kept(read, store_path)
        said, lines = _own(read)
    else:
        kept, why = (), NO_RECORD
        said, lines = _foreign(read)
    lines.append(f"kept      {kept[-1]}, with its target, in {store_path}" if kept else f"not kept: {why}")
    emit(said | {"kept": list(kept), "not_kept": why}, as_json=as_json, lines=lines)


def _kept(read: Traced, store_path: Path) -> tuple[tuple[str, ...], str]:
    """The ids of what is in the store now, or why nothing was put there."""
    from truing.share.received import absent, keep, records_of
    from truing.store import open_store

    if not read.circuit.closure() <= CLOSES:
        return (), "its accounts do not close, so that it is not what was traced"
    if lost := absent(records_of(read), store_path):
        return (), f"it rests on record {lost[0][:12]}, which neither the file nor the store {store_path} has"
    with open_store(store_path) as store:
        return keep(read, store), ""


def _own(read: Traced) -> tuple[dict[str, Any], list[str]]:
    case = read.case
    lines = [
        f"file      a case of {read.target.name} (weights {read.target.weights[:12]}), {case.id}",
        "digests   are those that the file names; who made it is not known",
        *_held(case.tokens, read.circuit),
        f"decision  {case.value:+.4f} nats/token, {_replies(case.actions)}"
        + (f" against {_replies(case.alternatives)}" if case.alternatives else ", as written"),
        f"says      {case.verdict}: {short(case.why)}",
    ]
    said = {"format": "truing-case/1", "id": case.id, "target": read.target.plain()["body"], **_sizes(read.circuit)}
    said["tokens"] = list(case.tokens)
    return said | {"case": case.plain()["body"]}, lines


def _foreign(read: Imported) -> tuple[dict[str, Any], list[str]]:
    lines = [
        f"file      of Neuronpedia or circuit-tracer, model {short(repr(read.scan), length=80)}",
        *_held(read.tokens, read.circuit, "; those of programs that prune, or leave out biases, do not"),
        f"decision  {float(read.circuit.value_N[-1]):+.4f}, of {len(read.logits)} logits",
        *(f"logit     {share:.3f} of {short(name, length=80)}" for name, share in read.logits[:SHOWN]),
        *(f"supernode {short(name, length=80)}: {len(nodes)} nodes" for name, nodes in read.supernodes[:SHOWN]),
    ]
    said = {
        "format": "neuronpedia", "scan": read.scan, "prompt": read.prompt, "tokens": list(read.tokens),
        **_sizes(read.circuit), "value": float(read.circuit.value_N[-1]), "logits": [list(one) for one in read.logits],
        "supernodes": [[name, [read.ids[node] for node in nodes]] for name, nodes in read.supernodes],
    }  # fmt: skip
    return said, lines


def _held(tokens: tuple[str, ...], circuit: Circuit, note: str = "") -> list[str]:
    sizes = _sizes(circuit)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sizes["nodes"].items())
    return [
        f"text      {len(tokens)} tokens: {short(repr(''.join(tokens)))}",
        f"graph     {len(circuit)} nodes ({kinds}), {sizes['edges']} edges",
        f"accounts  close to {sizes['closure_error']:.1e} of what is added, at the worst node{note}",
    ]


def _sizes(circuit: Circuit) -> dict[str, Any]:
    from truing.records import NODE_KINDS

    nodes = {kind: count for kind in NODE_KINDS if (count := int(circuit.of(kind).sum()))}
    return {"nodes": nodes, "edges": len(circuit.source_E), "closure_error": circuit.closure()}


def _replies(texts: tuple[str, ...]) -> str:
    return short(" | ".join(texts), length=80)
