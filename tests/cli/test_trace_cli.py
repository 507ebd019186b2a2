"""`truing trace` of one decision, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from truing.cli.share import pack
from truing.cli.trace import command
from truing.cli.trace_lines import lens_lines, probe_lines
from truing.errors import TargetError, TruingError, UsageError
from truing.records import CaseGraph, Estimate, Measurement, Message, Named
from truing.share.graphs import from_neuronpedia, read_case
from truing.store import open_store

from ..trace.test_feature_case import write  # noqa: TID252 - tests are no package

TWICE = ["local/tiny", "local/tiny"]
DECIDED = ["--prompt", "x", "--action", "y", "--instead", "z"]
SPAN = ["--transcript", "x.json", "--span", "y"]
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


def test_neurons_are_labelled_unless_it_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--no-check", "--store", str(tmp_path / "store")]
    plain = run(*asked, "--no-labels")
    assert "label's score" not in plain.stdout
    assert "supernode" not in plain.stdout
    bare = json.loads(run(*asked, "--no-labels", "--json").stdout)
    of_labels = {"labels", "labelled_from", "supernodes"}
    assert not of_labels & bare.keys()
    said = run(*asked)
    body = json.loads(run(*asked, "--json").stdout)
    assert body["labels"]
    for name, value in body.items():
        assert name in {*of_labels, "id"} or bare[name] == value
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
    monkeypatch.setenv("TRUING_CONFIG", str(tmp_path / "config"))
    store = str(tmp_path / "store")
    for case, quoting in ((body, True), (bare, False)):
        packed = CliRunner().invoke(pack, [case["id"], "--out", str(tmp_path / "e"), "--store", store])
        assert packed.exit_code == 0, packed.output
        given = CliRunner().invoke(pack, [case["id"], "--out", str(tmp_path / "e"), "--store", store, "--json"])
        assert json.loads(given.stdout)["quoting"] == [case["id"]] * quoting
        assert (f"may be replies in this store: case {case['id'][:12]}" in packed.stdout) is quoting
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
        assert found.scan == body["target"]
        run(*asked, "--export", what, "--out", str(out), "--scan", "gemma-2-2b")
        assert from_neuronpedia(out.read_bytes()).scan == "gemma-2-2b"
    with pytest.raises(UsageError, match="for the graph of one case"):
        run("3fa9", "--export", what)
    with pytest.raises(TruingError, match="is a file"):
        run(*asked, "--export", what, "--out", str(out / "graph.json"))


def test_a_case_is_checked_with_a_twin_and_in_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr("truing.trace.case.account", lambda *_: pytest.fail("a graph was computed"))
    with pytest.raises(TargetError, match="does not align"):
        run(*asked, "--against", "Short.")


def test_a_transcript_is_checked_with_another_and_in_other_words(tmp_path: Path) -> None:
    said = {"case": "The sky is green.", "twin": "The sky is black.", "other": "They say the sky is green."}
    for name, text in said.items():
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "It is, as you say."}]
        (tmp_path / f"{name}.json").write_text(json.dumps(turns))
    case, twin, other = (str(tmp_path / f"{name}.json") for name in said)
    more = ["--target", "local/tiny", "--neurons", "4", "--no-labels", "--store", str(tmp_path / "store"), "--json"]
    for what in (["--span", "as you say"], ["--action", "True.", "--instead", "False."]):
        body = json.loads(run("--transcript", case, *what, "--against", twin, "--paraphrase", other, *more).stdout)
        names = {check["name"] for check in body["checks"]}
        assert "decision with all neurons ablated (counterfactual)" in names
        assert "attribution and exact effect, Pearson (counterfactual)" in names
        assert any("over paraphrases" in name for name in names)
    with pytest.raises(UsageError, match="cannot read a transcript"):
        run("--transcript", case, "--span", "as you say", "--against", "no such file", *more)


def test_what_was_written_is_traced_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    turns = [{"role": "user", "content": "Is the sky green?"}, {"role": "assistant", "content": "It is, as you say."}]
    file.write_text(json.dumps(turns))
    more = ["--target", "local/tiny", "--neurons", "4", "--store", str(tmp_path / "store")]
    done = run("--transcript", str(file), "--span", "as you say", *more)
    assert "what was written: as you say" in done.stdout
    with pytest.raises(UsageError, match="needs --span"):
        run("--transcript", str(file), *more)


def test_a_decision_at_the_end_of_a_transcript_is_that_of_the_replies(tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    turns = [
        {"role": "user", "content": "The sky is green."}, {"role": "assistant", "content": "It is."},
        {"role": "user", "content": "Is the sky green?"},
    ]  # fmt: skip
    file.write_text(json.dumps(turns))
    more = ["--target", "local/tiny", "--neurons", "4", "--no-check", "--no-labels", "--store", str(tmp_path / "store")]
    body = json.loads(
        run("--transcript", str(file), "--action", "True.", "--instead", "False.", *more, "--json").stdout
    )
    assert (body["actions"], body["alternatives"]) == (["True."], ["False."])
    assert {"1 user", "2 assistant", "3 user"} <= set(body["segments"])
    prompt = tiny.prompt_ids([Message.model_validate(turn) for turn in turns])
    yes, no = tiny.log_probs([(prompt, tiny.text_ids(said)) for said in ("True.", "False.")])[0]
    assert body["value"] == pytest.approx(float(yes.mean() - no.mean()), abs=1e-5)


CALL, SPELLED = '{"to":"Ada Ward","why":"lunch"}', '{"to": "Ada Ward", "why": "lunch"}'


@pytest.mark.parametrize(("span", "found"), [(CALL, SPELLED), ("Ada Ward", "Ada Ward")])
def test_the_arguments_of_a_call_are_traced(span: str, found: str, tiny: Any, tmp_path: Path) -> None:
    """As the transcript has them, whatever blanks the template puts in, or a part of them."""
    file, store = tmp_path / "said.json", tmp_path / "store"
    turns = [
        {"role": "user", "content": "Mail it to Ada."},
        {"role": "assistant", "content": "", "calls": [{"name": "send", "arguments": CALL}]},
        {"role": "tool", "content": "sent", "tool": "send"},
    ]
    file.write_text(json.dumps(turns))
    asked = ["--transcript", str(file), "--span", span, "--target", "local/tiny", "--neurons", "4", "--no-check"]
    body = json.loads(run(*asked, "--no-labels", "--store", str(store), "--json").stdout)
    assert body["actions"] == [span]
    text = tiny.rendered([Message.model_validate(turn) for turn in turns])
    start, stop = text.index(found), text.index(found) + len(found)
    assert "".join(body["tokens"]) == text[:stop]  # what follows is no part of the graph
    own = "".join(
        token for token, segment in zip(body["tokens"], body["segments"], strict=True) if segment == "2 assistant"
    )
    assert own == f"send {SPELLED[: SPELLED.index(found) + len(found)]}"
    # Its value is the mean log-probability of the tokens that hold the span, after all that is before them.
    ids, spans = zip(*tiny.offsets(text), strict=True)
    within = [place for place, (a, b) in enumerate(spans) if a < stop and b > start]
    (values,), _ = tiny.log_probs([(list(ids[: within[0]]), list(ids[within[0] : within[-1] + 1]))])
    assert body["value"] == pytest.approx(float(values.mean()), abs=1e-5)


NO_CALL = '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "calls": [{"name": "f", %s}]}]'


@pytest.mark.parametrize(
    "content",
    [
        "", "{}", "[]", '[{"role": "user"}]', '[{"role": "x", "content": ""}]', "[" * 9999,
        NO_CALL % '"arguments": "{"', NO_CALL % '"arguments": "[1]"', NO_CALL % '"arguments": {}',
        NO_CALL % f'"arguments": "{"[" * 99999}"',
    ],
)  # fmt: skip
def test_a_file_that_is_no_transcript_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"transcript"):
        run("--transcript", str(file), "--span", "x", "--store", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_the_field_of_a_transcript_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text('[{"role": "user", "content": "x"}, {"role": "user"}]')
    with pytest.raises(UsageError, match=r"turn 1\.content: Field required\. It is a JSON list"):
        run("--transcript", str(file), "--span", "x", "--store", str(tmp_path / "store"))


def test_a_case_is_traced_in_features_and_read_by_layer(tmp_path: Path) -> None:
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--store", str(tmp_path / "store")]
    more = ["--dictionary", str(write(tmp_path / "made")), "--lens", "--no-check"]
    said = run(*asked, *more).stdout
    assert "of the influence: feature" in said
    assert "what no feature stands for" in said
    (last,) = [line for line in said.splitlines() if line.startswith("layer   2")]
    assert "nats/token" in last
    body = json.loads(run(*asked, *more, "--json").stdout)
    assert body["basis"].startswith("features of cross-layer transcoders (made, ")
    assert body["lens"]["layers"][-1] == pytest.approx(body["value"], abs=1e-5)
    with open_store(tmp_path / "store", mode="read") as opened:
        assert opened.get(body["lens"]["id"]).name == "decision by layer"


def test_a_lens_that_does_not_fit_is_refused_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.trace.by_layer.AGREES", -1.0)  # no end is near enough
    store = tmp_path / "store"
    with pytest.raises(TargetError, match="no lens can be put on it"):
        run(*ASKED, "--action", "True.", "--instead", "False.", "--store", str(store), "--lens")
    with open_store(store, mode="read") as opened:
        assert not opened.of_kind("case")


def test_a_folder_without_dictionaries_is_refused_before_anything(tmp_path: Path) -> None:
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--store", str(tmp_path / "store")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match="holds no dictionaries"):
        run(*asked, "--dictionary", str(tmp_path / "empty"), "--target", "local/no-such-model")
    assert not (tmp_path / "store").exists()
    with pytest.raises(TargetError, match="would fit the model"):
        run(*asked, "--dictionary", str(write(tmp_path / "wide", width=32)))
    missing = CliRunner().invoke(command, [*asked, "--dictionary", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2


def test_a_bar_is_as_long_as_the_decision_is_large() -> None:
    rows = [
        Named(name=f"layer {n}", quantity=Estimate(value=v, low=v, high=v, level=1.0, n=1, clusters=1,
                                                   unit="nats/token", estimator="exact"))
        for n, v in enumerate((-4.0, 2.0, 0.0))
    ]  # fmt: skip
    lines = lens_lines(Measurement(name="decision by layer", targets=(), quantities=tuple(rows), note="said"))
    assert [line.count("-") - line.count("-4.0") for line in lines[1:2]] == [16]
    assert lines[2].endswith(f"|{'+' * 8}")
    assert lines[3].endswith("|")


def test_the_headline_of_a_probe_is_that_of_its_verdict() -> None:
    areas = {"layers together": 0.75, "labels shuffled within plots": 0.5, "layer 0": 0.9}
    rows = [
        Named(name=name, quantity=Estimate(value=v, low=v, high=v, level=0.95, n=8, clusters=4, unit="probability",
                                           estimator="area"))
        for name, v in areas.items()
    ]  # fmt: skip
    lines = probe_lines(Measurement(name="probe", targets=(), quantities=tuple(rows), note="a against b: found"))
    assert lines[0] == "a against b: found"
    assert lines[1].startswith("AUROC in plots left out: +0.750 ")
    assert [line.split()[0] for line in lines[2:4]] == ["beside", "alone"]
    assert "+0.900" in lines[3]


def test_a_target_is_asked_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.trace.named.CALLED", 1)
    store = ["--store", str(tmp_path / "store")]
    asked = [*ASKED, "--action", "True.", "--instead", "False.", "--no-check", "--named-by", "local/tiny", *store]
    said = run(*asked)
    body = json.loads(run(*asked, "--json").stdout)
    (one,), first = body["names"], body["labels"][0]
    assert (one["layer"], one["index"]) == (first["layer"], first["index"])
    assert body["named_by"] == body["target"]
    assert f"\nname      {one['layer']}.{one['index']}: " in said.stdout
    assert "trace: names by local/tiny" in said.stderr
    with pytest.raises(TargetError, match="unknown target 'nobody/x'"):
        run(*asked[:-4], "--named-by", "nobody/x", *store)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of CLAIM, --prompt, --transcript, --planted; given: none"),
        (["3fa9", "--prompt", "x"], "given: CLAIM, --prompt"),
        (["--prompt", "x", "--action", "y"], "needs --action and --instead"),
        (["--prompt", "x", "--action", "y", "--instead", "z", "--target", "scripted/honest"], "no inside"),
        (["3fa9", "--against", "x", "--full"], "--against, --full: of the graph of one case"),
        (["--prompt", "x", "--action", "y", "--instead", "z", "--rule", "gradient"], "contributions add up under"),
        (["3fa9", "--lens"], "--lens: of the graph of one case"),
        (["3fa9", "--dictionary", "."], "--dictionary: of the graph of one case"),
        (["--prompt", "x", "--probe"], "--probe tells the two cells of a claim apart"),
        (["3fa9", "--probe", "--diff", "local/tiny", "local/tiny"], "and no --diff"),
        (["--planted", "threat-letter", "--target", "local/tiny"], "is no organism"),
        (["--prompt", "x", "--diff", "local/tiny", "local/tiny"], "over the cases of a claim"),
        (["3fa9", "--neurons", "512"], "^--neurons: of the graph of one case"),  # given, though it is the default
        (["3fa9", "--system", "x"], "^--system: of the graph of one case"),
        (["3fa9", "--target", "local/tiny"], "^--target: the model of one case, or the organism of --planted"),
        (["3fa9", "--diff", *TWICE, "--rule", "relp"], "^--rule: what units are scored by"),
        (["3fa9", "--probe", "--rule", "gradient"], "^--rule: what units are scored by"),
        (["3fa9", "--diff", *TWICE, "--seed", "1"], "^--seed: of what is drawn at random, and here nothing is"),
        (["3fa9", "--out", "x.json"], "^--out: for the graph of one case"),
        (["--planted", "threat-letter", "--span", "x", "--neurons", "9"], "^--span, --neurons: of the graph of one"),
        (["--planted", "threat-letter", "--scan", "x"], "^--scan: for the graph of one case"),
        ([*SPAN, "--action", "x", "--instead", "z"], "^give --span, for words that were written, or --action and"),
        ([*SPAN[:2], "--action", "x"], "--transcript needs --action and --instead"),
        ([*SPAN, "--system", "x", "--paraphrase", "z"], "^--system: a turn before --prompt; a transcript has its own"),
        ([*DECIDED, "--span", "x"], "^--span: words of a transcript to explain; give it by --transcript"),
        (
            [*DECIDED, "--no-check", "--against", "x", "--full"],
            "^--against, --full: for ablations, of which --no-check",
        ),
        ([*SPAN, "--no-check", "--full"], "^--full: for ablations"),
        ([*DECIDED, "--no-check", "--no-labels", "--seed", "1"], "^--seed: of what is drawn at random"),
        ([*DECIDED, "--no-check", "--dictionary", ".", "--seed", "1"], "^--seed: of what is drawn at random"),
        ([*DECIDED, "--cells", "a=b", "a=c"], "^--cells: two settings of the plots of a claim"),
        ([*DECIDED, "--no-labels", "--named-by", "local/tiny"], "^--named-by: names beside labels"),
        ([*DECIDED, "--dictionary", ".", "--named-by", "local/tiny"], "^--named-by: names beside labels"),
        (["3fa9", "--named-by", "local/tiny"], "^--named-by: of the graph of one case"),
        ([*DECIDED, "--out", "x.json"], "^--out: where --export writes to"),
        ([*DECIDED, "--scan", "gemma-2-2b"], "^--scan: the model's name for --export neuronpedia"),
        (
            [*DECIDED, "--scan", "gemma-2-2b", "--export", "truing"],
            "^--scan: the model's name for --export neuronpedia",
        ),
        ([*DECIDED, "--export", "truing", "--out", "x.txt", "--target", "local/none"], "NAME.json, .* got x.txt"),
        ([*DECIDED, "--action", "y", "--target", "local/tiny"], "'y' is given twice on one side"),
    ],
)
def test_wrong_use_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(TruingError, match=said) as told:
        run(*words, "--store", str(tmp_path / "store"))
    assert told.value.exit_code == 2


def test_what_is_read_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option, once, where it is read; what was not given has its default and is never refused."""
    monkeypatch.setattr("truing.cli.trace._case", lambda *args, **more: args[3])
    monkeypatch.setattr("truing.cli.trace._planted", lambda *args, **more: args[0])
    monkeypatch.setattr("truing.cli.trace._claim", lambda *args, **more: args[2])
    store = ["--store", str(tmp_path / "store")]
    case = ["--neurons", "9", "--no-labels", "--rule", "gate-frozen", "--lens", "--target", "local/tiny"]
    said = ["--system", "a", "--paraphrase", "b", "--against", "c", "--full", "--seed", "3"]
    files = ["--export", "neuronpedia", "--out", str(tmp_path / "a.json"), "--scan", "gemma-2-2b"]
    found = run(*DECIDED, *case, *said, *files, *store).return_value
    assert found == {"neurons": 9, "rule": "gate-frozen", "seed": 3, "full": True, "check": True}
    assert run(*DECIDED, "--no-check", "--seed", "3", "--paraphrase", "b", *store).return_value["seed"] == 3
    assert run("--planted", "x", "--target", "a@b", "--rule", "gradient", "--seed", "3", *store).return_value == "a@b"
    claimed = run("3fa9", "--rule", "gradient", "--seed", "3", *store).return_value
    assert claimed == {"seed": 3, "cells": None, "tracing": {"rule": "gradient"}}
    assert run("3fa9", "--cells", "cue=test", "cue=real", *store).return_value["cells"] == ("cue=test", "cue=real")
