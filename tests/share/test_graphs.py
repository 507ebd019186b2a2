"""Graphs of cases survive the journey in Truing's own files and in Neuronpedia's, and hostile files are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing import files
from truing.errors import DataError, RecordError, StoreError, UsageError
from truing.records import Circuit, Target, canonical, digest_of
from truing.share import exported, imported
from truing.share.exported import cantor
from truing.share.graphs import from_neuronpedia, neuronpedia, read_case, write_case, write_neuronpedia

from ..cases import HOSTILE, case, circuit, named  # noqa: TID252 - tests are no package

pytestmark = pytest.mark.base
TARGET = Target(name="local/x", weights="w", template="t", dtype="float32", abilities=("WhiteBox",))
GRAPH = circuit()
CASE = case(GRAPH, target=TARGET.id)
SEEDS = st.integers(0, 10_000)
ARRAYS = tuple(Circuit.__dataclass_fields__)


def edges(graph: Circuit) -> dict[tuple[int, int], float]:
    return dict(zip(zip(graph.source_E.tolist(), graph.target_E.tolist(), strict=True), graph.weight_E, strict=True))


def plain(graph: Circuit = GRAPH, **more: Any) -> dict[str, Any]:
    return json.loads(json.dumps(neuronpedia(case(graph), graph, **more)))


def read(graph: dict[str, Any], **more: Any) -> imported.Imported:
    return from_neuronpedia(json.dumps(graph).encode(), **more)


# -- two files of our own ----------------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS)
def test_a_case_comes_back_from_its_two_files(tmp_path: Path, seed: int) -> None:
    graph = circuit(seed=seed, neurons=8, edges=60)
    one = case(graph, target=TARGET.id)
    paths = write_case(tmp_path / "a.json", one, TARGET, graph.packed())
    assert [path.name for path in paths] == ["a.json", "a.safetensors"]
    found = read_case(tmp_path / "a.json")
    assert (found.case, found.target) == (one, TARGET)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found.circuit, name), getattr(graph, name))


def test_labels_and_supernodes_go_along(tmp_path: Path) -> None:
    one = named(GRAPH, target=TARGET.id)
    write_case(tmp_path / "a.json", one, TARGET, GRAPH.packed())
    found = read_case(tmp_path / "a.json").case
    assert found == one
    assert found.labels[0].strongest[0].before == HOSTILE
    # Files from before there were any have neither key, and are read.
    write_case(tmp_path / "b.json", CASE, TARGET, GRAPH.packed())
    body = json.loads((tmp_path / "b.json").read_bytes())["case"]["body"]
    assert not {"labels", "supernodes"} & body.keys()
    assert read_case(tmp_path / "b.json").case == CASE


NEURONS = GRAPH.of("neuron").nonzero()[0].tolist()


HOSTILE_NAMES: dict[str, Any] = {
    "token": lambda label, group, case: label["tokens"][0].__setitem__(0, "x" * 41),
    "before": lambda label, group, case: label["strongest"][0].update(before="x" * 61),
    "places": lambda label, group, case: label.update(weakest=label["weakest"] * 17),
    "labels": lambda label, group, case: case.update(labels=[label] * 1025),
    "name": lambda label, group, case: group.update(name="x" * 121),
    "members": lambda label, group, case: group.update(nodes=group["nodes"] * 4097),
    "groups": lambda label, group, case: case.update(supernodes=[{"name": "x", "nodes": [n]} for n in range(65)]),
    "key": lambda label, group, case: label.update(html="x"),
    "no neuron": lambda label, group, case: group.update(nodes=[0]),
    "beyond": lambda label, group, case: group.update(nodes=[10**6]),
    "twice": lambda label, group, case: group.update(nodes=[*group["nodes"], group["nodes"][0]]),
    "other": lambda label, group, case: label.update(index=10**6),
    "again": lambda label, group, case: case["labels"].append(label),
    "long": lambda label, group, case: case.update(names=[called(label, "x" * 61)]),
    "named": lambda label, group, case: case.update(names=[{**called(label), "index": 10**6}]),
    "renamed": lambda label, group, case: case.update(names=[called(label)] * 2),
}


def called(label: Any, name: str = "x") -> dict[str, Any]:
    """A name as a case has it, of the neuron of a label."""
    return {"layer": label["layer"], "index": label["index"], "name": name, "score": label["score"], "unclear": 0}


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("token", "at most 40 characters"), ("before", "at most 60 characters"), ("places", "at most 16 items"),
        ("labels", "at most 1024 items"), ("name", "at most 120 characters"), ("members", "at most 4096 items"),
        ("groups", "at most 64 items"), ("key", "Extra inputs"), ("no neuron", "name 0, which is no neuron"),
        ("beyond", "name 1000000, which is no neuron"), ("twice", "supernodes .* name one neuron twice"),
        ("other", r"labels .* name \d+\.1000000, which"), ("again", "labels .* name one neuron twice"),
        ("long", "at most 60 characters"), ("named", r"names .* name \d+\.1000000, which"),
        ("renamed", "names .* name one neuron twice"),
    ],
)  # fmt: skip
def test_hostile_labels_and_supernodes_are_refused(tmp_path: Path, which: str, said: str) -> None:
    """With an id that fits: whoever alters a record can hash it too."""
    path, _ = write_case(tmp_path / "a.json", named(GRAPH, target=TARGET.id), TARGET, GRAPH.packed())
    whole = json.loads(path.read_bytes())
    body = whole["case"]["body"]
    HOSTILE_NAMES[which](body["labels"][0], body["supernodes"][0], body)
    whole["ids"]["case"] = digest_of(whole["case"])
    path.write_bytes(canonical(whole))
    with pytest.raises(RecordError, match=said):
        read_case(path)


def test_the_same_case_gives_the_same_bytes(tmp_path: Path) -> None:
    pairs = [write_case(tmp_path / f"{name}.json", CASE, TARGET, GRAPH.packed()) for name in "ab"]
    for first, second in zip(*pairs, strict=True):
        assert first.read_bytes() == second.read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_that_were_altered_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of either file, or its length."""
    paths = write_case(tmp_path / "a.json", CASE, TARGET, GRAPH.packed())
    path = data.draw(st.sampled_from(paths))
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(("flip", "cut", "more"))):
        case "flip":
            whole[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del whole[place:]
        case _:
            whole += b"x"
    path.write_bytes(bytes(whole))
    with pytest.raises(DataError):
        read_case(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole["case"]["body"].update(value=9.0), "does not have the content that its id names"),
        (lambda whole: whole.update(target=whole["case"]), "does not have the content"),
        (lambda whole: whole.update(path="/etc/passwd"), "Extra inputs are not permitted"),
        (lambda whole: whole.update(format="truing-case/9"), "no record of a case"),
        (lambda whole: whole.update(case=json.loads("[" * 100 + "]" * 100)), "nests more than"),
        (lambda whole: whole.update(case={"kind": "case"}), "four keys"),
        (lambda whole: whole.update(case=whole["target"], ids={**whole["ids"], "case": whole["ids"]["target"]}),
         "kind target stands where one of kind case belongs"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record_is_named(tmp_path: Path, change: Any, said: str) -> None:
    path, _ = write_case(tmp_path / "a.json", CASE, TARGET, GRAPH.packed())
    whole = json.loads(path.read_bytes())
    change(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(RecordError, match=said):
        read_case(path)


def test_a_card_of_another_target_is_refused(tmp_path: Path) -> None:
    other = Target(name="local/y", weights="v", template="t", dtype="float32", abilities=())
    with pytest.raises(RecordError, match="not about local/y"):
        write_case(tmp_path / "a.json", CASE, other, GRAPH.packed())
    path, _ = write_case(tmp_path / "a.json", CASE, TARGET, GRAPH.packed())
    whole = json.loads(path.read_bytes())
    whole["target"], whole["ids"]["target"] = other.plain(), other.id
    path.write_text(json.dumps(whole))
    with pytest.raises(RecordError, match="its card is of"):
        read_case(path)


def test_a_graph_of_another_case_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="altered"):
        write_case(tmp_path / "a.json", CASE, TARGET, circuit(seed=1).packed())
    assert not list(tmp_path.iterdir())


def test_a_pair_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise StoreError("no space left")
        files.write_whole(path, data)

    monkeypatch.setattr("truing.share.graphs.write_whole", full)
    with pytest.raises(StoreError, match="no space"):
        write_case(tmp_path / "a.json", CASE, TARGET, GRAPH.packed())
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing_or_too_large_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"NAME\.json"):
        read_case(tmp_path / "a.zip")
    with pytest.raises(DataError, match="no such file"):
        read_case(tmp_path / "a.json")
    path, arrays = write_case(tmp_path / "a.json", CASE, TARGET, GRAPH.packed())
    arrays.unlink()
    with pytest.raises(DataError, match=r"a\.safetensors: there is no such file"):
        read_case(path)
    monkeypatch.setattr("truing.share.graphs.MOST_JSON", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_case(path)


# -- the JSON of Neuronpedia and circuit-tracer ------------------------------------------------------------------------

STRING, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
STRINGS = {"type": "array", "items": STRING}
EITHER = {"type": ["number", "null"]}


def an_object(needed: dict[str, Any], **free: Any) -> dict[str, Any]:
    return {"type": "object", "properties": needed | free, "required": list(needed)}


ANY_GENERATOR = an_object({}, name=STRING, version=STRING, url=STRING, email=STRING)
NEURONPEDIA = an_object({
    "metadata": an_object(
        {"slug": STRING, "scan": STRING, "prompt_tokens": STRINGS, "prompt": STRING},
        feature_details=an_object({}, feature_json_base_url=STRING, neuronpedia_source_set=STRING,
                                  neuronpedia_lorsa_source_set=STRING),
        node_threshold=NUMBER,
        info=an_object({}, description=STRING, creator_name=STRING, creator_url=STRING, source_urls={"type": "array"},
                       generator=ANY_GENERATOR, create_time_ms=NUMBER),
        generation_settings=an_object({}, max_n_logits=WHOLE, desired_logit_prob=NUMBER, batch_size=WHOLE,
                                      max_feature_nodes=WHOLE),
        pruning_settings=an_object({}, node_threshold=NUMBER, edge_threshold=NUMBER),
    ),
    "qParams": an_object({}, pinnedIds=STRINGS, supernodes={"type": "array"}, linkType=STRING, clickedId=STRING,
                         sg_pos=STRING),
    "nodes": {"type": "array", "items": an_object(
        {"node_id": STRING, "feature": {"type": ["integer", "null"]}, "layer": {"type": ["string", "integer"]},
         "ctx_idx": WHOLE, "feature_type": STRING, "jsNodeId": STRING, "clerp": STRING},
        influence=EITHER, activation=EITHER,
    )},
    "links": {"type": "array", "items": an_object({"source": STRING, "target": STRING, "weight": NUMBER})},
})  # fmt: skip
"""What Neuronpedia asks for, field by field: types and required fields of apps/webapp/app/api/graph/graph-schema.json
(draft 07, version 1.0.0) in hijohnnylin/neuronpedia at commit b8efe8435ea5. It has no lists of values and forbids no
further field."""
TRACER = an_object({
    "metadata": an_object(
        {"slug": STRING, "scan": STRING, "transcoder_list": STRINGS, "prompt_tokens": STRINGS, "prompt": STRING},
        node_threshold=EITHER, schema_version={"type": ["integer", "null"]},
    ),
    "qParams": an_object({
        "pinnedIds": STRINGS, "supernodes": {"type": "array", "items": STRINGS}, "linkType": STRING,
        "clickedId": STRING, "sg_pos": STRING,
    }),
    "nodes": {"type": "array", "items": an_object(
        {"node_id": STRING, "feature": WHOLE, "layer": STRING, "ctx_idx": WHOLE, "feature_type": STRING},
        jsNodeId=STRING, clerp=STRING, token_prob=NUMBER, is_target_logit={"type": "boolean"}, run_idx=WHOLE,
        reverse_ctx_idx=WHOLE, influence=EITHER, activation=EITHER,
    )},
    "links": {"type": "array", "items": {"type": "object"}},
})  # fmt: skip
"""What circuit-tracer asks for: the models of circuit_tracer/frontend/graph_models.py in safety-research/circuit-tracer
at commit 196e2cecbae6. A node without `jsNodeId` gets its id for it there."""
GENERATOR = an_object({"name": STRING, "version": STRING}, url=STRING, email=STRING)
SCHEMA = an_object({
    "metadata": an_object(
        {"slug": STRING, "scan": STRING, "prompt_tokens": STRINGS, "prompt": STRING, "transcoder_list": STRINGS},
        node_threshold=NUMBER, schema_version={"const": 1},
        info=an_object({"generator": GENERATOR}, description=STRING),
        generation_settings=an_object({}, max_n_logits=WHOLE, max_feature_nodes=WHOLE),
        pruning_settings=an_object({}, node_threshold=NUMBER, edge_threshold=NUMBER),
    ),
    "qParams": an_object({
        "pinnedIds": STRINGS, "supernodes": {"type": "array", "items": STRINGS}, "linkType": {"const": "both"},
        "clickedId": STRING, "sg_pos": STRING,
    }),
    "nodes": {"type": "array", "items": an_object(
        {"node_id": STRING, "feature": WHOLE, "layer": {"type": "string", "pattern": "^(E|[0-9]+)$"}, "ctx_idx": WHOLE,
         "feature_type": {"enum": ["cross layer transcoder", "mlp neuron", "mlp reconstruction error", "embedding",
                                   "bias", "logit"]},
         "jsNodeId": STRING, "clerp": STRING},
        influence={"type": ["number", "null"], "minimum": 0, "maximum": 1}, activation=EITHER,
        token_prob={"type": "number", "minimum": 0, "maximum": 1}, is_target_logit={"type": "boolean"}, run_idx=WHOLE,
        reverse_ctx_idx=WHOLE,
    )},
    "links": {"type": "array", "items": an_object({"source": STRING, "target": STRING, "weight": NUMBER})},
})  # fmt: skip
"""What exports keep to: both of the above, and what the programs make of the fields beyond what they ask for."""


@pytest.mark.parametrize("native", [False, True])
def test_an_export_is_what_both_programs_read(native: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for seed in range(4):
        graph = plain(circuit(seed=seed), native=native)
        for schema in (NEURONPEDIA, TRACER, SCHEMA):
            jsonschema.Draft7Validator(schema).validate(graph)
        tokens, ids = len(graph["metadata"]["prompt_tokens"]), [node["node_id"] for node in graph["nodes"]]
        assert len(set(ids)) == len(ids)
        assert all(link[end] in ids for link in graph["links"] for end in ("source", "target"))
        assert all(0 <= node["ctx_idx"] < tokens for node in graph["nodes"])
        assert max(int(n["layer"]) for n in graph["nodes"] if n["feature_type"] != "logit" and n["layer"] != "E") >= 1
        types = {node["feature_type"] for node in graph["nodes"]}
        assert ("mlp neuron" in types, "cross layer transcoder" in types) == (native, not native)


@settings(max_examples=40)
@given(seed=SEEDS, native=st.booleans())
def test_an_export_can_be_read_back(seed: int, native: bool) -> None:
    graph = circuit(seed=seed)
    one = case(graph)
    found = from_neuronpedia(json.dumps(neuronpedia(one, graph, scan="m", native=native)).encode())
    for name in ("kind_N", "layer_N", "position_N", "index_N", "influence_N"):
        np.testing.assert_array_equal(getattr(found.circuit, name), getattr(graph, name), err_msg=name)
    np.testing.assert_allclose(found.circuit.value_N, graph.value_N, rtol=1e-5, atol=1e-5)
    assert edges(found.circuit) == edges(graph)
    assert (found.tokens, found.scan, found.prompt) == (one.tokens, "m", "".join(one.tokens[: one.prompt]))
    assert len(found.logits) == 1


@given(layer=st.integers(0, 200), index=st.integers(0, 10**6))
def test_a_feature_is_one_number_for_layer_and_index(layer: int, index: int) -> None:
    assert imported._unpaired(cantor(layer, index), layer) == index
    diagonal = layer + index
    assert cantor(layer, index) == sum(range(diagonal + 1)) + index if diagonal < 500 else True


def test_ids_of_errors_and_of_neurons_in_layer_0_never_collide() -> None:
    """Neuron 3 of layer 0 at token 5, and the remainder of layer 3 there."""
    graph = Circuit(
        np.array([3, 2, 3, 4], np.int8), np.array([-1, 0, 3, 5], np.int32), np.array([-1, 5, 5, -1], np.int32),
        np.array([-1, 3, -1, -1], np.int32), np.array([0, 1, 0, 3], np.float32), np.array([1, 1, 1, 1], np.float32),
        np.array([0, 1, 2], np.int32), np.array([1, 3, 3], np.int32), np.array([1, 1, 2], np.float32),
    )  # fmt: skip
    one = case(graph, tokens=tuple("abcdef"), before=(-1, 0, 1, 2, 3, 4), segments=("x",) * 6, prompt=4)
    nodes = neuronpedia(one, graph)["nodes"]
    assert [node["node_id"] for node in nodes] == ["R", "0_3_5", "R_3_5", "6_0_5"]
    assert nodes[1]["feature"] == cantor(0, 3)
    assert from_neuronpedia(json.dumps(neuronpedia(one, graph)).encode()).circuit.names == graph.names


def test_two_nodes_at_one_place_are_refused() -> None:
    twice = Circuit(
        np.array([2, 2, 4], np.int8), *(np.array([0, 0, 2], np.int32), np.array([0, 0, -1], np.int32)),
        np.array([7, 7, -1], np.int32), np.zeros(3, np.float32), np.zeros(3, np.float32),
        *(np.array([], np.int32),) * 2, np.array([], np.float32),
    )  # fmt: skip
    with pytest.raises(RecordError, match="stand at the same place"):
        neuronpedia(case(twice, tokens=("a",), before=(-1,), segments=("x",), prompt=1), twice)


def test_a_graph_without_higher_layers_gets_a_node_that_a_reader_drops() -> None:
    flat = circuit(layers=1, neurons=5, rests=2, edges=20)
    graph = plain(flat)
    (extra,) = [node for node in graph["nodes"] if node["layer"] == "1"]
    assert not any(extra["node_id"] in (link["source"], link["target"]) for link in graph["links"])
    assert read(graph).circuit.names == flat.names
    assert not any(node["unit"] == "placeholder" for node in plain()["nodes"])


def test_the_decision_is_a_logit_with_a_label_that_can_be_split() -> None:
    bad = 'a" (p=0.9)\n'
    graph = neuronpedia(case(GRAPH, actions=(bad,), alternatives=("b",), value=0.0), GRAPH)
    logit = graph["nodes"][-1]
    assert (logit["feature_type"], logit["is_target_logit"], logit["layer"]) == ("logit", True, str(CASE.layers + 1))
    assert logit["clerp"].split('"')[1] == "a' (p =0.9)⏎ rather than b"
    assert float(logit["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(0.5)
    assert logit["token_prob"] == 0.5
    for value, chance in ((2.0, 0.880797), (-1e6, 0.0), (1e6, 1.0)):
        assert exported.probability(case(GRAPH, value=value)) == pytest.approx(chance, abs=1e-6)


def test_supernodes_and_labels_are_what_a_viewer_shows() -> None:
    one = named(GRAPH, most=3)
    graph = json.loads(json.dumps(neuronpedia(one, GRAPH)))
    ids = exported.node_ids(one, GRAPH)
    assert graph["qParams"]["supernodes"] == [[g.name, *(ids[node] for node in g.nodes)] for g in one.supernodes]
    names = {node["node_id"]: node["clerp"] for node in graph["nodes"]}
    units = {label.unit for label in one.labels}
    for node in NEURONS:
        unit = f"{GRAPH.layer_N[node]}.{GRAPH.index_N[node]}"
        assert names[ids[node]] == f"neuron {unit}" + f": ' w{unit}'" * (unit in units)
    low = one.labels[0].model_copy(update={"tokens": (("\u202e" + "x" * 30, -1.0),)})
    said = neuronpedia(named(GRAPH, labels=(low,)), GRAPH)["nodes"]
    assert any(node["clerp"] == f"neuron {low.unit}: low at '\ufffd{'x' * 19}'" for node in said)
    found = from_neuronpedia(json.dumps(graph).encode())
    assert found.supernodes == tuple((g.name, g.nodes) for g in one.supernodes)
    assert read(plain()).supernodes == ()


def with_groups(*groups: Any) -> dict[str, Any]:
    return foreign() | {"qParams": {"supernodes": list(groups)}}


def test_supernodes_of_another_program_may_name_what_was_pruned() -> None:
    found = read(with_groups(["both", "3_70_1", "gone", "1_40_1", "3_70_1"], ["empty", "gone"], ["logit", "27_9_1"]))
    assert found.supernodes == (("both", (found.ids.index("3_70_1"), found.ids.index("1_40_1"))),)


@pytest.mark.parametrize(
    ("groups", "said"),
    [([["a"]] * 1001, "at most 1000 items"), ([["a"] * 10_002], "at most 10001 items"), ([[]], "at least 1 item"),
     ([[3]], "valid string"), (["a"], "valid (list|array)")],
)  # fmt: skip
def test_hostile_supernodes_of_another_program_are_refused(groups: Any, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        read(with_groups(*groups))


def test_influence_is_a_rank_that_falls_as_nodes_matter_more() -> None:
    nodes = plain()["nodes"][:-1]
    shares = GRAPH.influence_N[:-1].astype(float)
    for node, share in zip(nodes, shares, strict=True):
        above = shares[shares >= share].sum() / shares.sum()
        assert node["influence"] == pytest.approx(above, abs=1e-6)
    assert plain()["nodes"][-1]["influence"] is None


def test_the_same_case_exports_the_same_in_any_process() -> None:
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from cases import case, circuit;"
        "from truing.share.graphs import neuronpedia; g = circuit(); print(json.dumps(neuronpedia(case(g), g)))"
    )
    folder = str(Path(__file__).parents[1])
    first, second = (
        subprocess.run([sys.executable, "-c", program, folder], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    assert json.loads(first) == plain()
    assert plain()["metadata"]["scan"] == "a" * 64


def test_a_file_that_neuronpedia_would_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_neuronpedia(tmp_path / "g.json", CASE, GRAPH, scan="gemma-2-2b")
    assert json.loads((tmp_path / "g.json").read_bytes()) == json.loads(json.dumps(written))
    assert from_neuronpedia((tmp_path / "g.json").read_bytes()).circuit.names == GRAPH.names
    monkeypatch.setattr(exported, "MOST_BYTES", 1000)
    with pytest.raises(RecordError, match="Prune it further"):
        write_neuronpedia(tmp_path / "h.json", CASE, GRAPH)
    assert not (tmp_path / "h.json").exists()


def foreign() -> dict[str, Any]:
    """As circuit-tracer writes them: two logits, errors with ids like features, no units, influence as a rank."""

    def node(name: str, kind: str, layer: str, feature: int | None, **more: Any) -> dict[str, Any]:
        return {"node_id": name, "feature": feature, "layer": layer, "ctx_idx": 1, "feature_type": kind, "jsNodeId": "",
                "clerp": "", "influence": 0.5, "activation": None} | more  # fmt: skip

    return {
        "metadata": {"slug": "s", "scan": "gemma", "prompt": "a b", "prompt_tokens": ["a", " b"], "schema_version": 1,
                     "transcoder_list": []},
        "qParams": {},
        "nodes": [
            node("27_9_1", "logit", "27", 9, token_prob=0.6), node("27_8_1", "logit", "27", 8, token_prob=0.2),
            node("3_70_1", "cross layer transcoder", "3", cantor(3, 70), activation=2.5),
            node("1_40_1", "cross layer transcoder", "1", cantor(1, 40), activation=4.0),
            node("1_-1_1", "mlp reconstruction error", "1", -1), node("E_5_1", "embedding", "E", 1),
        ],
        "links": [
            {"source": "E_5_1", "target": "1_40_1", "weight": 3}, {"source": "1_40_1", "target": "3_70_1", "weight": 2},
            {"source": "1_-1_1", "target": "3_70_1", "weight": -1.0},
            {"source": "3_70_1", "target": "27_9_1", "weight": 4.0},
            {"source": "3_70_1", "target": "27_8_1", "weight": -4.0},
            {"source": "E_5_1", "target": "27_8_1", "weight": 1.0},
        ],
    }  # fmt: skip


def test_whatever_neuronpedia_takes_is_read() -> None:
    """Layers as numbers, features that are none, nothing that may be left out; and what it refuses is refused here."""
    jsonschema = pytest.importorskip("jsonschema")
    graph = foreign()
    jsonschema.Draft7Validator(NEURONPEDIA).validate(graph)
    del graph["metadata"]["schema_version"], graph["metadata"]["transcoder_list"]
    for node in graph["nodes"]:
        node.pop("influence")
        node["layer"] = node["layer"] if node["layer"] == "E" else int(node["layer"])
        if node["feature_type"] == "mlp reconstruction error":
            node["feature"] = None
    jsonschema.Draft7Validator(NEURONPEDIA).validate(graph)
    assert edges(read(graph).circuit) == edges(read(foreign()).circuit)
    for lacking in ("node_id", "layer", "ctx_idx", "feature_type"):
        part = json.loads(json.dumps(graph))
        del part["nodes"][2][lacking]
        assert not jsonschema.Draft7Validator(NEURONPEDIA).is_valid(part)
        with pytest.raises(RecordError, match=lacking):
            read(part)


def test_a_graph_of_circuit_tracer_is_read() -> None:
    found = read(foreign())
    graph = found.circuit
    assert found.ids == ("1_-1_1", "E_5_1", "1_40_1", "3_70_1", "")
    place = {name: number for number, name in enumerate(found.ids)}
    assert found.logits == (("27_9_1", pytest.approx(0.75)), ("27_8_1", pytest.approx(0.25)))
    assert edges(graph)[place["3_70_1"], 4] == pytest.approx(0.75 * 4 - 0.25 * 4)
    assert edges(graph)[place["E_5_1"], 4] == pytest.approx(0.25)
    feature = place["3_70_1"]
    assert (graph.layer_N[feature], graph.index_N[feature], graph.value_N[feature]) == (3, 70, 2.5)
    assert (graph.layer_N[-1], graph.value_N[-1]) == (4, pytest.approx(2.25))
    # Of 2.25 that come in, 2 run through the feature, and two thirds of that through the one below it.
    assert graph.influence_N[feature] == pytest.approx(2 / 2.25)
    assert graph.influence_N[place["1_40_1"]] == pytest.approx(2 / 2.25 * 2 / 3)


def test_one_of_several_logits_can_be_chosen() -> None:
    found = read(foreign(), logit="27_8_1")
    assert found.logits == (("27_8_1", 1.0),)
    assert found.circuit.value_N[-1] == -3.0
    assert found.ids[-1] == "27_8_1"
    with pytest.raises(RecordError, match="has no logit '27_7_1'"):
        read(foreign(), logit="27_7_1")


def changed(**more: Any) -> dict[str, Any]:
    return foreign() | more


def with_node(**more: Any) -> dict[str, Any]:
    graph = foreign()
    graph["nodes"][2] |= more
    return graph


def with_link(**more: Any) -> dict[str, Any]:
    graph = foreign()
    graph["links"].append({"source": "3_70_1", "target": "27_9_1", "weight": 1.0} | more)
    return graph


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ([], "no attribution graph"),
        (changed(nodes=[]), "a link names the node|no logit"),
        (changed(nodes={}), "nodes: Input should be a valid (list|array)"),
        (changed(metadata={"scan": 3}), r"metadata\.scan: Input should be a valid string"),
        (with_node(ctx_idx=2), "is at token 2; the prompt has 2"),
        (with_node(ctx_idx=-1), "is at token -1"),
        (with_node(ctx_idx=10**400), "is at token 1000"),
        (with_node(ctx_idx=True), r"ctx_idx: Input should be a valid integer"),
        (with_node(layer="E"), "has the layer 'E'"),
        (with_node(layer="-3"), "has the layer '-3'"),
        (with_node(layer="９"), "has the layer"),
        (with_node(layer=10**9), "has the layer '?1000000000"),
        (with_node(feature=10**400), "has the feature 1000"),
        (with_node(feature_type="<script>"), "is a '<script>'; known: embedding"),
        (with_node(activation=float("nan")), "activation: Input should be a finite number"),
        (with_node(activation=1e39), "is too large"),
        (with_node(node_id="1_40_1"), "1 ids of nodes stand twice, '1_40_1'"),
        (with_link(source="nobody"), "a link names the node 'nobody'"),
        (with_link(target="x" * 10_000), "which the graph does not have"),
        (with_link(weight=float("inf")), "weight: Input should be a finite number"),
        (with_link(weight=1e300), "too large"),
        (with_link(weight=None), "weight: Input should be a valid number"),
        (with_link(target="1_40_1"), "lead in a circle among 2 nodes"),
        (with_link(target="3_70_1"), "lead in a circle"),
        (with_link(source="27_9_1", target="27_8_1"), "a link leads on from the logit"),
    ],
)
def test_what_is_wrong_with_a_foreign_graph_is_named(graph: Any, said: str) -> None:
    with pytest.raises(RecordError, match=said) as told:
        read(graph)
    assert len(str(told.value)) < 1000


def test_foreign_bytes_that_are_no_json_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"metadata":' * 5000, b'"\\ud800"', b"NaN"):
        with pytest.raises(RecordError, match="no attribution graph"):
            from_neuronpedia(data)
    monkeypatch.setattr(imported, "MOST_BYTES", 10)
    with pytest.raises(RecordError, match="at most 10 are read"):
        from_neuronpedia(json.dumps(foreign()).encode())


def test_more_nodes_than_are_read_are_refused_before_they_are_looked_at() -> None:
    graph = changed(nodes=[foreign()["nodes"][0]] * (imported.MOST_NODES + 1))
    with pytest.raises(RecordError, match="should have at most 200000 items"):
        read(graph)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["27_9_1", "E"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400)
@given(data=st.data())
def test_any_change_of_a_foreign_graph_is_read_or_refused(data: st.DataObject) -> None:
    """Never another error; and what is read is a graph in order whose record could be drawn."""
    graph: Any = data.draw(st.sampled_from([foreign(), plain(circuit(neurons=4, edges=20, rests=2))]))
    for _ in range(data.draw(st.integers(1, 4))):
        place: Any = graph
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
                break
            place = place[key]
        if data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
        elif isinstance(place, dict) or len(place) > 1:
            del place[key]
        if not graph:
            break
    try:
        found = read(graph)
    except RecordError:
        return
    assert len(found.ids) == len(found.circuit)
    assert np.isfinite(found.circuit.influence_N).all()
    assert found.circuit.position_N.max() < max(1, len(found.tokens))
