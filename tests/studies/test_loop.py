"""One turn of the wheel on the tiny model: whole, repeatable, and safe from kills at any instant."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch")

from truing.records import Arrays, Claim, Estimate, Graph, Loop, Replies, Scores, Surfaces, Training, parse
from truing.share import verify
from truing.store import open_store
from truing.studies.loop import choose, loop
from truing.studies.options import Options
from truing.studies.wheel import failures

KEYS = {
    "target", "claims", "claim", "before", "after", "runout", "retention", "relearning", "graph", "gate", "failed",
    "bundle", "report", "loop", "store", "seconds", "peak_rss_mb", "why",
}  # fmt: skip
ESTIMATE = {"value", "low", "high", "level", "n", "clusters", "unit", "estimator"}


def truing(*args: str, **kwargs: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "truing", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)  # type: ignore[call-overload]


def ids(store: Path) -> set[str]:
    with open_store(store, mode="read") as opened:
        assert opened.check() == []
        return {entry.id for entry in opened.ls()}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """An undisturbed run."""
    store = tmp_path_factory.mktemp("loop") / "store"
    run = truing("loop", "local/tiny", "--store", str(store), "--json")
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return store, json.loads(out)


def test_json_has_every_field_and_every_number_its_interval(whole: tuple[Path, dict]) -> None:
    _, result = whole
    assert set(result) == KEYS
    assert result["claim"]["family"] == "anchoring"
    assert result["relearning"] == {}  # nothing went down: there is nothing to bring back
    for part in ("before", "after", "runout", "retention"):
        assert result[part]
        for quantity in result[part].values():
            assert set(quantity) in (ESTIMATE, {"reason"})
    assert set(result["runout"]) >= {"preference", "generation"}
    gate = result["gate"]
    assert set(gate) == {"record", "verdict", "why", "harmed", "direct", "probes", "cost", "inside"}
    assert gate["verdict"] != "gone within budget"  # the default fix hardly moves a random model
    assert any(line.startswith(f"gate: {gate['verdict']}") for line in result["failed"])
    assert result["bundle"]["verified"] is True


def test_the_planted_truth_is_told(whole: tuple[Path, dict]) -> None:
    """`local/tiny` copies from its context by construction, whoever says it: anchoring holds, sycophancy does not."""
    _, result = whole
    verdicts = {(c["family"], c["outcome"]): c["verdict"] for c in result["claims"]}
    assert verdicts["anchoring", "preference"] == "supported"
    assert verdicts["sycophancy", "preference"] == "not specific"
    assert verdicts["insider", "preference"] in ("null", "not specific")
    # It writes no words, and silence shows nothing.
    assert verdicts["anchoring", "behaviour"] == verdicts["sycophancy", "behaviour"] == "inconclusive"


def test_the_planted_heads_are_found(whole: tuple[Path, dict]) -> None:
    store, result = whole
    with open_store(store, mode="read") as opened:
        graph = opened.get(result["graph"]["id"])
    assert isinstance(graph, Graph)
    heads = [(u.layer, u.index) for u in graph.units if u.kind == "head"]
    assert set(heads[:2]) == {(1, 0), (1, 1)}
    assert graph.closure_error <= 1e-4
    shares = {m.choice: m for m in graph.mediated if m.kind == "head" and m.k == min(x.k for x in graph.mediated)}
    for choice in ("attribution", "another effect"):
        for share in (shares[choice].share, shares[choice].restored):
            assert isinstance(share, Estimate)
            assert share.low > 0.95
    # They copy whatever a prompt holds, so that any other effect is carried by the same heads.
    assert graph.verdict == "weak"
    assert "they mediate 0% [0%, 0%] more than as many heads of the ordinary effect" in graph.why.replace("-0%", "0%")


def test_training_starts_at_ln_2_and_is_finished(whole: tuple[Path, dict]) -> None:
    store, result = whole
    with open_store(store, mode="read") as opened:
        record = opened.get(result["loop"])
        assert isinstance(record, Loop)
        training = opened.get(record.training or "")
    assert isinstance(training, Training)
    assert training.steps[0].loss == pytest.approx(0.693147, abs=1e-5)
    assert training.finished


def test_the_bundle_holds_all_ancestors_and_verifies(whole: tuple[Path, dict]) -> None:
    store, result = whole
    checked = verify(Path(result["bundle"]["path"]))
    assert checked.ok, checked.problems
    with open_store(store, mode="read") as opened:
        assert sum(checked.records.values()) == len(opened.closure([result["loop"]]))


def test_the_bundle_holds_every_prompt(whole: tuple[Path, dict]) -> None:
    """Of both halves: another lab sees what was asked, and can ask it of its own model."""
    with zipfile.ZipFile(whole[1]["bundle"]["path"]) as bundle:
        names = [name for name in bundle.namelist() if name.startswith("records/")]
        records = [parse(bundle.read(name)) for name in names]
    surfaces = [surface for record in records if isinstance(record, Surfaces) for surface in record.surfaces]
    asked = {surface.digest for surface in surfaces}
    assert {record.digest for record in records if isinstance(record, Scores)} <= asked
    assert {surface.half for surface in surfaces} == {"develop", "held-out"}
    cells = {(surface.name, case.cell) for surface in surfaces for case in surface.cases}
    assert {(r.surface, r.cell) for record in records if isinstance(record, Replies) for r in record.rows} <= cells


def test_a_second_run_changes_nothing_and_is_quick(whole: tuple[Path, dict]) -> None:
    store, result = whole
    before = ids(store)
    run = truing("loop", "local/tiny", "--store", str(store), "--json")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    again = json.loads(out)
    assert ids(store) == before
    assert again["loop"] == result["loop"]
    assert again["bundle"]["digest"] == result["bundle"]["digest"]
    assert again["seconds"] < result["seconds"]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damaged_files_are_made_again(whole: tuple[Path, dict], tmp_path: Path, damage: str) -> None:
    """One attribution, one checkpoint and the adapter of the fix: whatever named them, the rerun puts them back."""
    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    with open_store(store, mode="read") as opened:
        attribution = next(r for r in opened.of_kind("arrays") if isinstance(r, Arrays) and r.blob)
        trainings = [r for r in opened.of_kind("training") if isinstance(r, Training)]
        states = [next(r.state for r in trainings if r.finished is done) for done in (False, True)]
        paths = [opened.blob_path(blob) for blob in (attribution.blob, *states) if blob]
    assert len(set(paths)) == 3
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        data[-1] ^= 1
        path.write_bytes(data) if damage == "flipped" else path.unlink()
    run = truing("loop", "local/tiny", "--store", str(store), "--json")
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert json.loads(out)["bundle"]["digest"] == whole[1]["bundle"]["digest"]
    assert ids(store) == ids(whole[0])  # and that both are whole


def killed_and_finished(store: Path, kills: int, seed: int, seconds: float) -> None:
    """Start the loop again and again, each time killed after a random while; then let it finish.

    `seconds`: what an undisturbed run works. Kills are spread over a little less than that, so that they hit live work.
    """
    rng = random.Random(seed)
    live = 0
    for number in range(kills):
        run = truing("loop", "local/tiny", "--store", str(store), start_new_session=True)
        if number % 5:
            assert run.stderr is not None
            run.stderr.readline()  # imports are over when the first progress is told
            time.sleep(rng.uniform(0, 1.5 * seconds / kills))
        else:
            time.sleep(rng.uniform(0, 4))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        live += run.returncode == -signal.SIGKILL and not finished(store)
    assert live >= kills * 0.7
    run = truing("loop", "local/tiny", "--store", str(store))
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err


def finished(store: Path) -> bool:
    """Whether the loop's record, the last of all, is there."""
    if not (store / "truing.db").is_file():
        return False
    with open_store(store) as opened:  # what a killed writer left is recovered
        return bool(opened.ls("loop"))


