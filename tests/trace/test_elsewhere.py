"""A model on another device is traced as on the processor: on one that is there in name alone, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.records import Message
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace import CaseSettings, Effect, Settings, between, differ, trace, trace_case
from truing.trace.probe import probe
from truing.trace.words import by_word

from ..far import far  # noqa: TID252 - tests are no package

ASKED = (Message(role="user", content="The box is red and the door is shut."),)
FEW = Settings(per_plot=1, draws=1, heads=(2,), neurons=(), drawn=2, drawn_twins=1)


@pytest.fixture(params=["far", "cuda"])
def there(request: pytest.FixtureRequest, tiny: LocalTarget) -> Iterator[LocalTarget]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    with far() if request.param == "far" else nullcontext("cuda") as device:
        yield LocalTarget(tiny.card.name, deepcopy(tiny.model).to(device), tiny.tokenizer, weights=tiny.card.weights)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    with open_store(tmp_path / "here") as here, open_store(tmp_path / "there") as far_off:
        yield here, far_off


def alike(here: Any, there: Any) -> None:
    """Records hold the same, but for the last digits."""
    a, b = here.model_dump(mode="json"), there.model_dump(mode="json")
    assert _numbers(a) == pytest.approx(_numbers(b), abs=1e-4, rel=1e-3)


def _numbers(x: Any, at: str = "") -> dict[str, Any]:
    """Its numbers by where they stand."""
    if isinstance(x, dict):
        return {k: v for key, one in x.items() for k, v in _numbers(one, f"{at}.{key}").items()}
    if isinstance(x, list):
        return {k: v for key, one in enumerate(x) for k, v in _numbers(one, f"{at}.{key}").items()}
    return {at: x} if isinstance(x, int | float) and "seconds" not in at else {}


def test_a_case_is_the_same(tiny: LocalTarget, there: LocalTarget, stores: tuple[Store, Store]) -> None:
    settings = CaseSettings(neurons=24)
    found = [
        trace_case(target, between(target, ASKED, ("red",), ("blue",)), store, settings=settings)
        for target, store in zip((tiny, there), stores, strict=True)
    ]
    alike(*found)
    assert found[0].verdict == found[1].verdict


def test_a_claim_is_the_same(
    tiny: LocalTarget, there: LocalTarget, effect: Effect, stores: tuple[Store, Store]
) -> None:
    found = [trace(target, effect, store, settings=FEW) for target, store in zip((tiny, there), stores, strict=True)]
    alike(*found)
    assert found[0].units == found[1].units


def test_a_difference_and_a_probe_are_the_same(
    tiny: LocalTarget, there: LocalTarget, effect: Effect, stores: tuple[Store, Store]
) -> None:
    pairs = zip((tiny, there), stores, strict=True)
    found = [
        (differ(t, t, effect, store, per_plot=1), probe(t, effect.choosing, effect.cells, store, draws=1))
        for t, store in pairs
    ]
    for here, elsewhere in zip(*found, strict=True):
        alike(here, elsewhere)


def test_words_add_the_same(tiny: LocalTarget, there: LocalTarget) -> None:
    here, elsewhere = (by_word(target, ASKED, " red", " blue") for target in (tiny, there))
    assert here == pytest.approx(elsewhere, abs=1e-5)
