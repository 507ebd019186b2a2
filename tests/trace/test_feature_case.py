"""A case in features of a dictionary: from a folder to the record, the report and the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import yaml
from safetensors.torch import save_file

from truing.errors import TargetError
from truing.records import CaseGraph, Circuit, Message
from truing.report import overview
from truing.share.graphs import from_neuronpedia, neuronpedia
from truing.store import Store, open_store
from truing.targets.local import LocalTarget
from truing.trace import Beside, CaseSettings, between, read_features, trace_case
from truing.trace.feature_set import FeatureSet, features_written

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)
F = 48


def write(folder: Path, *, layers: int = 3, width: int = 64, seed: int = 0) -> Path:
    """Random cross-layer transcoders in circuit-tracer's layout."""
    folder.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    for n in range(layers):
        save_file({f"W_enc_{n}": torch.randn(F, width, generator=g), f"b_enc_{n}": torch.randn(F, generator=g) - 8,
                   f"b_dec_{n}": torch.zeros(width)}, folder / f"W_enc_{n}.safetensors")  # fmt: skip
        decoder = 0.02 * torch.randn(F, layers - n, width, generator=g)
        save_file({f"W_dec_{n}": decoder}, folder / f"W_dec_{n}.safetensors")
    settings = {"model_kind": "cross_layer_transcoder", "feature_input_hook": "ln2.hook_normalized",
                "feature_output_hook": "hook_mlp_out"}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def traced(tiny: LocalTarget, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("features")
    features = read_features(write(folder / "made"), tiny.model)
    with open_store(folder / "store") as store:
        yield store, features, _case(tiny, store, features)


def _case(target: LocalTarget, store: Store, features: FeatureSet | None, **settings: Any) -> CaseGraph:
    context = between(target, ASKED, ("True.",), ("False.",))
    return trace_case(target, context, store, features=features, settings=CaseSettings(neurons=12, **settings))


def test_a_case_is_traced_in_features_and_checked(traced: Any, tiny: LocalTarget) -> None:
    store, features, case = traced
    assert case.basis == f"features of cross-layer transcoders (made, {features.digest[:12]})"
    assert (case.unit, case.selected, case.candidates) == ("feature", 12, len(case.tokens) * 3 * F)
    assert case.closure_error < 1e-5
    circuit = Circuit.unpacked(store.blob_bytes(case.graph))
    nodes = circuit.of("neuron").nonzero()[0]
    assert (circuit.index_N[nodes] < F).all()
    assert (circuit.value_N[nodes] > 0).all()
    assert (circuit.position_N[nodes] > 0).all()
    names = [check.name for check in case.checks]
    assert "decision with all features ablated (zero)" in names
    assert not [name for name in names if "neuron" in name]
    assert "neuron" not in case.why
    assert store.get(case.id) == case
    assert _case(tiny, store, features) == case  # it is found, not traced again
    assert _case(tiny, store, None, check=False).unit == "neuron"


def test_what_features_write_is_what_their_rows_write(traced: Any, tiny: LocalTarget) -> None:
    _, features, case = traced
    name, more, less = case.writes[0]
    layer, index = map(int, name.split("."))
    row = features.layers[layer].decoders_WFD[:, index].sum(0) * tiny.model.model.norm.weight
    logits = tiny.model.get_output_embeddings().weight @ row
    assert more[0] == tiny.tokenizer.decode([int(logits.argmax())])
    assert less[0] == tiny.tokenizer.decode([int(logits.argmin())])
    assert features_written(tiny, features, [(layer, index)]) == [(more, less)]


def test_it_is_drawn_and_exported_as_features(traced: Any, tiny: LocalTarget) -> None:
    store, _, case = traced
    page = overview([case, tiny.card], blobs=store.blob_bytes)
    assert "feature that carries the decision" in page
    assert "other features, and what no feature stands for, of layer" in page
    assert "neuron that carries" not in page
    circuit = Circuit.unpacked(store.blob_bytes(case.graph))
    for native in (False, True):
        graph = neuronpedia(case, circuit, native=native)
        some = [node for node in graph["nodes"] if node["unit"] == "feature"]
        assert len(some) == int(circuit.of("neuron").sum())
        assert {node["feature_type"] for node in some} == {"cross layer transcoder"}
        assert "neuron" not in graph["metadata"]["info"]["description"]
        assert not [node for node in graph["nodes"] if "neuron" in node["clerp"]]
    assert int(from_neuronpedia(json.dumps(graph).encode()).circuit.of("neuron").sum()) == len(some)


def test_paraphrases_are_in_features_too(traced: Any, tiny: LocalTarget) -> None:
    store, features, _ = traced
    other = between(tiny, [Message(role="user", content="They say the sky is green. Is it?")], ("True.",), ("False.",))
    context = between(tiny, ASKED, ("True.",), ("False.",))
    beside, settings = Beside(paraphrases=(other,)), CaseSettings(neurons=8, check=False)
    case = trace_case(tiny, context, store, features=features, beside=beside, settings=settings)
    assert any("over paraphrases" in check.name for check in case.checks)


def test_what_is_in_a_folder_is_what_it_is_known_by(tmp_path: Path, tiny: LocalTarget) -> None:
    one, again, other = (
        read_features(write(tmp_path / name, seed=seed), tiny.model) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.digest == again.digest != other.digest
    with pytest.raises(TargetError, match="would fit the model"):
        read_features(write(tmp_path / "wide", width=32), tiny.model)
    with pytest.raises(TargetError, match=r"\(48, 3, 64\) would fit the model"):
        read_features(write(tmp_path / "shallow", layers=2), tiny.model)


def test_a_check_of_features_that_memory_does_not_hold_is_refused_before_the_graph(
    traced: Any, tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truing.trace.feature_ablation import Features
    from truing.trace.feature_check import feature_room
    from truing.trace.room import bench_costs

    def never(*_: Any) -> Any:
        raise AssertionError("the graph was begun")

    _, features, _ = traced
    monkeypatch.setattr("truing.trace.case.account", never)
    target = LocalTarget("local/tight", tiny.model, tiny.tokenizer, weights="7" * 64)
    context = between(target, ASKED, ("True.",), ("False.",))
    basis = Features(tiny.model, features.layers, beginning=features.beginning)
    fixed, one = bench_costs(tiny.model, context.functional, basis)
    for most, said in (
        (fixed + one - 1, r"ablating features in a case of \d+ tokens, 1 row at once takes about"),
        (2 * len(context.functional.tree) * features.count * 4 - 1, "more than half of the"),
    ):
        target.max_memory = most
        with open_store(tmp_path / "store") as store:
            with pytest.raises(TargetError, match=said):
                _case(target, store, features)
            assert store.ls() == []
    target.max_memory = fixed + 2 * one
    assert "2 rows at once" in str(feature_room(target, context.functional, features, twin=False))
