"""Attribution graphs beside circuit-tracer 0.5.0, on one random Llama and one random set of transcoders.

Both explain the difference of two logits at the end of a text by the same number of features, each in processes of its
own, in turn, with the same number of threads: from the text to a graph, dictionaries and model in memory, after a short
run. Extra memory is the most that a process held above what it held before. circuit-tracer explains both logits, each
less the mean of all, so that their rows differ by what is explained here; it keeps every edge, and rows here list those
above a ten-thousandth of what they explain, and sums of the others. That edges are the same is looked at before
anything is left out.

Graph files go both ways: circuit-tracer's own models of one read what `truing trace --export neuronpedia` writes of a
case in the bundled model, and what circuit-tracer writes is read here.

The peer's environment: benchmarks/peers/circuit-tracer/requirements.txt, its Python in TRUING_PEER_CIRCUIT_TRACER.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, Row, at_most

PEER = "circuit-tracer 0.5.0"
HOME = ROOT / "benchmarks" / "peers" / "circuit-tracer"
LENGTHS = (64, 256)
FEATURES = 512
"""Features that are explained."""
BATCHES = (1, 2, 4, 8, 16, 64)
"""Targets that the peer takes together: what it is tried with; each length takes its fastest."""
BATCH = 16
"""The same of ours, at every length; features are chosen anew after 64, as often as the peer does in batches of 16."""
CHOSEN = 64
TURNS = 3
THREADS = 1
WARM = 24
"""Tokens of the run before the clock."""
LAYERS, WIDTH, VOCABULARY = 6, 256, 2000
SETS = {"transcoders": 4096, "skip": 1024, "cross-layer": 1024}
"""Features of a layer: per-layer transcoders, the same with a linear path beside them, and cross-layer transcoders.
Time and memory are those of the first; of the others, edges are compared."""
FASTER, SMALLER, APART = 1.0, 4.0, 1e-3
"""Bars: times as fast at least, and with so many times less memory; edges of a target apart at most, of their size."""


def python() -> str | None:
    """The peer's Python, where there is one."""
    path = Path(os.environ.get("TRUING_PEER_CIRCUIT_TRACER", HOME / ".venv" / "bin" / "python"))
    return str(path) if path.is_file() else None


# -- what both are given -----------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """A model, sets of transcoders, and a text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=704, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(0.06 * noise if parameter.dim() == 2 else parameter + 0.1 * noise)
    model.save_pretrained(folder / "model")
    said = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(
        json.dumps(said | {"rope_theta": 10000.0})
    )  # as transformers 4 says it
    for name, count in SETS.items():
        _transcoders(folder / name, count)
    ids = [1, *torch.randint(3, VOCABULARY, (max(LENGTHS) - 1,)).tolist()]
    (folder / "case.json").write_text(json.dumps({"ids": ids, "targets": [17, 23]}))


def _transcoders(folder: Path, count: int) -> None:
    """A random set in circuit-tracer's layout, about one in a hundred features active. Its name says what it is."""
    import torch
    import yaml
    from safetensors.torch import save_file

    folder.mkdir()
    cross = folder.name == "cross-layer"
    for n in range(LAYERS):
        encoder = torch.randn(count, WIDTH)
        # Cross-layer features read what has not been through a norm, which is larger here.
        bias = (-2.8 if cross else -2.3) + 0.1 * torch.randn(count)
        encode = {"W_enc": encoder / encoder.norm(dim=1, keepdim=True), "b_enc": bias,
                  "b_dec": 0.02 * torch.randn(WIDTH)}  # fmt: skip
        decoder = 0.05 * torch.randn(count, LAYERS - n if cross else 1, WIDTH)
        if cross:
            save_file({f"{name}_{n}": t for name, t in encode.items()}, folder / f"W_enc_{n}.safetensors")
            save_file({f"W_dec_{n}": decoder}, folder / f"W_dec_{n}.safetensors")
            continue
        more = {"W_skip": 0.05 * torch.randn(WIDTH, WIDTH)} if folder.name == "skip" else {}
        save_file({**encode, "W_dec": decoder[:, 0].contiguous(), **more}, folder / f"layer_{n}.safetensors")
    kind, reads, writes = (("cross_layer_transcoder", "hook_resid_mid", "hook_mlp_out") if cross
                           else ("transcoder_set", "mlp.hook_in", "mlp.hook_out"))  # fmt: skip
    said = {"model_kind": kind, "feature_input_hook": reads, "feature_output_hook": writes}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))


