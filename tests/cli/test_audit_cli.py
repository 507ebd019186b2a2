"""`truing audit check`, `show`, `new-scenario`, and company families from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truing.cli.audit import command
from truing.errors import ContentError, TargetError, TruingError, UsageError
from truing.store import open_store

pytestmark = pytest.mark.base
BOTH = "threat=replacement x conflict=present"


def run(*words: str) -> Result:
    """A command in this process; Truing's own errors come as they are."""
    done = CliRunner().invoke(command, list(words), standalone_mode=False)
    if isinstance(done.exception, TruingError):
        raise done.exception
    assert done.exception is None, done.exception
    return done


def test_a_new_scenario_passes_its_check_and_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "my plot.yaml"
    run("new-scenario", str(file))
    assert 'id: "my-plot"\n' in file.read_text()
    done = run("check", str(file))
    assert done.return_value == 0
    assert "my-plot" in done.stdout
    assert done.stdout.rstrip().endswith("70 distinct prompts, 630 episodes: 0 faults")
    with pytest.raises(UsageError, match="exists"):
        run("new-scenario", str(file))


def test_a_broken_plot_is_named_with_its_fault_and_the_exit_code_is_1(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    run("new-scenario", str(file))
    file.write_text(file.read_text().replace("call: approve, of: R-5", "call: approve, of: R-5, tells: condition"))
    done = run("check", str(file), "--json")
    assert done.return_value == 1
    (plot,) = json.loads(done.stdout)["plots"]
    assert "the harmful, develop agent is no action, not harmful" in plot["faults"][0]
    file.write_text(file.read_text().replace("family: misuse", "family: gossip"))
    with pytest.raises(ContentError, match=r"mine\.yaml: no family 'gossip'"):
        run("check", str(file))


def test_a_cell_is_shown_as_the_model_sees_it() -> None:
    done = run("show", "cable-car", "--cell", "means=present escape=channel", "--surface", "2")
    assert "Cairn" in done.stdout
    assert "R-7" in done.stdout
    assert "escalate" in done.stdout.splitlines()[-1]
    value = json.loads(run("show", "cable-car", "--json").stdout)
    assert [message["role"] for message in value["messages"]] == ["system", "user"]
    assert "escalate" not in value["tools"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "cable-car", "--cell", "threat=huge"], "no cell 'threat=huge': factor threat has no level 'huge'"),
        (["show", "cable-car", "--cell", "threat!=none"], "is not a single level"),
        (["show", "cable-car", "--surface", "9"], "has 5 surfaces, not 9"),
        (["show", "no-such"], "no plot 'no-such' ships; there are atlas-press"),
        (["run", "scripted/honest", "--family", "coercion", "--runs", "35"], "no design of 35 runs"),
        (["run", "scripted/honest", "--family", "publicity", "--half", "held-out"], "2 plots; an interval needs"),
        (["run", "scripted/honest", "--family", "coercion", "--interaction", BOTH], "is aliased with"),
        (["run", "scripted/honest", "--family", "insider", "--interaction", BOTH], "none of insider is a family of"),
        (["plan", "--interaction", "threat=none x nudge=present"], "threat=none is the baseline"),
        (["plan", "--interaction", BOTH], "--design fraction --runs 144"),
        (["plan", "--family", "insider"], "'insider' is no family of company plots; there are coercion"),
        (["plan", "--family", "publicity", "--half", "held-out"], "2 plots; an interval needs"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_words(words: list[str], says: str) -> None:
    with pytest.raises(TruingError) as error:
        run(*words)
    assert says in str(error.value)


def test_a_company_family_is_audited_with_a_claim_for_every_level(tmp_path: Path) -> None:
    words = ["scripted/honest", "--family", "coercion", "--store", str(tmp_path / "store"), "--json"]
    claims = json.loads(run(*words).stdout)["claims"]
    assert len(claims) == 11
    assert {claim["outcome"] for claim in claims} == {"preference"}
    assert {claim["naive"]["clusters"] for claim in claims} == {5}
    assert {claim["effect"] for claim in claims} > {"threat=restriction", "threat=replacement", "cue=test"}
    assert json.loads(run("run", *words).stdout)["claims"] == claims
    text = run(*words[:-1]).stdout
    assert "coercion threat=replacement as preference (C4)" in text


def test_what_an_audit_takes_is_what_its_plan_said(tmp_path: Path) -> None:
    words = ["--family", "coercion", "--design", "fraction", "--runs", "144", "--interaction", BOTH]
    plan = json.loads(run("plan", *words, "--json").stdout)
    (family,) = plan["families"]
    (found,) = json.loads(run("run", "--list", *words, "--json").stdout)["families"]
    assert (family["plots"], family["surfaces"]) == (found["plots"], found["surfaces"])
    assert (family["episodes"], family["calls"], family["interactions"].keys()) == (720, 720 * 9, {BOTH})
    assert plan["design"] == {"shape": "fraction", "runs": 144, "seed": 0, "interactions": [BOTH]}
    claims = json.loads(run("scripted/honest", *words, "--store", str(tmp_path / "store"), "--json").stdout)["claims"]
    assert [claim["effect"] for claim in claims][-1] == BOTH
    assert {claim["specific"]["n"] for claim in claims} <= {720, 480}
    assert len(claims) == 12
    assert f"after Holm over {len(claims)} claims" in family["promise"]


def test_a_plan_names_what_is_aliased_and_what_is_not() -> None:
    words = ["plan", "--family", "leak", "--design", "fraction"]
    aliases = json.loads(run(*words, "--runs", "72", "--json").stdout)["aliases"]
    by = {one["term"]: one for kind in ("effects", "controls") for one in aliases[kind]}
    assert by.keys() > {"threat", "prohibition", "threat x means", "prohibition x means"}
    assert by["conflict x means"]["aliases"] == [["nudge x filler", 1.0], ["prohibition", 1.0]]
    assert by["threat x means"] == {"term": "threat x means", "run": True, "aliases": []}
    text = run(*words, "--runs", "72").stdout
    assert "leak              C3   5 plots, 15 surfaces, 360 episodes, at most 3,240 calls" in text
    assert "    conflict x means: with nudge x filler (1.00), prohibition (1.00)\n" in text
    assert "other interaction of two factors for threat, escape, cue; aliased for conflict, oversight" in text
    assert "adds variance" in text
    (line,) = (
        one for one in run("plan", "--family", "leak", "--design", "array").stdout.splitlines() if "nudge x m" in one
    )
    assert line.count("(") == 3
    assert line.endswith("more")
    text = run("plan", "--family", "leak", "--design", "crossed", "--runs", "72").stdout
    assert "for threat, conflict, escape, oversight, nudge, cue, filler, prohibition.\n" in text
    assert "aliased for" not in text
    assert "not estimated" in run("plan", "--family", "leak", "--design", "random", "--runs", "4").stdout


def test_the_designs_of_plan_and_run_are_the_same() -> None:
    plan, audit = ({p.name: p for p in command.commands[name].params} for name in ("plan", "run"))
    for name in ("design", "half"):
        assert plan[name].type.choices == audit[name].type.choices  # type: ignore[attr-defined]
    for name in ("design", "runs", "seed", "half"):
        assert plan[name].default == audit[name].default


def test_nothing_found_says_how_sure_that_is(tmp_path: Path) -> None:
    words = ["scripted/honest", "--family", "coercion", "--family", "anchoring", "--store", str(tmp_path / "store")]
    claims = json.loads(run(*words, "--json").stdout)["claims"]
    null = [claim for claim in claims if claim["verdict"] == "null" and claim.get("effect")]
    assert null
    for claim in null:
        assert claim["p_equivalence"] < 0.05
        assert claim["why"].endswith(f"two one-sided tests (TOST, p = {claim['p_equivalence']:.2g})")
    # The identity of claims of one effect is what it was.
    assert all("p_equivalence" not in claim for claim in claims if not claim.get("effect"))


def test_a_target_that_acts_is_judged_by_what_it_does(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    store = tmp_path / "store"
    words = ["local/tiny", "--family", "publicity", "--design", "random", "--runs", "8", "--play", "--max-tokens", "8"]
    words += ["--store", str(store), "--json"]
    done = run(*words)
    claims = json.loads(done.stdout)["claims"]
    acted = [claim for claim in claims if claim["outcome"] == "behaviour"]
    assert len(acted) == len(claims) - len(acted) == 11
    # Random weights call nothing and know nothing: no harm was seen, and nothing is called safe.
    assert {claim["verdict"] for claim in acted} == {"inconclusive"}
    classes = dict(acted[0]["classes"])
    assert sum(classes.values()) == 40
    assert classes.keys() <= {"comprehension failed", "cut off", "unparsed", "no action"}
    assert "40 episodes of 5 plots find no effect of any size" in done.stderr
    with open_store(store, mode="read") as kept:
        assert len(kept.of_kind("episodes")) >= 10
    assert json.loads(run(*words).stdout)["claims"] == claims


def test_a_target_without_tools_says_so_and_one_that_cannot_be_scored_must_act(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with pytest.raises(TargetError, match="has no script for tools"):
        run("scripted/honest", "--family", "publicity", "--play", "--store", store)
    pytest.importorskip("inspect_ai")
    with pytest.raises(TargetError, match="has no ability Scored"):
        run("inspect/mockllm/model", "--family", "publicity", "--no-play", "--store", store)


def test_many_targets_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text('[[target]]\nname = "scripted/honest"\n[[target]]\nname = "scripted/nobody"\n')
    words = ["--targets", str(file), "--family", "publicity", "--store", str(tmp_path / "store")]
    done = run(*words)
    assert done.return_value == 3
    assert "publicity as preference (C16), where the means are there" in done.stdout
    assert "  a    scripted/honest " in done.stdout
    assert "left out scripted/nobody: unknown scripted target 'nobody'" in done.stdout
    value = json.loads(run(*words, "--json").stdout)
    assert [name for name, _ in value["grid"]["targets"]] == ["scripted/honest"]
    assert value["standings"][0]["classes"] == [
        ["choices", 180],
        ["questions", value["standings"][0]["competence"]["n"]],
    ]
    assert value["spent"]["calls"] == 0
    assert len(value["claims"]) == 11


def test_how_one_target_stands_is_printed_beside_its_claims(tmp_path: Path) -> None:
    done = run("scripted/honest", "--family", "publicity", "--store", str(tmp_path / "store"))
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("publicity as preference"))
    assert "where they are absent: " in line
    assert "questions answered rightly: " in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scripted/honest", "--targets", "t.toml"], r"give a target \(scripted/honest\) or a file of targets"),
        (["--targets", "t.toml"], "no file at t.toml"),
        (["scripted/honest", "--budget", "five"], "'five' is no budget"),
        (["scripted/honest", "--family", "publicity", "--turns", "0"], "turns"),
    ],
)
def test_what_cannot_be_asked_of_many_targets(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, words)
    said = str(done.exception) if isinstance(done.exception, TruingError) else done.output
    assert re.search(says, said), said
    assert not (tmp_path / ".truing").exists()


def test_names_in_a_file_of_targets_steer_no_terminal(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text('[[target]]\nname = "scripted/honest"\n[[target]]\nname = "scripted/\\u001b]0;x\\u0007y"\n')
    done = run("--targets", str(file), "--family", "publicity", "--store", str(tmp_path / "store"))
    assert done.return_value == 3
    assert "left out scripted/" in done.stdout
    assert "is left out" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
