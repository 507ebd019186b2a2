"""`truing audit check`, `show`, `new-scenario`, and company families from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truing.cli.audit import command
from truing.errors import ContentError, TargetError, TruingError, UsageError
from truing.store import open_store

pytestmark = pytest.mark.base


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
    assert "40 episodes of 5 plots find an effect of" in done.stderr
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
