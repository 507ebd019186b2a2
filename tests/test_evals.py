"""The page about the evals says what was counted, and replies are counted rightly."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("evals_page")


@pytest.mark.base
def test_the_table_is_what_the_results_say(page: ModuleType) -> None:
    found = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    assert page.table(found) in page.PAGE.read_text(encoding="utf-8"), "run: python scripts/evals_page.py"
    found["rows"][0]["missing"] = 2
    assert page.table(found) not in page.PAGE.read_text(encoding="utf-8")
    assert ", missing: 2 |" in page.table(found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inspect-evals loads
def test_a_message_about_an_error_is_no_reply(page: ModuleType) -> None:
    pytest.importorskip("inspect_evals")
    from inspect_ai.event import ModelEvent
    from inspect_ai.model import GenerateConfig, ModelOutput

    def event(text: str, error: str | None = None) -> ModelEvent:
        output = ModelOutput.from_content("m", text, "model_length" if error else "stop", error)
        return ModelEvent(model="m", input=[], tools=[], tool_choice="auto", config=GenerateConfig(), output=output)

    broken = event("")
    broken.error = "gone"
    full = "a text of 900 tokens is too long"
    asked = [event("a"), event("b"), event("a"), event(full, full), broken]
    assert import_module("evals").distinct(asked) == 2
