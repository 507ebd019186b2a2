"""The examples run, and what they print is what their docstrings promise."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BASE = {
    "audit": ["scripted/honest", "null          insider", "supported     anchoring   as behaviour"],
    "share": ["verified True, trusted True: supported", "one bit changed: verified False"],
}
LOCAL = {
    "trace": [
        "weak: 3 heads mediate",
        "more than as many heads of the ordinary effect",
        "layer 1, head 0",
        "layer 1, head 1",
    ],
    "train": ["loss 0.6931", "failed     runout (preference) is not below zero"],
    "loop": ["carried on: anchoring", "failed: gate: undecided", "evidence.truing.zip: verified"],
}


def check(name: str, said: list[str], store: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for text in said:
        assert text in done.stdout


def test_every_example_is_tested_and_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert {file.stem for file in files} == BASE.keys() | LOCAL.keys()
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith('"""'), file.name
        assert len(text.splitlines()) <= 40, file.name


@pytest.mark.base
@pytest.mark.parametrize("name", BASE)
def test_an_example_runs_in_the_base_install(name: str, tmp_path: Path) -> None:
    check(name, BASE[name], tmp_path / "store")


@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra `local`")
@pytest.mark.parametrize("name", LOCAL)
def test_an_example_runs_on_the_tiny_model(name: str, tmp_path: Path) -> None:
    check(name, LOCAL[name], tmp_path / "store")
