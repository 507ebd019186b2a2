"""`truing trace` of one decision, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from truing.cli.trace import command
from truing.errors import TargetError, TruingError, UsageError
from truing.records import CaseGraph
from truing.share.graphs import from_neuronpedia, read_case
from truing.store import open_store

ASKED = ["--prompt", "The sky is green. Is the sky green?", "--target", "local/tiny", "--neurons", "8"]


def run(*words: str) -> Result:
    done = CliRunner().invoke(command, list(words), standalone_mode=False)
    if isinstance(done.exception, TruingError):
        raise done.exception
    assert done.exception is None, done.exception
    return done


def test_one_decision_is_traced_and_called_an_illustration(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    said = run(*ASKED, "--action", "True.", "--instead", "False.", "--store", store)
    assert said.return_value == 0
    assert "illustration: one case, no interval" in said.stdout
    assert "accounting, not faithfulness" in said.stdout
    assert "of the influence: neuron" in said.stdout
    assert "attribution and exact effect, Pearson (zero)" in said.stdout
    assert "nats/token: 1 user" in said.stdout
    body = json.loads(run(*ASKED, "--action", "True.", "--instead", "False.", "--store", store, "--json").stdout)
    assert body["closure_error"] < 1e-5
    with open_store(Path(store), mode="read") as opened:
        case = opened.get(body["id"])
        assert isinstance(case, CaseGraph)
        assert opened.blob_path(case.graph).exists()


def test_neurons_are_labelled_unless_it_is_switched_off(tmp_path: Path) -> None:
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--no-check", "--store", str(tmp_path / "store")]
    plain = run(*asked, "--no-labels")
    assert "label's score" not in plain.stdout
    assert "supernode" not in plain.stdout
    bare = json.loads(run(*asked, "--no-labels", "--json").stdout)
    assert not {"labels", "supernodes"} & bare.keys()
    said = run(*asked)
    body = json.loads(run(*asked, "--json").stdout)
    assert body["labels"]
    for name, value in body.items():
        assert name in ("labels", "supernodes", "id") or bare[name] == value
    best = body["labels"][0]
    line = next(line for line in said.stdout.splitlines() if line.startswith("carries"))
    assert f"neuron {best['layer']}.{best['index']} " in line
    score, shuffled = (f"{best[key]['value']:.2f}" for key in ("score", "shuffled"))
    assert f"(label's score {score}, another's {shuffled})" in line
    assert any(repr(best[side][0]["token"]) in line for side in ("strongest", "weakest"))
    values = [one["score"]["value"] for one in body["labels"] if "value" in one["score"]]
    assert f"{len(values)} with a score: median {median(values):+.2f} (middle half" in said.stdout
    group = body["supernodes"][0]
    assert f"supernode {group['name']}: {len(group['nodes'])} neuron" in said.stdout
    assert "trace: labels of neurons" in said.stderr
    with pytest.raises(UsageError, match="--no-labels: of the graph of one case"):
        run("3fa9", "--no-labels")


@pytest.mark.parametrize("what", ["truing", "neuronpedia"])
def test_a_graph_is_exported_and_comes_back(what: str, tmp_path: Path) -> None:
    out = tmp_path / "graph.json"
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--store", str(tmp_path / "store")]
    body = json.loads(run(*asked, "--export", what, "--out", str(out), "--json").stdout)
    if what == "truing":
        assert read_case(out).case.id == body["id"]
        assert len(body["files"]) == 2
    else:
        found = from_neuronpedia(out.read_bytes())
        assert int(found.circuit.of("neuron").sum()) > 0
        assert body["files"] == [str(out)]
    with pytest.raises(UsageError, match="for the graph of one case"):
        run("3fa9", "--export", what)
    with pytest.raises(TruingError, match="is a file"):
        run(*asked, "--export", what, "--out", str(out / "graph.json"))


def test_a_case_is_checked_with_a_twin_and_in_other_words(tmp_path: Path) -> None:
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--store", str(tmp_path / "store"), "--json"]
    twin = ["--against", "The sky is black. Is the sky green?"]
    body = json.loads(run(*asked, *twin, "--paraphrase", "They say the sky is green. Is it?", "--full").stdout)
    names = {check["name"] for check in body["checks"]}
    assert "decision with all neurons ablated (counterfactual)" in names
    assert any("over paraphrases" in name for name in names)
    (exact,) = (c for c in body["checks"] if c["name"] == "attribution and exact effect, Pearson (zero)")
    assert exact["quantity"]["n"] == 8
    bare = json.loads(run(*asked, "--no-check").stdout)
    assert (bare["checks"], bare["curves"], bare["verdict"]) == ([], [], "inconclusive")
    with pytest.raises(TargetError, match="does not align"):
        run(*asked, "--against", "Short.")
    with pytest.raises(UsageError, match="other prompts"):
        run("--transcript", "x.json", "--span", "y", "--against", "z", "--store", str(tmp_path / "store"))


def test_what_was_written_is_traced_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    turns = [{"role": "user", "content": "Is the sky green?"}, {"role": "assistant", "content": "It is, as you say."}]
    file.write_text(json.dumps(turns))
    more = ["--target", "local/tiny", "--neurons", "4", "--store", str(tmp_path / "store")]
    done = run("--transcript", str(file), "--span", "as you say", *more)
    assert "what was written: as you say" in done.stdout
    with pytest.raises(UsageError, match="needs --span"):
        run("--transcript", str(file), *more)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '[{"role": "user"}]', '[{"role": "x", "content": ""}]', "[" * 9999]
)
def test_a_file_that_is_no_transcript_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"transcript"):
        run("--transcript", str(file), "--span", "x", "--store", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of CLAIM, --prompt, --transcript, --planted; given: none"),
        (["3fa9", "--prompt", "x"], "given: CLAIM, --prompt"),
        (["--prompt", "x", "--action", "y"], "needs --action and --instead"),
        (["--prompt", "x", "--action", "y", "--instead", "z", "--target", "scripted/honest"], "no inside"),
        (["3fa9", "--against", "x", "--full"], "--against, --full: of the graph of one case"),
        (["--prompt", "x", "--action", "y", "--instead", "z", "--rule", "gradient"], "contributions add up under"),
        (["--planted", "threat-letter", "--target", "local/tiny"], "is no organism"),
        (["--prompt", "x", "--diff", "local/tiny", "local/tiny"], "over the cases of a claim"),
    ],
)
def test_wrong_use_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(TruingError, match=said):
        run(*words, "--store", str(tmp_path / "store"))