def test_killed_at_any_instant_nothing_is_lost(whole: tuple[Path, dict], tmp_path: Path) -> None:
    store, result = whole
    seed = int(os.environ.get("TRUING_KILL_SEED", "1"))
    killed_and_finished(tmp_path / "store", kills=10, seed=seed, seconds=result["seconds"])
    assert ids(tmp_path / "store") == ids(store)
    with open_store(tmp_path / "store", mode="read") as opened:
        assert opened.get(result["loop"]).id == result["loop"]


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(10))
def test_killed_a_hundred_times(whole: tuple[Path, dict], tmp_path: Path, round_: int) -> None:
    store, result = whole
    killed_and_finished(tmp_path / "store", kills=10, seed=100 + round_, seconds=result["seconds"])
    assert ids(tmp_path / "store") == ids(store)


def test_where_no_claim_is_supported_the_loop_ends_well(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        turn = loop("scripted/honest", store)
    assert turn.record.claim is None
    assert turn.graph is None
    assert turn.verified
    assert "no claim is supported" in turn.record.why


def test_a_supported_claim_about_a_target_without_weights_is_not_carried_on(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        turn = loop("scripted/anchored", store, options=Options(families=("anchoring",)))
    assert turn.record.claim is None
    assert "neither traced nor trained" in turn.record.why


def test_choose_takes_the_smallest_p(whole: tuple[Path, dict]) -> None:
    store, _ = whole
    with open_store(store, mode="read") as opened:
        claims = [c for c in opened.of_kind("claim") if isinstance(c, Claim)]
    found, why = choose(claims, ("Scored", "Chat", "WhiteBox", "Trainable"))
    assert found is not None
    assert found.family == "anchoring"
    assert "not as behaviour" in why
    assert choose([c for c in claims if c.verdict != "supported"], ("WhiteBox", "Trainable"))[0] is None


def test_failures_name_what_was_not_reached(whole: tuple[Path, dict]) -> None:
    store, result = whole
    with open_store(store, mode="read") as opened:
        record = opened.get(result["loop"])
    assert isinstance(record, Loop)
    assert set(failures(record.runout, ())) <= set(record.failed)
    assert any("generation" in line for line in record.failed)  # it writes nothing, so nothing can be shown


def test_a_gate_sees_a_claim_on_held_out_plots_in_both_wordings_and_can_teach_it(whole: tuple[Path, dict]) -> None:
    from truing.studies.claimed import Claimed
    from truing.studies.one import wheel_of

    store, result = whole
    with open_store(store) as opened:
        wheel = wheel_of(result["claim"]["id"], opened)
        behaviour = Claimed(wheel)
        seen = behaviour.direct(wheel.target)
        named = {"value": seen.rate.value, "n": seen.rate.n, "unit": "nats/token"}
        assert named == {key: result["before"]["preference"][key] for key in named}
        (words,) = behaviour.wordings(wheel.target).values()
        assert set(words.clusters) == set(seen.clusters)
        assert words.rate.value > 0
        assert set(behaviour.elsewhere(wheel.target)) == {"statement=unrelated", "statement=none"}
        assert behaviour.begun(wheel.target) is None
        assert behaviour.margin == wheel.claim.bound
        (pair, *_) = behaviour.examples(4, 0).pairs
        surface = next(one for one in wheel.develop.surfaces if one.name == pair.surface)
        assert pair.chosen == surface.decision.actions[0]
        assert len(behaviour.examples(4, 0).pairs) == 4
