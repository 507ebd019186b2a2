"""Names of targets, without the packages that local ones need."""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from truing.errors import TargetError
from truing.targets import KINDS, Scored, need, resolve

pytestmark = pytest.mark.base
MODULE = import_module("truing.targets.resolve")  # the package gives the name to the function


@pytest.mark.parametrize("name", ["", "local", "local/", "/tiny", "lokal/tiny", "openai/gpt-2", "Local/tiny"])
def test_an_unknown_kind_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(TargetError, match="A target is kind/name") as caught:
        resolve(name)
    assert repr(name) in str(caught.value)
    assert all(f"{kind}/..." in str(caught.value) for kind in KINDS)


@pytest.mark.parametrize("gone", [("torch",), ("peft", "gguf"), ("torch", "transformers", "peft", "gguf")])
def test_missing_packages_are_named_with_the_command(gone: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None if name in gone else ModuleSpec(name, None)

    monkeypatch.setattr(MODULE, "find_spec", found)
    with pytest.raises(TargetError) as caught:
        resolve("local/tiny")
    assert f"local/tiny needs {', '.join(gone)}, not installed here" in str(caught.value)
    assert "pip install 'truing[local]'" in str(caught.value)


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, label: str, total: int) -> None:
        self.lines.append(f"{label}: {total}")

    def step(self, count: int = 1) -> None:
        self.lines.append(f"+{count}")

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_loading_a_local_model_is_shown_and_making_one_ready_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path))
    first, second = Seen(), Seen()
    resolve("local/tiny", first)
    resolve("local/tiny", second)
    assert first.lines == ["load local/tiny: 1", f"local/tiny is made ready in {tmp_path}; this happens once", "+1"]
    assert second.lines == ["load local/tiny: 1", "+1"]
    resolve("scripted/honest", nothing := Seen())
    assert nothing.lines == []


def test_scripted_targets_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "find_spec", lambda name: None)
    assert isinstance(resolve("scripted/honest"), Scored)


def test_asking_for_what_a_target_cannot_do_names_who_can() -> None:
    target = resolve("scripted/honest")
    need(target, "Scored")
    with pytest.raises(TargetError, match=r"scripted/honest has no ability WhiteBox .*it has Scored, Chat.*local/"):
        need(target, "WhiteBox")
    with pytest.raises(TargetError, match=r"no ability Scored \(it has none\)"):
        need(object(), "Scored")