# -- ours, in a process of its own -------------------------------------------------------------------------------------


def side(folder: Path, name: str) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """An engine for a length of the text, and the case."""
    import torch
    from transformers import LlamaForCausalLM

    from truing.targets.local import Functional
    from truing.targets.local.tree import plant
    from truing.trace.dictionaries import load
    from truing.trace.features import DictionaryEngine

    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval().requires_grad_(False)
    dictionaries = load(folder / name, model)
    case = json.loads((folder / "case.json").read_text())

    def engine(length: int) -> Any:
        ids, (a, b) = case["ids"][:length], case["targets"]
        tree, routes = plant([[*ids, a], [*ids, b]])
        nodes = torch.stack([route[length] for route in routes])
        return DictionaryEngine(model, Functional(tree, nodes, torch.tensor([1.0, -1.0]), length), dictionaries)

    return engine, case


def ours(folder: Path, name: str, tokens: int, features: int, batch: int) -> dict[str, Any]:
    """Time and memory of one graph, after a small one."""
    from truing.trace.influence import closure
    from truing.trace.select import assembled, select

    made, case = side(folder, name)

    def trace(length: int, count: int) -> tuple[Any, Any]:
        engine = made(length)
        graph = assembled(
            select(engine, count, batch=batch, rounds=max(1, CHOSEN // batch)),
            engine,
            [*case["ids"][:length], *case["targets"]],
        )
        return graph, engine

    trace(WARM, 2 * batch)
    began = resident()
    cpu, wall = time.process_time(), time.perf_counter()
    graph, engine = trace(tokens, features)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    active = sum(len(layer.value_S) for layer in engine.active)
    return {"wall": wall, "cpu": cpu, "extra": status("VmHWM") - began, "active": active,
            "selected": int(graph.of("neuron").sum()), "closure": closure(graph)}  # fmt: skip


def resident() -> float:
    """MiB in memory now, what was freed given back; from now on the peak is counted anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(name: str) -> float:
    """A line of the process's status, in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 2**10


def apart(folder: Path, name: str, file: Path, tokens: int) -> dict[str, float]:
    """How far edges are from the peer's, by kind: the largest difference of a target's edges over their size (norms).

    Of the first position the peer counts neither features nor errors; there is nothing to compare there.
    """
    import torch
    from safetensors.torch import load_file

    peer = load_file(file)
    engine = side(folder, name)[0](tokens)
    spots = [(layer, node, index) for layer, node, index in peer["features"].tolist()]
    K, L, T = len(spots), LAYERS, tokens
    values = torch.tensor([engine.value(spot) for spot in spots])
    order = sorted(range(K), key=lambda k: -spots[k][0])
    mine = torch.zeros(K + 1, K + (L + 1) * T)
    node_of = {spot: k for k, spot in enumerate(spots)}
    for start in range(0, K + 1, 64):
        some = [K, *order][start : start + 64]  # the decision first
        _fill(engine, [None if k == K else spots[k] for k in some], some, mine, node_of)
    A = peer["adjacency"]
    theirs = torch.cat([A[:K, : mine.shape[1]], (A[-2] - A[-1])[None, : mine.shape[1]]])
    kinds = {"feature": slice(0, K), "error": slice(K, K + L * T), "embedding": slice(K + L * T, None)}
    for matrix in (mine, theirs):
        matrix[:, K : K + L * T].view(-1, L, T)[:, :, 0] = 0
    sizes = theirs.norm(dim=1)
    found = {}
    for kind, columns in kinds.items():
        off = (mine[:, columns] - theirs[:, columns]).norm(dim=1) / sizes
        found |= {f"{kind} to feature": float(off[:K].max()), f"{kind} to logits": float(off[K])}
    return found | {"activations": float(((values - peer["values"]).abs() / peer["values"].abs()).max())}


def _fill(engine: Any, goals: Sequence[Any], rows: Sequence[int], mine: Any, node_of: dict[Any, int]) -> None:
    """The edges into some targets in the peer's order of columns: features, errors by layer and position, tokens."""
    import torch

    K, L, T = len(node_of), engine.layers, mine.shape[1]
    T = (mine.shape[1] - K) // (L + 1)
    everything = 10**9

    def take(layer: Any) -> None:
        B = len(layer.total_BT)
        found = layer.largest(torch.zeros(B), everything)
        row, node, index = found[:3].long()
        error = layer.total_BT.double().index_put((row, node), -found[3], accumulate=True)
        start = K + layer.number * T
        mine[torch.tensor(rows[:B]), start : start + T] = error[:, :T].float()
        for b, t, i, weight in zip(row.tolist(), node.tolist(), index.tolist(), found[3].tolist(), strict=True):
            if (k := node_of.get((layer.number, t, i))) is not None:
                mine[rows[b], k] = weight

    sources = engine.into(goals, take)
    mine[torch.tensor(rows), K + L * T :] = sources.embeddings_BT[:, :T]


# -- figures -----------------------------------------------------------------------------------------------------------


def child(command: Sequence[object], threads: int = THREADS) -> dict[str, Any]:
    """What a process of its own prints."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": str(threads)})  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    told = {name: round(value, 2) for name, value in found.items() if name in {"cpu", "wall", "extra"}}
    print(" ", *list(command)[2:], told, file=sys.stderr)
    return found


def rows() -> list[Row]:
    """Time, memory and edges at every length; one row that says why where the peer is not there."""
    theirs = python()
    if theirs is None:
        return [absent()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([sys.executable, __file__, "prepare", place], check=True)
        found = [row for length in LENGTHS for row in _at(folder, theirs, length)]
        found += [row for name in list(SETS)[1:] for row in _edges(folder, theirs, name, LENGTHS[0], 8)]
        return [*found, *file_rows(folder, theirs)]


def absent() -> Row:
    """What is not measured does not pass."""
    return Row(f"graphs beside {PEER}", None, f"not measured: no environment of its own in {HOME.name}; see its"
               " requirements.txt", bar="measured", holds=False)  # fmt: skip


def _at(folder: Path, theirs: str, length: int) -> list[Row]:
    """All rows of one length."""
    run = partial(_run, folder, theirs, length)
    tried = {batch: run("peer", batch) for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch]["cpu"])
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(TURNS):
        for name, some in runs.items():
            some.append(run(name, best))
    where = f"{length} tokens, {FEATURES} features"
    found = [
        _beside(f"{where}: {said}", key, unit, runs, bar)
        for key, said, unit, bar in (("cpu", "CPU", "s", FASTER), ("wall", "wall", "s", None),
                                     ("extra", "extra memory", "MiB", SMALLER))
    ]  # fmt: skip
    least = min(tried, key=lambda batch: tried[batch]["extra"])
    more = tried[least]
    found += [
        Row(f"{where}: batch of the peer's fastest of {len(BATCHES)}", float(best), "targets", peer=PEER),
        Row(f"{where}: the peer's least memory, in batches of {least}", more["extra"], "MiB", peer=PEER),
        Row(f"{where}: its CPU then", more["cpu"], "s", peer=PEER),
        Row(f"{where}: active features", float(runs["ours"][0]["active"]), f"the peer's {runs['peer'][0]['active']}"),
        at_most(f"{where}: closure", max(one["closure"] for one in runs["ours"]), 1e-5, "of all inputs"),
    ]
    return found + _edges(folder, theirs, next(iter(SETS)), length, best)


def _edges(folder: Path, theirs: str, name: str, length: int, batch: int) -> list[Row]:
    """How far edges are apart, by kind, and activations."""
    file = folder / f"edges-{length}-{name}.safetensors"
    child([theirs, HOME / "run.py", folder, name, length, FEATURES, batch, file])
    off = child([sys.executable, __file__, "apart", folder, name, file, length])
    return [at_most(f"{length} tokens, {name}: {kind} apart", value, APART, "of size", peer=PEER)
            for kind, value in off.items()]  # fmt: skip


def _run(folder: Path, theirs: str, length: int, name: str, batch: int) -> dict[str, Any]:
    if name == "peer":
        return child([theirs, HOME / "run.py", folder, next(iter(SETS)), length, FEATURES, batch])
    return child([sys.executable, __file__, "ours", folder, next(iter(SETS)), length, FEATURES, BATCH])


def _beside(name: str, key: str, unit: str, runs: dict[str, list[dict[str, Any]]], bar: float | None) -> Row:
    """A figure of ours, and how many times as much the peer takes, run by run."""
    mine, theirs = ([one[key] for one in runs[side]] for side in ("ours", "peer"))
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    ratio = {"min": min(ratios), "median": median(ratios), "max": max(ratios)}
    held: dict[str, Any] = {"bar": f"ratio >= {bar:g}", "holds": ratio["median"] >= bar} if bar else {}
    return Row(name, median(mine), unit, min(mine), max(mine), PEER, ratio, **held)


# -- graph files -------------------------------------------------------------------------------------------------------


def file_rows(folder: Path, theirs: str) -> list[Row]:
    """Whether its own models of a graph file read what is exported here, and whether what it writes is read here."""
    mine = folder / "mine.json"
    export(mine)
    theirs_of_mine = child([theirs, HOME / "graphs.py", "read", mine])
    written = child([theirs, HOME / "graphs.py", "write", folder, next(iter(SETS)), WARM, CHOSEN, BATCH, folder])
    return [
        *accepted(json.loads(mine.read_bytes()), theirs_of_mine),
        *read_here(Path(written["file"]).read_bytes()),
    ]


def export(file: Path) -> None:
    """The graph of a case in the bundled model, labels and supernodes with it, as the command writes it."""
    with tempfile.TemporaryDirectory() as store:
        subprocess.run(
            [
                sys.executable, "-m", "truing", "trace", "--prompt", "Is the door open?", "--action", "Yes.",
                "--instead", "No.", "--neurons", str(CHOSEN), "--no-check", "--store", store, "--export",
                "neuronpedia", "--out", str(file),
            ],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip


def accepted(graph: dict[str, Any], found: dict[str, Any]) -> list[Row]:
    """What the peer's models have of a file of ours, beside what is in it."""
    if found["error"]:
        print(found["error"], file=sys.stderr)
    return [_all(f"exported graph: {what} in {PEER}'s own models", found[what], len(graph[what]))
            for what in ("nodes", "links")]  # fmt: skip


def read_here(data: bytes) -> list[Row]:
    """What is read here of a file of the peer's: its nodes, logits as one decision; and what links add to others."""
    from truing.errors import RecordError
    from truing.share.graphs import from_neuronpedia

    graph = json.loads(data)
    logits = {node["node_id"] for node in graph["nodes"] if node["feature_type"] == "logit"}
    into: dict[str, float] = {}
    for link in graph["links"]:
        if link["target"] not in logits:
            into[link["target"]] = into.get(link["target"], 0.0) + link["weight"]
    names = [f"graph file of {PEER}: {what} read here" for what in ("nodes", "nodes with all their links")]
    try:
        found = from_neuronpedia(data)
    except RecordError as error:
        print(error, file=sys.stderr)
        return [_all(name, 0, count) for name, count in zip(names, (len(graph["nodes"]), len(into)), strict=True)]
    circuit, mine = found.circuit, dict[str, float]()
    for target, weight in zip(circuit.target_E.tolist(), circuit.weight_E.tolist(), strict=True):
        if target < len(circuit) - 1:
            mine[found.ids[target]] = mine.get(found.ids[target], 0.0) + weight
    same = sum(abs(mine.get(name, 0.0) - weight) <= 1e-4 * max(1.0, abs(weight)) for name, weight in into.items())
    read = len(set(found.ids[:-1]) | {name for name, _ in found.logits})
    return [_all(names[0], read, len(graph["nodes"])), _all(names[1], same, len(into))]


def _all(name: str, count: int, of: int) -> Row:
    return Row(name, float(count), f"of {of}", bar="all", holds=count == of > 0, peer=PEER)


def show(found: Sequence[Row]) -> None:
    """Rows as JSON, or a line each."""
    if "--json" in sys.argv:
        print(json.dumps({"rows": [asdict(row) for row in found]}))
        return
    for row in found:
        ratio = "" if row.ratio is None else "ratio {median:.2f} [{min:.2f}, {max:.2f}]".format(**row.ratio)
        value = "-" if row.value is None else f"{row.value:.4g}"
        print(f"{row.name:60} {value:>10} {row.unit:14} {ratio:28} {row.bar or ''} {row.holds}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prepare", place]:
            prepare(Path(place))
        case ["ours", place, name, *numbers]:
            import torch

            torch.set_num_threads(THREADS)
            print(json.dumps(ours(Path(place), name, *map(int, numbers))))
        case ["apart", place, name, file, number]:
            print(json.dumps(apart(Path(place), name, Path(file), int(number))))
        case _:
            show(rows())
