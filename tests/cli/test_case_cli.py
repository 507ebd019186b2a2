"""Cases in a store reach the report and the bundle, with their graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truing.cli import cli
from truing.errors import DataError, StoreError
from truing.records import Called, Loop, Target, Unmeasured, canonical, digest_of
from truing.share import verify
from truing.share.graphs import from_neuronpedia, read_case, write_case, write_neuronpedia
from truing.share.received import records_of
from truing.store import open_store

from ..cases import HOSTILE, case, circuit, named  # noqa: TID252 - tests are no package

pytestmark = pytest.mark.base
GRAPH = circuit()
TARGET = Target(name="local/x", weights="w", template="t", dtype="float32", abilities=())


def run(*args: object) -> str:
    done = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with open_store(tmp_path / "store") as store:
        store.put_blob(GRAPH.packed(), "safetensors")
        store.add(TARGET)
        store.add(case(GRAPH, target=TARGET.id, parents=(TARGET.id,)))
    return tmp_path / "store"


def test_a_view_draws_the_graph_of_a_case(kept: Path, tmp_path: Path) -> None:
    run("view", "--store", kept, "--out", tmp_path / "a.html")
    assert 'class="network"' in (tmp_path / "a.html").read_text()
    blob = case(GRAPH).graph
    with open_store(kept, mode="read") as store:
        assert store.blob_bytes(blob) == GRAPH.packed()
        store.blob_path(blob).write_bytes(b"x" * blob.size)
        with pytest.raises(StoreError, match="damaged"):
            store.blob_bytes(blob)
    run("view", "--store", kept, "--out", tmp_path / "b.html")
    assert "is damaged" in (tmp_path / "b.html").read_text()


def test_a_view_of_a_loop_draws_the_cases_of_its_claims_alone(kept: Path, tmp_path: Path) -> None:
    loop = Loop(target=TARGET.id, claims=("b" * 64,), claim=None, why="", gate=Unmeasured(reason="none"))
    with open_store(kept) as store:
        store.add(loop)
    run("view", "--store", kept, "--out", tmp_path / "a.html")
    assert 'class="network"' not in (tmp_path / "a.html").read_text()
    with open_store(kept) as store:
        store.add(case(GRAPH, target=TARGET.id, claim="b" * 64, parents=(TARGET.id,)))
    run("view", "--store", kept, "--out", tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text().count('class="network"') == 1


def test_a_bundle_of_a_store_without_loops_holds_its_cases(kept: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRUING_CONFIG", str(tmp_path / "config"))
    run("share", "pack", "--store", kept, "--out", tmp_path / "evidence.zip")
    found = verify(tmp_path / "evidence.zip")
    assert found.ok
    assert found.records == {"case": 1, "target": 1}
    assert not found.withheld


# -- a graph from another lab ------------------------------------------------------------------------------------------


def received(file: Path, store: Path) -> dict[str, Any]:
    """What `share read` says of a file, in JSON; that the lines say no less is looked at here."""
    lines = run("share", "read", file, "--store", store).splitlines()
    body: dict[str, Any] = json.loads(run("share", "read", file, "--store", store, "--json"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in body["nodes"].items())
    assert f"graph     {sum(body['nodes'].values())} nodes ({kinds}), {body['edges']} edges" in lines
    assert any(line.startswith(f"text      {len(body['tokens'])} tokens: ") for line in lines)
    assert any(line.startswith(f"accounts  close to {body['closure_error']:.1e} ") for line in lines)
    assert lines[-1].startswith(f"kept      {body['id']}" if body["kept"] else f"not kept: {body['not_kept']}")
    return body


def test_a_case_of_another_lab_is_read_and_kept(tmp_path: Path) -> None:
    one = case(GRAPH, target=TARGET.id, parents=(TARGET.id,))
    file, graph = write_case(tmp_path / "a.json", one, TARGET, GRAPH.packed())
    body = received(file, tmp_path / "store")
    assert (body["format"], body["id"], body["kept"]) == ("truing-case/1", one.id, [TARGET.id, one.id])
    assert body["nodes"] == {kind: int(GRAPH.of(kind).sum()) for kind in body["nodes"]}
    assert (body["edges"], body["tokens"]) == (len(GRAPH.source_E), list(one.tokens))
    assert body["closure_error"] == GRAPH.closure() < 1e-5
    assert body["case"] == one.plain()["body"]
    with open_store(tmp_path / "store", mode="read") as store:
        assert store.get(one.id) == one
        assert store.get(TARGET.id) == TARGET
        assert store.blob_bytes(one.graph) == graph.read_bytes()
        assert not store.check()


def test_what_a_record_calls_its_file_leads_nowhere(tmp_path: Path) -> None:
    """Files are named by their digests alone."""
    blob = case(GRAPH).graph.model_copy(update={"media": "../../safetensors/../../x"})
    write_case(tmp_path / "a" / "a.json", case(GRAPH, target=TARGET.id, graph=blob), TARGET, GRAPH.packed())
    assert received(tmp_path / "a" / "a.json", tmp_path / "deep" / "er" / "store")["kept"]
    assert sorted(path.name for path in tmp_path.rglob("*") if "store" not in path.parts) == [
        "a", "a.json", "a.safetensors", "deep", "er",
    ]  # fmt: skip


def test_a_case_with_labels_brings_the_one_that_was_labelled(tmp_path: Path) -> None:
    """Which is the same without them, as its id proves; where it does not, nothing is made up."""
    plain = case(GRAPH, target=TARGET.id, parents=(TARGET.id,))
    labelled = named(GRAPH, target=TARGET.id, parents=(TARGET.id, plain.id))
    write_case(tmp_path / "a.json", labelled, TARGET, GRAPH.packed())
    assert received(tmp_path / "a.json", tmp_path / "store")["kept"] == [TARGET.id, plain.id, labelled.id]
    with open_store(tmp_path / "store", mode="read") as store:
        assert store.get(plain.id) == plain
        assert not store.check()
    # One that a target named too: by itself, and by another, which the file does not bring.
    first = labelled.labels[0]
    name = Called(layer=first.layer, index=first.index, name="x", score=first.score, unclear=0)
    for namer, parents in ((TARGET.id, (TARGET.id, plain.id)), ("f" * 64, (TARGET.id, "f" * 64, plain.id))):
        both = labelled.model_copy(update={"names": (name,), "named_by": namer, "parents": parents})
        write_case(tmp_path / "c.json", both, TARGET, GRAPH.packed())
        kept = received(tmp_path / "c.json", tmp_path / "store")["kept"]
        assert kept == ([TARGET.id, plain.id, both.id] if namer == TARGET.id else [])
        assert records_of(read_case(tmp_path / "c.json")) == (TARGET, plain, both)
    for parents in ((TARGET.id, "f" * 64), ("f" * 64, plain.id)):
        other = named(GRAPH, target=TARGET.id, parents=parents)
        write_case(tmp_path / "b.json", other, TARGET, GRAPH.packed())
        body = received(tmp_path / "b.json", tmp_path / "store")
        assert body["kept"] == []
        assert "rests on record ffffffffffff, which neither the file nor the store" in body["not_kept"]
        assert received(tmp_path / "b.json", tmp_path / "none")["kept"] == []
    assert not (tmp_path / "none").exists()


def test_a_case_whose_accounts_do_not_close_is_said_and_not_kept(tmp_path: Path) -> None:
    wrong = replace(GRAPH, weight_E=GRAPH.weight_E * 2)
    write_case(tmp_path / "a.json", case(wrong, target=TARGET.id), TARGET, wrong.packed())
    body = received(tmp_path / "a.json", tmp_path / "store")
    assert body["closure_error"] > 0.1
    assert "do not close" in body["not_kept"]
    assert not (tmp_path / "store").exists()


def test_a_graph_of_another_program_is_read_and_no_record_is_made_of_it(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    write_neuronpedia(file, named(GRAPH), GRAPH, scan=f"gemma {HOSTILE}\n\u202e")
    body = received(file, tmp_path / "store")
    found = from_neuronpedia(file.read_bytes())
    assert (body["format"], body["scan"], body["kept"]) == ("neuronpedia", found.scan, [])
    assert body["edges"] == len(GRAPH.source_E)
    assert body["closure_error"] == found.circuit.closure() < 1e-5
    assert [name for name, _ in body["logits"]] == [name for name, _ in found.logits]
    assert "\u202e" not in run("share", "read", file)
    assert not (tmp_path / "store").exists()


def anew(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The record altered, with an id that fits: whoever alters a record can hash it too."""

    def spoil(folder: Path) -> None:
        whole = json.loads((folder / "a.json").read_bytes())
        change(whole)
        whole["ids"]["case"] = digest_of(whole["case"])
        (folder / "a.json").write_bytes(canonical(whole))

    return spoil


