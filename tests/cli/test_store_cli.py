"""`truing store`: what it prints, and its exit codes."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truing import open_store
from truing.cli import cli, main
from truing.cli.store import command
from truing.records import Spec, Target, digest

PARENT = Spec(name="parent", title="T", clauses=())
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two records, a file that one of them names, and one that none does."""
    folder = tmp_path / "kept"
    with open_store(folder) as store:
        blob = store.put_blob(b"adapter", "text")
        store.put_blob(b"orphan", "text")
        child = Target(
            name="child", weights="", template="", dtype="", abilities=(), adapter=blob, parents=(PARENT.id,)
        )
        store.keep("key", "audit", [PARENT, child], seconds=1.25)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    open_store(tmp_path / "empty").close()
    return tmp_path / "empty"


@pytest.fixture
def truing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["truing", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


def as_json(outcome: tuple[int, str, str], code: int = 0) -> Any:
    assert outcome[0] == code, outcome
    return json.loads(outcome[1])


def test_ls_lists_records(truing: Run, folder: Path) -> None:
    code, out, _ = truing("store", "ls", "--store", folder)
    assert code == 0
    head, first, second = (line.split() for line in out.splitlines())
    assert head[:2] == ["id", "kind"]
    assert first[:2] == [PARENT.id[:12], "spec"]
    assert second[1] == "target"
    listed = as_json(truing("store", "ls", "--store", folder, "--json"))
    assert [(row["kind"], row["stage"], row["seconds"], row["parents"]) for row in listed["records"]] == [
        ("spec", "audit", 1.25, 0),
        ("target", "audit", 1.25, 1),
    ]


def test_ls_of_one_kind(truing: Run, folder: Path) -> None:
    listed = as_json(truing("store", "ls", "--kind", "spec", "--store", folder, "--json"))
    assert [row["id"] for row in listed["records"]] == [PARENT.id]
    code, out, _ = truing("store", "ls", "--kind", "claim", "--store", folder)
    assert (code, out.split(" in ")[0]) == (0, "No claim records")
    code, _, err = truing("store", "ls", "--kind", "rumour", "--store", folder)
    assert code == 2
    assert "unknown kind of record 'rumour'; known:" in err


def test_show_prints_a_record(truing: Run, folder: Path) -> None:
    code, out, _ = truing("store", "show", PARENT.id[:10], "--store", folder)
    assert code == 0
    assert PARENT.id in out
    assert "audit in 1.25 s" in out
    assert '"name": "parent"' in out
    shown = as_json(truing("store", "show", PARENT.id[:10], "--store", folder, "--json"))
    assert shown["body"] == PARENT.plain()["body"]
    assert (shown["id"], shown["parents"]) == (PARENT.id, [])


@pytest.mark.parametrize("word", ["loop", "000000000000"])
def test_show_of_what_is_not_there_is_wrong_use(truing: Run, folder: Path, word: str) -> None:
    code, out, err = truing("store", "show", word, "--store", folder)
    assert (code, out) == (2, "")
    assert word in err


def test_export_writes_tables(truing: Run, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    written = as_json(truing("store", "export", "--parquet", tmp_path / "tables", "--store", folder, "--json"))
    assert [Path(file).name for file in written["files"]] == ["spec.parquet", "target.parquet"]
    assert all(Path(file).is_file() for file in written["files"])


def test_check_passes_a_whole_store(truing: Run, folder: Path) -> None:
    code, out, _ = truing("store", "check", "--store", folder)
    assert code == 0
    assert out.strip() == f"The store {folder} is whole: 2 records checked."
    assert as_json(truing("store", "check", "--store", folder, "--json"))["problems"] == []


def test_check_fails_a_damaged_store(truing: Run, folder: Path) -> None:
    (folder / "blobs" / digest(b"adapter")[:2] / digest(b"adapter")).write_bytes(b"ADAPTER")
    code, out, _ = truing("store", "check", "--store", folder)
    assert code == 1
    assert "1 problem in the store" in out
    assert len(as_json(truing("store", "check", "--store", folder, "--json"), code=1)["problems"]) == 1


def test_gc_says_then_removes(truing: Run, folder: Path) -> None:
    code, out, _ = truing("store", "gc", "--dry-run", "--store", folder)
    assert (code, out.strip()) == (0, "Would remove 1 file: 6 bytes.")
    removed = as_json(truing("store", "gc", "--store", folder, "--json"))
    assert (removed["blobs"], removed["size"]) == ([digest(b"orphan")], 6)
    code, out, _ = truing("store", "gc", "--store", folder)
    assert (code, out.strip()) == (0, f"Nothing to remove from the store {folder}.")


def test_gc_leaves_a_store_that_is_being_written(truing: Run, folder: Path) -> None:
    with open_store(folder):
        code, _, err = truing("store", "gc", "--store", folder)
        assert code == 4
        assert "written by process" in err
        assert truing("store", "ls", "--store", folder)[0] == 0


def test_du_adds_up(truing: Run, folder: Path) -> None:
    code, out, _ = truing("store", "du", "--store", folder)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["what", "spec", "target", "blobs", "total"]
    sizes = as_json(truing("store", "du", "--store", folder, "--json"))
    assert sizes["bytes"]["blobs"] == 13
    assert sizes["total"] == sum(sizes["bytes"].values())


VERBS = {
    "ls": [],
    "show": ["ab"],
    "export": ["--parquet", "tables"],
    "check": [],
    "gc": [],
    "du": [],
}


@pytest.mark.parametrize("verb", ["ls", "du", "export"])
def test_an_empty_store_says_what_to_run(truing: Run, empty: Path, verb: str) -> None:
    code, out, _ = truing("store", verb, *VERBS[verb], "--store", empty)
    assert code == 0
    assert f"is empty. To fill it, run for example:  truing loop local/tiny --store {empty}" in out


def test_an_empty_store_is_whole(truing: Run, empty: Path) -> None:
    assert "0 records checked" in truing("store", "check", "--store", empty)[1]
    assert "Nothing to remove" in truing("store", "gc", "--store", empty)[1]
    assert as_json(truing("store", "ls", "--store", empty, "--json"))["records"] == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_store_is_not_made(truing: Run, tmp_path: Path, verb: str) -> None:
    code, out, err = truing("store", verb, *VERBS[verb], "--store", tmp_path / "missing")
    assert (code, out) == (4, "")
    assert f"no store at {tmp_path / 'missing'}" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_damaged_store_is_exit_code_4(truing: Run, folder: Path, verb: str) -> None:
    (folder / "truing.db").write_bytes(b"x" * 8192)
    code, _, err = truing("store", verb, *VERBS[verb], "--store", folder)
    assert code == 4
    assert "damaged" in err


def test_a_newer_store_is_exit_code_4(truing: Run, folder: Path) -> None:
    connection = sqlite3.connect(folder / "truing.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, _, err = truing("store", "ls", "--store", folder)
    assert code == 4
    assert "has schema 99" in err


def test_every_command_has_help_with_an_example() -> None:
    assert set(command.commands) == set(VERBS)
    for words in (["store"], *(["store", verb] for verb in VERBS)):
        shown = CliRunner().invoke(cli, [*words, "--help"])
        assert shown.exit_code == 0
        assert "Example:  truing store" in shown.output
        if len(words) == 2:
            assert "--store" in shown.output
            assert "--json" in shown.output
