"""Personas behind a server that misbehaves as real ones do: what is planted comes back, and nothing is done twice."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("openai")

from inspect_ai.model import ModelAPI
from tenacity import wait_fixed

sys.path.insert(0, str(Path(__file__).parent))
from personas import SIXTEEN, Acting, Persona
from serving import FAILURES, Server

from truing.audit.across import Found, grid
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.run import episodes
from truing.errors import TargetError
from truing.records import Turn
from truing.store import open_store
from truing.targets import resolve
from truing.targets.inspect import load
from truing.targets.roster import Entry, Roster

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FAMILY = "oversight"
FOUR = tuple(one for one in SIXTEEN if one.name in {"calm", "harsh", "threatened", "muddled"})
NOWHERE = "inspect/openai-api/nowhere/gone"
KEY = "sk-not-a-key-0123456789"


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out(FAMILY)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, laid: Laid) -> Iterator[Callable[..., Server]]:
    """Starts servers that are stopped when the test is over."""
    made: list[tuple[Server, threading.Thread]] = []

    def start(personas: Sequence[Persona], failures: Sequence[str] = FAILURES) -> Server:
        server = Server(laid, personas, failures)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        made.append((server, thread))
        for name, url in (("LOCAL", server.url), ("NOWHERE", "http://127.0.0.1:9/v1")):
            monkeypatch.setenv(f"{name}_BASE_URL", url)
            monkeypatch.setenv(f"{name}_API_KEY", KEY)
        monkeypatch.setattr(ModelAPI, "retry_wait", lambda self: wait_fixed(0.02))  # Inspect's own begins at 3 s
        return server

    yield start
    for server, thread in made:
        server.shutdown()
        thread.join()
        server.server_close()
    gc.collect()


def listed(personas: Sequence[Persona]) -> Roster:
    options: dict[str, Any] = {"args": {"max_retries": 0}, "max_retries": 6, "max_connections": 8}
    entries = [Entry(name=f"inspect/openai-api/local/{one.name}", options=options) for one in personas]
    gone = Entry(name=NOWHERE, options={**options, "max_retries": 1})
    return Roster(target=(*entries[:1], gone, *entries[1:]))


def here(personas: Sequence[Persona], laid: Laid, folder: Path) -> Found:
    """The same personas, asked in this process."""
    made = {f"scripted/{one.name}": Acting(one, laid.scenes) for one in personas}
    with open_store(folder) as store:
        return grid(
            Roster(target=tuple(Entry(name=name) for name in made)), [FAMILY], store, lambda name, *_: made[name]
        )


def shown(found: Found) -> list[object]:
    """What a grid found, without who it was found of."""
    said = [(one.harm, one.control, one.worst_case, one.competence, one.classes) for one in found.standings]
    letters = [letter for _, letter in found.grid.ties]
    return [said, letters, [(one.effect, one.verdict, one.specific, one.worst_case) for one in found.claims]]


def recovered(server: Server, personas: Sequence[Persona], laid: Laid, folder: Path) -> None:
    with open_store(folder / "there") as store:
        found = grid(listed(personas), [FAMILY], store, resolve)
        before = sum(server.asked.values())
        assert grid(listed(personas), [FAMILY], store, resolve).grid == found.grid
        turns = store.ls("turn")
    assert sum(server.asked.values()) == before
    assert shown(found) == shown(here(personas, laid, folder / "here"))
    assert [name for name, _ in found.grid.failed] == [NOWHERE]
    assert "gave no reply" in found.grid.failed[0][1]
    assert {said for _, said in found.grid.options} == {'{"args":"not kept","max_connections":8,"max_retries":6}'}
    assert set(server.answered.values()) == {1}
    assert len(turns) == len(server.answered)
    assert set(server.failures) == set(FAILURES)


def test_planted_rates_come_back_over_http_and_nothing_is_answered_twice(
    serve: Callable[..., Server], laid: Laid, tmp_path: Path
) -> None:
    recovered(serve(FOUR[2:]), FOUR[2:], laid, tmp_path)


@pytest.mark.slow
def test_sixteen_targets_at_once(serve: Callable[..., Server], laid: Laid, tmp_path: Path) -> None:
    recovered(serve(SIXTEEN), SIXTEEN, laid, tmp_path)


def test_who_answers_too_late_is_asked_again(serve: Callable[..., Server], laid: Laid, tmp_path: Path) -> None:
    server = serve(FOUR, failures=("late",))
    scenes = laid.scenes[:18]
    with (
        open_store(tmp_path / "store") as store,
        load("openai-api/local/harsh", args={"max_retries": 0}, attempt_timeout=1, max_connections=18) as target,
    ):
        found = episodes(target, scenes, store)
        there = episodes(Acting(next(one for one in FOUR if one.name == "harsh"), scenes), scenes, store)
    assert server.failures["late"] > 0
    assert [one.rows for one in found] == [one.rows for one in there]


def test_a_target_that_is_not_there_says_so(serve: Callable[..., Server], laid: Laid, tmp_path: Path) -> None:
    serve(FOUR)
    began = time.monotonic()
    with (
        open_store(tmp_path / "store") as store,
        load("openai-api/nowhere/gone", args={"max_retries": 0}, max_retries=1) as target,
        pytest.raises(TargetError, match="openai-api/nowhere/gone gave no reply"),
    ):
        episodes(target, laid.scenes, store)
    assert time.monotonic() - began < 60


def test_killed_and_run_again_it_ends_alike_and_repeats_no_call(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(FOUR[1:2], failures=("429", "500"))
    file = tmp_path / "targets.toml"
    file.write_text("".join(
        f'[[target]]\nname = "inspect/openai-api/local/{one.name}"\noptions = {{max_connections = 4}}\n'
        for one in FOUR[1:2]
    ))  # fmt: skip

    def run(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "truing", "audit", "--targets", str(file), "--family", FAMILY, "--json",
                   "--store", str(tmp_path / folder)]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)

    kept: set[tuple[str, str]] = set()
    for _ in range(2):
        before = sum(server.answered.values())
        process = run("killed")
        while sum(server.answered.values()) < before + 60 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with open_store(tmp_path / "killed") as store:
            done = {(one.target, one.prompt) for one in store.of_kind("turn") if isinstance(one, Turn)}
        assert len(done) > len(kept)
        kept = done
    answered = sum(server.answered.values())
    process = run("killed")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    with open_store(tmp_path / "killed") as store:
        turns = len(store.ls("turn"))
    # What was kept was not asked again; what was in flight at a kill was, and no more than connections allow.
    assert sum(server.answered.values()) - answered == turns - len(kept)
    assert 0 <= sum(server.answered.values()) - turns <= 2 * 4
    whole = run("whole")
    undisturbed, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    first, second = json.loads(out), json.loads(undisturbed)
    assert first["grid"] == second["grid"]
    assert first["claims"] == second["claims"]
