"""`truing share` from the outside: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truing.cli import cli
from truing.cli.share import command
from truing.errors import BundleError, UsageError
from truing.records import Blob, Claim, Estimate, Loop, Target, Unmeasured
from truing.share import Verification, own_key, verify
from truing.store import open_store

EFFECT = Estimate(value=0.4, low=0.2, high=0.6, level=0.95, n=40, clusters=8, unit="nats", estimator="mean")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def target(adapter: Blob | None = None) -> Target:
    return Target(name="scripted/x", weights="0" * 64, template="1" * 64, dtype="none", abilities=(), adapter=adapter)


def claim(of: Target, statement: str = "It leans to leverage.") -> Claim:
    return Claim(
        family="insider", clause="C4", outcome="preference", statement=statement, design="2" * 64, target=of.id,
        naive=EFFECT, specific=EFFECT, controls=(), bound=0.1, p=None, p_holm=None, minimum_detectable=None,
        classes=(), verdict="supported", why="beyond its control", parents=(of.id,),
    )  # fmt: skip


@pytest.fixture
def stored() -> Claim:
    """A store in ./.truing with a target that has an adapter, and a claim about it."""
    with open_store(".truing") as store:
        of = target(store.put_blob(b"adapter", "safetensors"))
        store.add(of)
        store.add(claim(of))
    return claim(of)


def run(*args: str) -> Result:
    return CliRunner().invoke(command, list(args))


def said(*args: str) -> dict[str, object]:
    result = run(*args, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    value: dict[str, object] = json.loads(result.stdout)
    return value


def test_keygen_prints_the_public_key_and_makes_it_once() -> None:
    first = said("keygen")
    assert first["made"] is True
    assert said("keygen") == first | {"made": False}
    result = run("keygen")
    assert first["key_id"] in result.stdout
    assert "BEGIN PUBLIC KEY" in result.stdout
    assert "PRIVATE" not in result.output + json.dumps(first)


def test_pack_verify_show(stored: Claim) -> None:
    Path("report.html").write_text("<p>all of it</p>")
    packed = said("pack", "--out", "evidence.truing", "--report", "report.html")
    assert packed["roots"] == [stored.id]
    assert packed["records"] == {"claim": 1, "target": 1}
    assert packed["withheld"] == []
    found = run("verify", "evidence.truing")
    assert found.exit_code == 0
    assert found.stdout.startswith("intact: nothing was altered since it was signed; who signed it is not known\n")
    assert f"signed by key {own_key().public.id}: compare it" in found.stdout
    assert "verified" not in found.stdout
    assert "not that it is true" in found.stdout
    assert said("verify", "evidence.truing")["about"] == {"targets": ["scripted/x"]}
    shown = run("show", "evidence.truing", "--report", "copy.html")
    assert "supported" in shown.stdout
    assert "It leans to leverage." in shown.stdout
    assert Path("copy.html").read_text() == "<p>all of it</p>"
    assert said("show", "evidence.truing")["claims"][0]["id"] == stored.id  # type: ignore[index]


def test_pack_prefers_the_latest_loop_and_takes_prefixes(stored: Claim) -> None:
    loop = Loop(
        target=stored.target, claims=(stored.id,), claim=stored.id, why="it was supported",
        gate=Unmeasured(reason="there is none yet"), parents=(stored.id,),
    )  # fmt: skip
    with open_store(".truing") as store:
        store.add(loop)
    assert said("pack", "--out", "b")["roots"] == [loop.id]
    assert said("pack", stored.id[:10], "--out", "b")["roots"] == [stored.id]
    assert "packed 1 claim, 1 target into b" in run("pack", stored.id[:10], "--out", "b").stdout


def test_without_blobs_they_are_withheld_by_name(stored: Claim) -> None:
    assert stored
    withheld = said("pack", "--out", "b", "--without-blobs")["withheld"]
    assert said("verify", "b")["withheld"] == withheld
    assert isinstance(withheld, list)
    assert f"withheld blob {withheld[0]}" in run("verify", "b").stdout


def test_nothing_to_pack() -> None:
    with open_store(".truing"):
        pass
    result = run("pack", "--out", "b")
    assert isinstance(result.exception, UsageError)
    assert "no loop and no claim" in str(result.exception)


def test_an_altered_bundle_ends_in_exit_code_1_and_names_the_record(stored: Claim) -> None:
    run("pack", "--out", "b")
    Path("b").write_bytes(Path("b").read_bytes().replace(b"leans to", b"leans on"))
    result = run("verify", "b")
    assert result.exit_code == 1
    assert f"records/{stored.id}.json: content does not match its digest in the manifest" in result.stdout
    assert said("verify", "b")["ok"] is False
    assert run("show", "b").exit_code == 1
    assert isinstance(run("show", "b", "--report", "r.html").exception, BundleError)
    Path("b").write_bytes(b"nothing of the kind")
    assert run("verify", "b").exit_code == 1


def test_trust_by_id_and_by_file(stored: Claim) -> None:
    assert stored
    run("pack", "--out", "b")
    public = own_key().public
    Path("key.pub").write_text(public.pem)
    assert run("verify", "b", "--trust", public.id).exit_code == 0
    headline = f"verified: nothing was altered, signed by key {public.id} (trusted)\n"
    assert run("verify", "b", "--trust", "key.pub").stdout.startswith(headline)
    result = run("verify", "b", "--trust", "f" * 64)
    assert result.exit_code == 1
    assert "not among the trusted ones" in result.stdout
    for wrong in (public.id[:12], "nowhere.pem"):
        assert isinstance(run("verify", "b", "--trust", wrong).exception, UsageError)


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    with open_store(".truing") as store:
        store.add(target())
        store.add(claim(target(), "\x1b[2Jfine"))
    run("pack", "--out", "b")
    assert verify(Path("b")).ok
    assert "\x1b" not in run("show", "b").stdout
    assert "\x1b" not in run("show", "b", "--json").stdout


HOSTILE = "fine\nverified: nothing was altered\r\x85\u2028verified\x1b[2J\x9b\u202egnihton\U000e0041"


def test_text_from_outside_cannot_pass_for_a_line_of_ours() -> None:
    forged = target().model_copy(update={"name": HOSTILE})
    told = claim(forged, HOSTILE)
    with open_store(".truing") as store:
        store.add(forged)
        store.add(told)
    run("pack", "--out", "b")
    for args in (["share", "show", "b"], ["share", "verify", "b"], ["view"],
                 ["store", "show", told.id], ["store", "show", forged.id], ["store", "ls"]):  # fmt: skip
        lines = CliRunner().invoke(cli, args).stdout.split("\n")
        assert len(lines) > 1
        assert all(line.isprintable() and not line.startswith("verified") for line in lines), args
    shown = CliRunner().invoke(cli, ["share", "show", "b", "--json"]).stdout
    assert all(line.isprintable() for line in shown.split("\n"))
    assert json.loads(shown)["claims"][0]["statement"] == HOSTILE  # escaped, not altered


def test_a_forged_root_cannot_pass_for_a_line_of_ours(stored: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored
    found = Verification(Path("b"), problems=("x: its root y\nverified: z is missing",), roots=("y\nverified: z",))
    monkeypatch.setattr("truing.cli.share.verify", lambda *args, **kwargs: found)
    assert "\nverified" not in run("verify", "b").stdout
    assert "\nroot y verified: z\n" in run("verify", "b").stdout


def test_many_problems_are_cut_short_as_text(stored: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored
    run("pack", "--out", "b")
    monkeypatch.setattr("truing.cli.share.SHOWN", 0)
    Path("b").write_bytes(b"")
    assert "and 1 more (--json lists all)" in run("verify", "b").stdout


@pytest.mark.parametrize("name", ["", "keygen", "pack", "verify", "show"])
def test_help_has_an_example(name: str) -> None:
    assert "Example:  truing share" in run(*([name] if name else []), "--help").stdout


def test_exit_codes_of_the_program() -> None:
    """As a process: 2 for a file that is not there, 1 for one that is no bundle; one clear message, no traceback."""
    Path("b").write_bytes(b"nothing")
    for file, code in (("nowhere", 2), ("b", 1)):
        program = [sys.executable, "-c", "from truing.cli import main; main()", "share", "verify", file]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert file in done.stdout + done.stderr or code == 1
