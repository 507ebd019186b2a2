"""Models whose accounts leak, in what is made of claims; and units, and models, that nothing can be said of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from torch import nn

from truing import open_store
from truing.errors import TargetError
from truing.records import Graph, Node, Unit, Unmeasured
from truing.store import Store
from truing.studies.inside import look_inside
from truing.targets.local import LocalTarget
from truing.trace import Effect, Settings, carriers, differ, retrace, trace
from truing.trace.averaging import segments_of
from truing.trace.closing import closed
from truing.trace.draw import draw
from truing.trace.mediate import Choice, both_ways
from truing.trace.twins import by_plot, twins

from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package

FEW = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=6, drawn_twins=1)
LEAKS = r"LlamaForCausalLM\) do not close: relative error .*lost in model\.layers\.1\.mlp\.act_fn \(Odd\)"


class Odd(nn.Module):
    """An activation that is written out in an unusual way."""

    def forward(self, x: Any) -> Any:
        """Three times of what comes in goes out, by derivatives."""
        return (200 * x).pow(3)


@pytest.fixture(scope="module")
def leaky(tiny: LocalTarget) -> LocalTarget:
    """It leaks in the middle, and is fine otherwise."""
    settings = ARCHITECTURES["llama"] | {"vocab_size": len(tiny.tokenizer), "sliding_window": 512}
    model = random_model("llama", settings)
    target = LocalTarget("local/leaky", model, tiny.tokenizer, weights="7" * 64)
    model.model.layers[1].mlp.act_fn = Odd()
    model.config.hidden_act = "odd"  # so that it is not read by hand
    return target


@pytest.fixture(scope="module")
def small(effect: Effect) -> Effect:
    """Five plots."""
    choosing, testing = (
        tuple(surface for members in list(by_plot(half).values())[:5] for surface in members[:1])
        for half in (effect.choosing, effect.testing)
    )
    return replace(effect, choosing=choosing, testing=testing)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def graph_of(target: LocalTarget, effect: Effect, **more: Any) -> Graph:
    none, pairs = Unmeasured(reason="none"), twins(target, effect.testing, effect.cells, per_plot=1)[0]
    return Graph(**{
        "target": target.card.id, "claim": None, "twins": effect.cells, "aligned": 1, "skipped": 0, "effect": none,
        "closure_error": 0.0, "segments": segments_of(pairs), "nodes": (), "edges": (), "units": (), "mediated": (),
        "verdict": "inconclusive", "why": "none", **more,
    })  # fmt: skip


# -- accounts that do not close ----------------------------------------------------------------------------------------


def test_units_are_not_read_off_accounts_that_leak(leaky: LocalTarget, small: Effect, store: Store) -> None:
    for work in (carriers, lambda targets, *rest, **more: trace(targets[0], *rest, **more)):
        with pytest.raises(TargetError, match=LEAKS):
            work([leaky], small, store, settings=FEW)
    assert store.ls() == []
    found = carriers([leaky], small, store, settings=replace(FEW, rule="gradient"))
    assert found.error is None


def test_the_gate_says_why_it_cannot_look_inside(leaky: LocalTarget, small: Effect, store: Store) -> None:
    class Seen:
        def effect(self, target: Any) -> Effect:
            return small

    (row, *others), parents = look_inside(leaky, leaky, Seen(), store)
    assert not others
    assert isinstance(row.quantity, Unmeasured)
    assert "act_fn (Odd)" in row.quantity.reason
    assert parents == ()


def test_errors_are_those_of_both_ways_of_reading(tiny: LocalTarget, small: Effect, store: Store) -> None:
    pair = twins(tiny, small.choosing, small.cells, per_plot=1)[0][0]
    model = random_model("gpt2", ARCHITECTURES["gpt2"] | {"vocab_size": len(tiny.tokenizer)})
    other = LocalTarget("local/gpt2", model, tiny.tokenizer, weights="7" * 64)
    errors = [closed(one, pair, "relp") for one in (tiny, other)]
    assert all(error is not None and 0 < error < 1e-4 for error in errors)
    assert closed(tiny, pair, "integrated-gradients") is None
    assert carriers([tiny, tiny], small, store, settings=FEW).error == errors[0]


def test_a_claim_without_a_picture_names_the_module_that_leaks(leaky: LocalTarget, small: Effect, store: Store) -> None:
    node = Node(id="n", kind="neuron", layer=1, index=3, segment="reply", value=1.0, contribution=1.0)
    graph = graph_of(leaky, small, nodes=(node,))
    again, _ = retrace(leaky, graph, small, store, settings=replace(FEW, rule="gradient"))
    assert "no picture: the linear rules do not hold for a LlamaForCausalLM" in again.why
    assert "lost in model.layers.1.mlp.act_fn (Odd)" in again.why
    assert again.closure_error > 1e-3


# -- what is not there -------------------------------------------------------------------------------------------------


def chosen(site: Any, *units: tuple[int, int]) -> Choice:
    return Choice(site, "attribution", units)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (chosen("head", (1, 0), (1, 99)), r"no head 99 in layer 1: there are \d+ \(0 to \d+\)"),
        (chosen("head", (1, -1)), "no head -1 in layer 1"),
        (chosen("head", (99, 0)), r"no layer 99 in a model of \d+ layers"),
        (chosen("neuron", (0, 10**6)), "no neuron 1000000 in layer 0"),
        (chosen("neuron", (-1, 0)), "no layer -1 in a model"),
    ],
)
def test_units_outside_a_model_are_refused(choice: Choice, said: str, tiny: LocalTarget, small: Effect) -> None:
    pair = twins(tiny, small.choosing, small.cells, per_plot=1)[0][0]
    for choices, back in (([choice], []), ([], [choice])):
        with pytest.raises(TargetError, match=said):
            both_ways(tiny.model, pair, choices, back)
    if choice.site == "neuron":
        with pytest.raises(TargetError, match=said):
            draw(tiny.model, [pair], [(*choice.units[0], "reply")], ("reply",))


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_units_of_a_larger_model_are_not_read_in_a_smaller_one(
    kind: Any, tiny: LocalTarget, small: Effect, store: Store
) -> None:
    unit = Unit(kind=kind, layer=2, index=10**4, score=1.0, held=1.0)
    node = Node(id="n", kind="neuron", layer=2, index=10**4, segment="reply", value=1.0, contribution=1.0)
    for more in ({"units": (unit,)}, {"nodes": (node,)}):
        with pytest.raises(TargetError, match=r"no (head|neuron) 10000 in layer 2: there are"):
            retrace(tiny, graph_of(tiny, small, **more), small, store, settings=FEW)
    assert store.ls() == []


def of_kind(kind: str, tiny: LocalTarget, change: Callable[[Any], Any] = lambda model: model) -> LocalTarget:
    model = change(random_model(kind, ARCHITECTURES[kind] | {"vocab_size": len(tiny.tokenizer)}))
    return LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="7" * 64)


def quantised(model: Any) -> Any:
    model.is_quantized = True
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda tiny: of_kind("mixtral", tiny), r"mixture of experts"),
        (lambda tiny: of_kind("llama", tiny, quantised), "is quantised"),
        (lambda tiny: of_kind("llama", tiny, lambda model: model.bfloat16()), r"in fp32 \(TRUING_DTYPE=fp32\)"),
    ],
)
def test_what_cannot_be_read_is_refused_wherever_claims_are(
    make: Any, said: str, tiny: LocalTarget, small: Effect, store: Store
) -> None:
    """A trace, and a single case, are looked at in test_shapes."""
    target = make(tiny)
    for work in (
        lambda: retrace(target, graph_of(tiny, small), small, store, settings=FEW),
        lambda: differ(target, target, small, store, per_plot=1),
        lambda: carriers([target], small, store, settings=FEW),
    ):
        with pytest.raises(TargetError, match=said):
            work()
    assert store.ls() == []
