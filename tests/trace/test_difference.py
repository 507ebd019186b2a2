"""Differences of graphs: against the same written out, and of a change whose place is known."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.errors import TargetError
from truing.records import Estimate, Measurement
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace import Effect, differ
from truing.trace.difference import average, difference, strongest
from truing.trace.run import segments_of
from truing.trace.twins import Twin, twins

LAYER, NEURON = 1, 17


@pytest.fixture(scope="module")
def pairs(tiny: LocalTarget, effect: Effect) -> list[Twin]:
    return twins(tiny, effect.choosing, effect.cells, per_plot=1)[0][:3]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def changed(tiny: LocalTarget, *, scale: float) -> LocalTarget:
    """The same model in which one neuron writes `scale` times as much."""
    model = deepcopy(tiny.model)
    model.model.layers[LAYER].mlp.down_proj.weight.data[:, NEURON] *= scale
    return LocalTarget("local/changed", model, tiny.tokenizer, weights="8" * 64)


def of_models(first: Any, second: Any, twin: Twin, segments: tuple[str, ...]) -> Any:
    every = torch.arange(len(twin.first.functional.tree))
    return difference((first.model, second.model), (twin.first, twin.first), every, every, segments)


def test_a_model_does_not_differ_from_itself(tiny: LocalTarget, pairs: list[Twin]) -> None:
    found = of_models(tiny, tiny, pairs[0], segments_of(pairs))
    assert float(found.whole) == 0
    assert float(found.activation_SLF.abs().sum() + found.weight_SLF.abs().sum()) == 0


def test_the_parts_close_and_find_the_neuron_that_was_changed(tiny: LocalTarget, pairs: list[Twin]) -> None:
    segments = segments_of(pairs)
    other = changed(tiny, scale=-4000.0)
    found = [of_models(tiny, other, twin, segments) for twin in pairs]
    for one in found:
        assert one.error < 1e-5
        assert abs(float(one.whole)) > 1e-4
        # Nothing below the change is different: neurons there fire alike.
        assert float(one.activation_SLF[:, :LAYER].abs().max()) < 1e-6
        assert float(one.activation_SLF[:, LAYER].abs().max()) < 1e-6
        assert float(one.rest) == 0
    assert (LAYER, NEURON) in strongest(average(found), 5)
    weight = sum(float(one.weight_SLF[:, LAYER, NEURON].sum()) for one in found)
    others = sum(one.weight_SLF[:, LAYER].sum(0) for one in found)
    assert abs(weight) == pytest.approx(float(others.abs().max()))


def test_the_difference_of_two_cells_is_all_in_what_fires_and_what_is_read(
    tiny: LocalTarget, pairs: list[Twin]
) -> None:
    segments = segments_of(pairs)
    for twin in pairs:
        found = difference((tiny.model, tiny.model), (twin.first, twin.second), twin.onto_T, twin.from_T, segments)
        assert found.error < 1e-5
        back = difference((tiny.model, tiny.model), (twin.second, twin.first), twin.from_T, twin.onto_T, segments)
        torch.testing.assert_close(
            found.activation_SLF.sum((0, 2)), -back.activation_SLF.sum((0, 2)), atol=1e-5, rtol=1e-4
        )
        assert float(found.whole) == pytest.approx(-float(back.whole))


def test_a_difference_is_a_measurement_with_intervals(tiny: LocalTarget, effect: Effect, store: Store) -> None:
    store.add(effect.claim)
    other = changed(tiny, scale=-4000.0)
    record = differ(tiny, other, effect, store, per_plot=1)
    assert isinstance(record, Measurement)
    rows = {row.name: row.quantity for row in record.quantities}
    names = ("difference", "activation part", "weight part", "embedding part", "entropy part")
    whole, activation, weight, tokens, entropy = (rows[name] for name in names)
    for row in (whole, activation, weight, tokens, entropy):
        assert isinstance(row, Estimate)
        assert row.clusters >= 5
    parts = sum(row.value for row in (activation, weight, tokens, entropy))  # type: ignore[union-attr]
    assert whole.value == pytest.approx(parts, abs=1e-4)  # type: ignore[union-attr]
    layers = tiny.model.config.num_hidden_layers
    by_layer = [rows[f"weight part in layer {layer}"].value for layer in range(layers)]  # type: ignore[union-attr]
    assert sum(by_layer) == pytest.approx(weight.value, abs=1e-4)  # type: ignore[union-attr]
    assert f"weight part of neuron {LAYER}.{NEURON}" in rows
    assert differ(tiny, other, effect, store, per_plot=1) == record
    assert "replacement" not in record.note


def test_models_that_do_not_correspond_are_refused(tiny: LocalTarget, effect: Effect, store: Store) -> None:
    from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package

    small = random_model("llama", ARCHITECTURES["llama"] | {"vocab_size": len(tiny.tokenizer)})
    other = LocalTarget("local/small", small, tiny.tokenizer, weights="9" * 64)
    with pytest.raises(TargetError, match="other layers and neurons"):
        differ(tiny, other, effect, store)
    tokens = deepcopy(tiny.tokenizer)
    tokens.chat_template += " "
    with pytest.raises(TargetError, match="do not read the same tokens"):
        differ(tiny, LocalTarget("local/t", tiny.model, tokens, weights="9" * 64), effect, store)
