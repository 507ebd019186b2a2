"""Cases in a store reach the report and the bundle, with their graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from truing.cli import cli
from truing.errors import StoreError
from truing.records import Loop, Target, Unmeasured
from truing.share import verify
from truing.store import open_store

from ..cases import case, circuit  # noqa: TID252 - tests are no package

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