def text(data: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "a.json").write_text(data)


def foreign(**more: Any) -> str:
    logit = {"node_id": "y", "feature": 0, "layer": "2", "ctx_idx": 0, "feature_type": "logit"}
    node = {"node_id": "x", "feature": 1, "layer": "1", "ctx_idx": 0, "feature_type": "mlp neuron"} | more
    return json.dumps(
        {"metadata": {"scan": "../../x", "prompt": "", "prompt_tokens": ["a"]}, "nodes": [node, logit], "links": []}
    )


def half(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


@pytest.mark.parametrize(
    "spoil",
    [
        half("a.json"), half("a.safetensors"), lambda folder: (folder / "a.safetensors").unlink(),
        lambda folder: (folder / "a.safetensors").write_bytes(b"x" * len(GRAPH.packed())),
        anew(lambda whole: whole["case"]["body"]["graph"].update(digest="../../../" + "a" * 55)),
        anew(lambda whole: whole.update(path="../../etc/passwd")),
        anew(lambda whole: whole["case"]["body"].update(value=9e300, layers=10**15)),
        anew(lambda whole: whole["case"]["body"]["graph"].update(size=2**52)),
        text('{"format": "truing-case/1", "case": {"body": {"value": 1e999}}}'),
        text('{"format": "truing-case/1", "ids": %s}' % ("9" * 5000)),
        text('{"format": "truing-case/' + "[" * 9999), text("[" * 99999), text('{"a":' * 9999), text(""), text("[]"),
        text("{}"), text("null"), text("\x00"), text('{"format": ["truing-case/1"]}'),
        text(foreign(ctx_idx=10**400)), text(foreign(layer="9" * 400)), text(foreign(layer="../../x")),
        text(foreign(activation=1e39)), text(foreign(feature_type="../../x")), text(foreign()[:-9]),
        lambda folder: ((folder / "a.json").unlink(), (folder / "a.json").mkdir()),
    ],
)  # fmt: skip
def test_a_hostile_graph_ends_in_one_error_and_nothing_is_written(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    write_case(tmp_path / "a.json", case(GRAPH, target=TARGET.id, parents=(TARGET.id,)), TARGET, GRAPH.packed())
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(cli, ["share", "read", str(tmp_path / "a.json"), "--store", str(tmp_path / "store")])
    assert isinstance(done.exception, DataError)
    assert done.exception.exit_code == 4
    assert len(str(done.exception)) < 1000
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
