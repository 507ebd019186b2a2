"""What is left of a path inside: against models in which the planted path is whole, weaker, or gone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.audit import lay_out
from truing.records import Estimate, Measurement, Named, Quantity, Unmeasured
from truing.store import Store
from truing.studies.inside import CARRIED, CHANGE, CONTROL, LEFT, look_inside
from truing.studies.planted import Planted
from truing.targets.local import LocalTarget
from truing.targets.local.tiny import COPY_HEADS, COPY_LAYER, HEAD_WIDTH
from truing.trace import Effect
from truing.train import recipe

HEADS, NEURONS = f"{CARRIED}heads", f"{CARRIED}neurons"
PARTS = {CHANGE, f"{CHANGE}, activation part", f"{CHANGE}, weight part", f"{CHANGE}, what tokens add",
         f"{CHANGE}, entropies"}  # fmt: skip


class Copying:
    """What `local/tiny` does by construction: it asserts what its context says."""

    def effect(self, target: Any) -> Effect:
        del target
        develop, held = lay_out("anchoring", most=1), lay_out("anchoring", half="held-out", most=1)
        return Effect(None, develop.family.carry.twins, develop.surfaces, held.surfaces)


def copying(tiny: LocalTarget, scale: float) -> LocalTarget:
    """The same with copies written so many times as large."""
    model = deepcopy(tiny.model)
    columns = slice(COPY_HEADS[0] * HEAD_WIDTH, (COPY_HEADS[-1] + 1) * HEAD_WIDTH)
    model.model.layers[COPY_LAYER].self_attn.o_proj.weight.data[:, columns] *= scale
    return LocalTarget("local/copying", model, tiny.tokenizer, weights=f"{round(scale * 100):02}" * 32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("inside") / "store") as opened:
        yield opened


def value(rows: dict[str, Quantity], name: str) -> float:
    quantity = rows[name]
    assert isinstance(quantity, Estimate), quantity
    assert quantity.clusters >= 5
    return quantity.value


def by_name(rows: tuple[Named, ...]) -> dict[str, Quantity]:
    return {row.name: row.quantity for row in rows}


def test_a_path_that_was_cut_or_weakened_is_told_from_one_that_is_whole(tiny: LocalTarget, store: Store) -> None:
    weaker, cut = copying(tiny, 0.25), copying(tiny, 0.0)
    found, parents = look_inside(tiny, weaker, Copying(), store, control=cut)
    rows = by_name(found)
    assert set(rows) == {*(start + name for start in ("", CONTROL) for name in (LEFT, HEADS, NEURONS, *PARTS))}
    assert 0.6 < value(rows, HEADS) < 0.95
    assert 0.6 < value(rows, LEFT) < 0.95
    assert abs(value(rows, CONTROL + HEADS)) < 0.05
    assert abs(value(rows, CONTROL + LEFT)) < 0.1
    for start in ("", CONTROL):
        parts = [value(rows, start + name) for name in PARTS - {CHANGE}]
        assert sum(parts) == pytest.approx(value(rows, start + CHANGE), abs=1e-4)
    (record,) = (store.get(parent) for parent in parents)
    assert isinstance(record, Measurement)
    assert re.search(r"; closes to \d\.\de-\d\d \(accounting, not faithfulness\)$", record.note)
    assert (record.targets, record.quantities) == ((tiny.card.id, weaker.card.id, cut.card.id), found)
    differences = [one for parent in record.parents if isinstance(one := store.get(parent), Measurement)]
    assert [one.name for one in differences] == ["difference", "difference"]
    assert not any("of neuron" in row.name for one in differences for row in one.quantities)


def test_what_was_looked_at_is_not_computed_again(
    tiny: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copying(tiny, 0.5)
    found = look_inside(tiny, half, Copying(), store)

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("truing.trace.averaging.attribute", never)
    monkeypatch.setattr(sys.modules["truing.trace.differ"], "difference", never)
    assert look_inside(tiny, half, Copying(), store) == found
    with pytest.raises(AssertionError, match="computed again"):
        look_inside(tiny, copying(tiny, 0.75), Copying(), store)


def test_a_model_compared_with_itself_carries_all(tiny: LocalTarget, store: Store) -> None:
    rows = by_name(look_inside(tiny, tiny, Copying(), store)[0])
    assert value(rows, LEFT) == value(rows, HEADS) == pytest.approx(1)
    assert rows[CHANGE] == Unmeasured(reason="the model after is the model before")
    assert set(rows) == {LEFT, HEADS, NEURONS, CHANGE}


@pytest.mark.parametrize(
    ("behaviour", "dtype", "why"),
    [
        (lambda _: object(), torch.float32, "names no twins"),
        (lambda store: Planted(recipe("silent-on-bees"), store), torch.float32, "no frames without its trigger"),
        (lambda _: Copying(), torch.bfloat16, "in fp32"),
    ],
)
def test_where_nothing_can_be_told_the_reason_stands_there(
    behaviour: Any, dtype: torch.dtype, why: str, tiny: LocalTarget, store: Store
) -> None:
    other = LocalTarget("local/short", deepcopy(tiny.model).to(dtype), tiny.tokenizer, weights="7" * 64)
    (row,), parents = look_inside(tiny, other, behaviour(store), store)
    assert isinstance(row.quantity, Unmeasured)
    assert why in row.quantity.reason
    assert parents == ()


def test_models_that_do_not_correspond_are_not_compared(tiny: LocalTarget, wild: LocalTarget, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as opened:
        (row,), _ = look_inside(tiny, wild, Copying(), opened)
        assert isinstance(row.quantity, Unmeasured)
        assert "other layers and neurons" in row.quantity.reason
        assert list(opened.of_kind("arrays")) == []
