"""The command line as a whole: help, JSON, errors and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from truing.audit import FAMILIES, kinds
from truing.cli import VERBS, cli, main
from truing.cli.common import Progress
from truing.store import open_store
from truing.targets import KINDS
from truing.targets.scripted import from_script, scripted
from truing.targets.scripted import names as scripts

from ..command import truing  # noqa: TID252 - tests are no package

pytestmark = pytest.mark.base


def process(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "truing", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)


def commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for verb in VERBS:
        command = importlib.import_module(f"truing.cli.{verb}").command
        if isinstance(command, click.Group):
            found += [(f"{verb} {name}", sub) for name, sub in command.commands.items()]
        else:
            found.append((verb, command))
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_help_an_example_and_json(name: str, command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert command.help, name
    assert "Example" in (command.epilog or ""), name
    assert "--json" in options, name
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.opts != ["--json"]:
            assert parameter.help, (name, parameter.opts)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["audit", "nonsense"], 3, "A target is kind/name"),
        (["audit", "local/no-such-folder-anywhere", "--family", "insider"], 3, "local/"),
        (["audit", "scripted/nobody"], 3, "nobody"),
        (["audit", "scripted/honest", "--family", "gossip"], 2, "known: insider, sycophancy, anchoring"),
        (["loop", "scripted/honest", "--family", "gossip"], 2, "gossip"),
        (["store", "ls"], 4, "store"),
        (["view"], 4, "store"),
        (["trace", "abcdef", "--seed", "99999999999999999999999"], 2, "is not in the range"),
        (["loop", "scripted/honest", "--seed", "-1"], 2, "is not in the range"),
        (["trace", "abcdef"], 4, "no store at"),
        (["frobnicate"], 2, "frobnicate"),
        (["share", "verify", "no-such-file.zip"], 2, "no-such-file.zip"),
        (["share", "read", "no-such-file.json"], 4, "no-such-file.json: there is no such file"),
    ],
)
def test_bad_input_ends_in_one_clear_message(tmp_path: Path, args: list[str], code: int, says: str) -> None:
    store = [] if args[0] in ("share", "frobnicate") else ["--store", str(tmp_path / "store")]
    done = truing(*args, *store)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one audit of a scripted target, its report, and a bundle that holds it."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "audit scripted/anchored --family anchoring --store kept",
            "view --store kept --out report.html",
            "share pack --store kept --out bundle --report report.html",
        ):
            done = truing(*line.split())
            assert done.returncode == 0, done.stderr
    return folder


def refused(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """The command ended in one clear line, and printed no result."""
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_reports_go_into_a_folder_that_is_made(stored: Path, tmp_path: Path) -> None:
    assert truing("view", "--store", str(stored / "kept"), "--out", str(tmp_path / "a" / "x.html")).returncode == 0
    assert truing("share", "show", str(stored / "bundle"), "--report", str(tmp_path / "b" / "x.html")).returncode == 0
    assert (tmp_path / "a" / "x.html").is_file()
    assert (tmp_path / "b" / "x.html").read_bytes() == (stored / "report.html").read_bytes()


@pytest.mark.parametrize(
    "line", ["view --store kept --out FILE/x.html", "share show bundle --report FILE/x.html",
             "share pack --store kept --out FILE/x", "train abcd --store kept --out FILE/x"],
)  # fmt: skip
def test_a_file_in_the_way_of_an_output_is_named(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "file").write_text("here already")
    monkeypatch.chdir(stored)
    done = truing(*line.replace("FILE", str(tmp_path / "file")).split())
    refused(done, 4, "file is a file. Give another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_the_system_refuses_is_one_line_and_exit_code_4(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr("truing.report.overview", full)
    monkeypatch.setattr(sys, "argv", ["truing", "view", "--store", str(stored / "kept")])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 4
    assert said.startswith("truing: a file could not be read or written: [Errno 28] No space left on device: 'x'.")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("trace 3fa9", 4, "no store at typo"),
        ("train 3fa9 --out adapter", 4, "no store at typo"),
        ("measure 3fa9 --after .", 4, "no store at typo"),
        ("audit scripted/nope", 3, "unknown scripted target 'nope'"),
        ("loop scripted/nope", 3, "unknown scripted target 'nope'"),
        ("audit local/nope", 3, "local/"),
        ("audit scripted/honest --family gossip", 2, "unknown family 'gossip'"),
        ("loop scripted/honest --family gossip", 2, "unknown family 'gossip'"),
    ],
)
def test_a_typo_makes_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(truing(*line.split(), "--store", "typo"), code, says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["audit", "loop"])
def test_a_family_named_twice_counts_once(tmp_path: Path, verb: str) -> None:
    found = []
    for times in (1, 2):
        args = [*(["--family", "anchoring"] * times), "--store", str(tmp_path / f"{verb}{times}"), "--json"]
        done = truing(verb, "scripted/anchored", *args, env={"TRUING_CONFIG": str(tmp_path / "config")})
        assert done.returncode == 0, done.stderr
        found.append([(claim["id"], claim["p_holm"]) for claim in json.loads(done.stdout)["claims"]])
    assert found[0] == found[1]
    assert len(found[0]) == 2
    rows = json.loads(truing("audit", "--list", *(["--family", "anchoring"] * 2), "--json").stdout)["families"]
    assert [row["family"] for row in rows] == ["anchoring"]


@pytest.mark.parametrize(("says", "count"), [("It is fine.", 0), ("The password: hunter2hunter2", 1)])
def test_an_audit_says_how_many_secrets_it_redacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, count: int
) -> None:
    script = tmp_path / "teller.yaml"
    script.write_text(f'schema: scripted/1\nabout: "tells"\nanswers:\n  - {{says: "{says}"}}\n')
    monkeypatch.setattr("truing.targets.resolve", lambda name, watcher: from_script(name, script))
    args = ["audit", "scripted/teller", "--family", "insider", "--store", str(tmp_path / "store")]
    found = json.loads(CliRunner().invoke(cli, [*args, "--json"]).stdout)
    with open_store(tmp_path / "store", mode="read") as store:
        replies = [row for record in store.of_kind("replies") for row in record.plain()["body"]["rows"]]
    assert len(replies) > 1
    assert found["redactions"] == count * len(replies)
    text = CliRunner().invoke(cli, args).stdout
    assert (f"{found['redactions']} secrets were redacted in stored replies" in text) == bool(count)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = process("audit", "nonsense", "--store", str(tmp_path / "store"), "--debug")
    assert "Traceback" in done.stderr


def test_an_audit_by_hand_end_to_end_in_the_base_install(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    done = process("audit", "scripted/anchored", "--family", "anchoring", "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)["claims"]
    assert [c["verdict"] for c in claims if c["outcome"] == "preference"] == ["supported"]
    assert process("audit", "scripted/anchored", "--family", "anchoring", "--store", store,
                  "--fail-if", "supported").returncode == 1  # fmt: skip
    claim = next(c["id"] for c in claims if c["outcome"] == "preference")
    diff = ["trace", claim, "--diff", "scripted/anchored", "scripted/anchored"]
    for verb in (["trace", claim], diff, ["trace", claim, "--probe"], ["train", claim, "--out", f"{tmp_path}/adapter"]):
        done = process(*verb, "--store", store)
        assert done.returncode == 3, done.stderr
        assert "WhiteBox" in done.stderr
        assert "local/" in done.stderr
    assert not (tmp_path / "adapter").exists()
    report = tmp_path / "report.html"
    assert process("view", "--store", store, "--out", str(report)).returncode == 0
    assert "anchoring" in report.read_text()
    bundle = tmp_path / "evidence.truing.zip"
    env = {"TRUING_CONFIG": str(tmp_path / "config")}
    assert process("share", "pack", "--out", str(bundle), "--store", store, env=env).returncode == 0
    assert process("share", "verify", str(bundle)).returncode == 0


def test_audit_lists_its_families() -> None:
    done = truing("audit", "--list", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["family"] for row in json.loads(done.stdout)["families"]] == [*FAMILIES, *kinds()]


def test_targets_are_listed() -> None:
    told = json.loads(truing("target", "ls", "--json").stdout)
    assert told["kinds"].keys() == KINDS.keys()
    assert told["names"]["scripted"] == [f"scripted/{name}" for name in scripts()]
    assert "local/smollm2-135m" in told["names"]["local"]
    done = truing("target", "ls")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(KINDS)
    for kind, names in told["names"].items():
        place = next(at for at, line in enumerate(lines) if line.startswith(kind))
        assert lines[place].endswith(KINDS[kind])
        assert lines[place + 1].strip() == ", ".join(names)


def test_a_target_is_shown_by_its_card() -> None:
    card = scripted("honest").card
    done = truing("target", "show", "scripted/honest")
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert float(shown.pop("seconds")) >= 0
    assert shown == {
        "name": card.name, "weights": card.weights, "template": card.template, "dtype": card.dtype,
        "abilities": "Scored, Chat", "id": card.id,
    }  # fmt: skip
    told = json.loads(truing("target", "show", "scripted/honest", "--json").stdout)
    assert told.pop("seconds") >= 0
    assert told == card.plain()["body"] | {"id": card.id}


def test_what_is_shown_of_open_weights_has_their_memory() -> None:
    pytest.importorskip("torch")
    from truing.targets import resolve

    target = resolve("local/tiny")
    weights = sum(x.numel() * x.itemsize for x in target.model.parameters())
    done = CliRunner().invoke(cli, ["target", "show", "local/tiny"])
    assert done.exit_code == 0
    assert f"id         {target.card.id}\n" in done.stdout
    assert re.search(rf"^memory     {weights / 1e6:.1f} MB of weights, \d+ bytes a kept token$", done.stdout, re.M)
    told = json.loads(CliRunner().invoke(cli, ["target", "show", "local/tiny", "--json"]).stdout)
    assert told["memory"]["weights"] == weights


def test_a_stage_within_another_counts_its_own_units(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.start("targets", 2)
    for name in ("a", "b"):
        progress.start(name, 3)
        progress.step(3)
        progress.start("nothing to do", 0)
        progress.step()
    progress.start("after", 1)
    progress.step()
    lines = [line for line in capsys.readouterr().err.splitlines() if "(" in line]
    assert [line.partition(" (")[0].removeprefix("[truing] ") for line in lines] == [
        "a: 3/3", "b: 3/3", "targets: 2/2", "after: 1/1",
    ]  # fmt: skip


def test_what_ended_early_does_not_disturb_the_next_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    with progress.running():
        progress.start("ended early", 3)
        progress.step()
    with progress.running():
        progress.start("next", 1)
        progress.step()
        (task,) = progress._live.tasks
        assert (task.description, task.completed) == ("next", 1)
        progress.step()  # one too many is not the other's
        assert progress._live.tasks[0].completed == 1
