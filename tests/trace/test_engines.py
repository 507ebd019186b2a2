"""Both engines: contributions add up in every architecture, and what is done by hand is what autograd gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetError
from truing.targets.local.change import Units, place
from truing.trace.auto import AutoEngine
from truing.trace.engine import Engine, Goal
from truing.trace.hand import HandEngine
from truing.trace.influence import influence, scores
from truing.trace.rows import Row, rows
from truing.trace.rules import RULES, Rule, linear
from truing.trace.select import assembled, select

from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package
from .accounts import ROUTED, decision, shaken, worst

BY_HAND = ("llama", "mistral", "qwen3")
CLOSED = 1e-5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_contributions_add_up_in_every_architecture(kind: str, rule: Rule) -> None:
    """To the decision from embeddings and biases alone; and, where there are neurons, to every node of a graph."""
    assert worst(kind, rule) <= CLOSED


@pytest.mark.parametrize("kind", sorted(ROUTED))
def test_a_mixture_of_experts_has_no_neurons(kind: str) -> None:
    with pytest.raises(TargetError, match="mixture of experts"):
        AutoEngine(shaken(kind), decision())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_a_pass_under_the_rules_computes_what_it_did(kind: str) -> None:
    model = shaken(kind)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
    with linear(model, "relp"):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        under = model(inputs_embeds=embedded, use_cache=False).logits
    torch.testing.assert_close(under.detach(), plain, atol=1e-4, rtol=1e-4)
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_the_derivative_is_that_of_a_linear_map() -> None:
    """Twice the embeddings through the same frozen map give twice the logits; without the rules they do not."""
    model, case = shaken("qwen3"), decision()
    engine = AutoEngine(model, case, neurons="passed")
    sources = engine.into([None], pytest.fail)
    assert float(sources.embeddings_BT.sum()) == pytest.approx(engine.value(None), rel=1e-4)
    embedded = model.get_input_embeddings()(case.tree.ids_N[None, :14]).detach().requires_grad_()
    logit = model(inputs_embeds=embedded, use_cache=False).logits[0, -1].max()
    (grad,) = torch.autograd.grad(logit, embedded)
    found = float((grad * embedded).detach().sum())
    assert abs(found - float(logit.detach())) > 0.05 * abs(float(logit.detach()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", BY_HAND)
def test_both_engines_give_the_same_rows(kind: str, rule: Rule) -> None:
    model, case = random_model(kind, ARCHITECTURES[kind]), decision()
    goals: list[Goal] = [None, (2, 11, 5), (2, 14, 90), (1, 3, 0), (0, 9, 17)]
    spots = [goal for goal in goals if goal]
    totals = [engine(model, case, rule).by_all_paths(spots) for engine in (HandEngine, AutoEngine)]
    tokens, expected = (sources.embeddings_BT.double() for sources, _ in totals)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(totals[0][1], totals[1][1], atol=1e-6, rtol=1e-3)
    by_hand, by_autograd = (rows(engine(model, case, rule), goals) for engine in (HandEngine, AutoEngine))
    for mine, theirs in zip(by_hand, by_autograd, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-4)
        assert abs(mine.error) < CLOSED
        same(mine, theirs)


def same(a: Row, b: Row) -> None:
    """What is listed may differ at the threshold; what it adds may not."""
    scale = 1e-5 * max(a.size, 1e-6)
    torch.testing.assert_close(torch.tensor(a.embedding_T), torch.tensor(b.embedding_T), atol=scale, rtol=1e-4)
    known = [
        dict(zip(zip(row.layer_E, row.node_E, row.index_E, strict=True), row.weight_E, strict=True)) for row in (a, b)
    ]
    for one, other in (known, known[::-1]):
        for spot, weight in one.items():
            assert other.get(spot, 0.0) == pytest.approx(weight, abs=scale + 2e-4 * abs(a.value), rel=1e-3)


def test_a_row_lists_the_largest_neurons_and_loses_none() -> None:
    """Against all of them, from the engine by autograd, without thresholds."""
    model, case = random_model("llama", ARCHITECTURES["llama"]), decision()
    engine = AutoEngine(model, case)
    every: dict[int, Any] = {}

    def keep(layer: Any) -> None:
        cells = torch.cartesian_prod(torch.tensor([0]), torch.arange(engine.nodes))
        every[layer.number] = layer.parts(cells)  # (T, F)

    engine.into([None], keep)
    whole = torch.stack([every[number] for number in range(engine.layers)])
    (row,) = rows(HandEngine(model, case), [None], listed=50)
    assert len(row.weight_E) == 50
    largest = whole.abs().flatten().topk(50).values
    torch.testing.assert_close(torch.tensor(abs(row.weight_E)).float().sort(descending=True).values, largest,
                               atol=1e-7, rtol=1e-4)  # fmt: skip
    assert row.total == pytest.approx(float(whole.double().sum() + row.embedding_T.sum()), rel=1e-5)
    # Nothing cancels out between remainders, listed or not: only inside each, of a layer at a node.
    rest_LT = whole.double().sum(-1).numpy()
    np.subtract.at(rest_LT, (row.layer_E, row.node_E), row.weight_E)
    adds, takes = row.unlisted
    assert adds > 0 > takes
    assert len(row.rest_Q) == 50 // 3
    assert np.abs(row.rest_Q).sum() + adds - takes == pytest.approx(np.abs(rest_LT).sum(), rel=1e-4)


def test_neurons_are_selected_by_how_much_runs_through_them() -> None:
    """With room for all, the order is that of the influence in the whole graph."""
    model, case = random_model("llama", ARCHITECTURES["llama"]), decision()
    engine: Engine = HandEngine(model, case)
    few = select(engine, 40, batch=10)
    graph = assembled(select(engine, 400, batch=50), engine, case.tree.ids_N.tolist())
    assert len(few) == 41
    through = influence(graph)
    neurons = graph.of("neuron").nonzero()[0]
    ranked = [
        (int(graph.layer_N[n]), int(graph.position_N[n]), int(graph.index_N[n]))
        for n in sorted(neurons, key=lambda n: -through[n])
    ]
    chosen = {row.goal for row in few}
    assert len(chosen & set(ranked[:40])) >= 28
    assert through[graph.of("embedding") | graph.of("bias") | graph.of("remainder")].sum() == pytest.approx(1, abs=1e-6)


def test_neurons_are_chosen_after_rounds_of_batches() -> None:
    """Two batches of five choose what one of ten does."""
    model, case = random_model("llama", ARCHITECTURES["llama"]), decision()
    engine, told = HandEngine(model, case), list[int]()
    once = [row.goal for row in select(engine, 33, batch=10)]
    twice = [row.goal for row in select(engine, 33, batch=5, rounds=2, told=told.append)]
    assert twice == once
    assert told == [5, 10, 15, 20, 25, 30, 33]


def test_more_neurons_explain_more() -> None:
    model, case = random_model("llama", ARCHITECTURES["llama"]), decision()
    engine = HandEngine(model, case)
    found = [scores(assembled(select(engine, k), engine, case.tree.ids_N.tolist())) for k in (8, 64, 512)]
    assert found[0].replacement < found[1].replacement < found[2].replacement <= 1
    assert found[0].completeness < found[1].completeness < found[2].completeness <= 1


def test_neurons_stand_before_their_projection() -> None:
    model = random_model("gpt2", ARCHITECTURES["gpt2"])
    module, before = place(model, Units("neuron", 1))
    assert before
    assert module is model.transformer.h[1].mlp.c_proj
