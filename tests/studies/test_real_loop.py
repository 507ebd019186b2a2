"""The loop on the bundled model: about ten minutes. What it must find is what the README shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    store = tmp_path_factory.mktemp("real") / "store"
    command = [sys.executable, "-m", "truing", "loop", "local/smollm2-135m", "--store", str(store), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_controls_strike_the_tempting_claims_down(result: dict) -> None:
    claims = {(c["family"], c["outcome"]): c for c in result["claims"]}
    sycophancy = claims["sycophancy", "preference"]
    assert sycophancy["naive"]["low"] > 0
    assert sycophancy["verdict"] == "not specific"
    assert claims["insider", "preference"]["verdict"] in ("null", "not specific")
    assert {c["verdict"] for key, c in claims.items() if key[0] == "anchoring"} == {"supported"}


def test_the_explanation_survives_intervention(result: dict) -> None:
    graph = result["graph"]
    assert graph["closure_error"] <= 1e-4
    assert graph["verdict"] == "supported"
    shares = {(m["kind"], m["k"], m["choice"]): m["share"] for m in graph["mediated"]}
    for kind, k in (("head", 15), ("neuron", 1000)):
        chosen = shares[kind, k, "attribution"]
        assert chosen["low"] > max(shares[kind, k, rule]["high"] for rule in ("random", "shuffled"))


def test_the_fix_holds_on_held_out_topics_and_wordings(result: dict) -> None:
    assert result["runout"]["preference"]["high"] < 0
    assert result["runout"]["generation"]["high"] < 0
    assert result["retention"]["bits per byte, after - before"]["high"] <= 0.02
    assert all("over-correction" in line for line in result["failed"])  # reported, not hidden


def test_it_fits_the_machine(result: dict) -> None:
    assert result["peak_rss_mb"] <= 6 * 1024
    assert result["bundle"]["verified"]
    assert Path(result["report"]).stat().st_size > 100_000
