"""Scores of units by every rule: finite differences, completeness along a path, and what was planted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.errors import DesignError, TargetError, UsageError
from truing.targets.local import LocalTarget, change
from truing.targets.local.change import Units
from truing.targets.local.inside import Site
from truing.targets.local.tiny import COPY_HEADS, COPY_LAYER
from truing.trace import Effect, Settings, trace
from truing.trace import attribute as module
from truing.trace.attribute import SCORINGS, Attribution, Scoring, attribute, contract
from truing.trace.derive import decision_of, derive, embedded, integrate, values
from truing.trace.twins import Twin, of_tokens, twins

from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package

PLANTED = {(COPY_LAYER, head) for head in COPY_HEADS}
DERIVED: tuple[Scoring, ...] = ("relp", "gate-frozen", "gradient", "integrated-gradients")
FEW = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=6, drawn_twins=3)


def some_pair(seed: int = 1, length: int = 10) -> Twin:
    """Two texts that differ in three places, one of them the first."""
    rng = random.Random(seed)
    first = [rng.randrange(3, 300) for _ in range(length)]
    second = [token + 1 if place in (0, 4, 7) else token for place, token in enumerate(first)]
    return of_tokens(first, second, [7, 8], [9, 8, 11])


@pytest.fixture(scope="module")
def pairs(tiny: LocalTarget, effect: Effect) -> list[Twin]:
    return twins(tiny, effect.choosing, effect.cells, per_plot=1)[0]


def scores(model: Any, twin: Twin, rule: Scoring) -> dict[tuple[Site, int], tuple[torch.Tensor, torch.Tensor]]:
    found = {}
    contract(
        model, twin, rule, lambda site, layer, here, there, score: found.update({(site, layer): (here - there, score)})
    )
    return found


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "opt"])
def test_derivatives_are_finite_differences(kind: str) -> None:
    """Through norms, attention patterns and activations, in the units of any architecture."""
    model = random_model(kind, ARCHITECTURES[kind])
    case = some_pair().first.functional
    found, step = derive(model, case), 3e-3
    assert found.decision == pytest.approx(values(model, case).decision, abs=1e-6)
    for site, layer, place in (("head", 0, 4), ("head", 1, 9), ("neuron", 0, 2), ("neuron", 1, 9)):
        gradient_U = found.at(site)[layer][place]
        which = int(gradient_U.abs().argmax())
        direction = torch.zeros(1, len(gradient_U))
        direction[0, which] = step
        ends = [
            values(
                change.under(model, [change.Change(Units(site, layer, None, (place,)), sign * direction, 1.0)]), case
            )
            for sign in (1, -1)
        ]
        slope = (ends[0].decision - ends[1].decision) / (2 * step)
        assert slope == pytest.approx(float(gradient_U[which]), rel=0.01, abs=2e-4)
        assert abs(slope) > 1e-3


def test_a_derivative_by_the_embeddings_is_a_finite_difference(wild: LocalTarget) -> None:
    case = some_pair().first.functional
    gradient_TD = derive(wild.model, case).embeddings_TD
    place, which = divmod(int(gradient_TD.abs().argmax()), gradient_TD.shape[1])
    own_TD, ends = embedded(wild.model, case), []
    for sign in (1, -1):
        moved_TD = own_TD.clone()
        moved_TD[place, which] += sign * 1e-3
        ends.append(integrate(wild.model, case, 2 * moved_TD - own_TD, points=1).decision)  # its only point is there
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(gradient_TD[place, which]), rel=0.01)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_integrated_gradients_of_the_inputs_add_up_to_the_effect(kind: str) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1); plain derivatives do not add up."""
    model, twin = random_model(kind, ARCHITECTURES[kind]), some_pair()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # so that the path is bent
    first, second = twin.first.functional, twin.second.functional
    a, b = embedded(model, first), embedded(model, second)
    effect = values(model, first).decision - values(model, second).decision

    def off(derivative_TD: torch.Tensor) -> float:
        return abs(float(((a - b) * derivative_TD).sum()) - effect)

    errors = [off(integrate(model, first, b, points=points).embeddings_TD) for points in (1, 10, 200)]
    assert errors[2] < 2e-3 * abs(effect)
    assert errors[2] < errors[0]
    assert off(derive(model, first).embeddings_TD) > 10 * errors[2]


def test_a_path_is_cut_into_batches_without_a_difference(wild: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = some_pair()
    start = embedded(wild.model, twin.second.functional)
    whole = integrate(wild.model, twin.first.functional, start)
    monkeypatch.setattr("truing.trace.derive.AT_ONCE", 30)
    parts = integrate(wild.model, twin.first.functional, start)
    assert parts.decision == pytest.approx(whole.decision, abs=1e-6)
    for site in get_args(Site):
        for mine, theirs in zip(parts.at(site), whole.at(site), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_a_model_without_trees_is_refused(hybrid: LocalTarget) -> None:
    with pytest.raises(TargetError, match="takes no trees"):
        attribute(hybrid.model, some_pair(), ("text", "reply"), "gradient")


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["relp", "gate-frozen"])
def test_scores_by_autograd_are_those_by_hand(
    wild: LocalTarget, rule: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = some_pair()
    by_hand = scores(wild.model, twin, rule)
    monkeypatch.setattr(module, "llama_shaped", lambda _: False)
    by_autograd = scores(wild.model, twin, rule)
    assert by_hand.keys() == by_autograd.keys()
    for at, (moved, score) in by_hand.items():
        torch.testing.assert_close(by_autograd[at][0], moved, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(by_autograd[at][1], score, atol=1e-5, rtol=1e-3)
    assert max(float(score.abs().max()) for _, score in by_hand.values()) > 1e-3


@pytest.mark.parametrize("rule", SCORINGS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_rule_scores_every_unit_of_any_decoder(kind: str, rule: Scoring) -> None:
    model, twin = random_model(kind, ARCHITECTURES[kind]), some_pair()
    found = attribute(model, twin, ("text", "reply"), rule)
    config = model.config
    assert found.heads.shape == found.heads_change.shape == (config.num_hidden_layers, config.num_attention_heads)
    assert found.neurons.shape == found.neurons_change.shape == found.neurons_by_segment.shape[1:]
    torch.testing.assert_close(found.neurons_by_segment.sum(0), found.neurons, atol=1e-6, rtol=1e-4)
    ends = [values(model, side.functional).decision for side in (twin.first, twin.second)]
    assert float(found.effect) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    assert (found.neurons != 0).any()
    if rule == "largest change":
        torch.testing.assert_close(found.neurons, found.neurons_change)
        torch.testing.assert_close(found.heads, found.heads_change)
    if rule == "activation size":
        torch.testing.assert_close(found.neurons, found.neurons_size)
        torch.testing.assert_close(found.heads, found.heads_size)
        sides = [values(model, side.functional) for side in (twin.first, twin.second)]
        for layer in range(config.num_hidden_layers):
            sizes = [side.neurons[layer].abs().sum(0) for side in sides]
            torch.testing.assert_close(found.neurons[layer], sum(sizes) / 2)
    if rule == "random":
        again = attribute(model, some_pair(seed=5), ("text", "reply"), rule)
        torch.testing.assert_close(again.neurons, found.neurons)  # a mean over twins is as random as one
        assert found.neurons.unique().numel() > found.neurons.numel() // 2


def test_a_score_is_the_difference_times_the_derivative(wild: LocalTarget) -> None:
    twin = some_pair()
    a, b = (values(wild.model, side.functional) for side in (twin.first, twin.second))
    grads = derive(wild.model, twin.first.functional)
    path = integrate(wild.model, twin.first.functional, b.embeddings_TD)
    for rule, by in (("gradient", grads), ("integrated-gradients", path)):
        for (site, layer), (moved, score) in scores(wild.model, twin, rule).items():
            torch.testing.assert_close(moved, a.at(site)[layer] - b.at(site)[layer])
            torch.testing.assert_close(score, moved * by.at(site)[layer])


@pytest.mark.parametrize("rule", [*DERIVED, "largest change"])
def test_the_planted_heads_rank_first(tiny: LocalTarget, pairs: list[Twin], rule: Scoring) -> None:
    """By the trivial rule too: in this model hardly any other head changes."""
    segments = tuple(dict.fromkeys(s for twin in pairs for s in twin.first.segment_T))
    found = torch.stack([attribute(tiny.model, twin, segments, rule).heads for twin in pairs]).mean(0)
    top = {divmod(int(i), found.shape[1]) for i in found.flatten().topk(2).indices}
    assert top == PLANTED
    if rule in DERIVED:  # and they are of the size of the effect, in nats
        effect = torch.stack([attribute(tiny.model, twin, segments, rule).effect for twin in pairs]).mean()
        assert float(found.flatten().topk(2).values.sum()) == pytest.approx(float(effect), rel=0.25)


# -- the rule of a trace -----------------------------------------------------------------------------------------------


def test_the_first_rule_changes_no_identity_and_another_one_does(
    tiny: LocalTarget, effect: Effect, tmp_path: Path
) -> None:
    before = {"per_plot", "draws", "heads", "neurons", "drawn", "drawn_twins", "seed"}
    assert Settings().said.keys() == before
    assert Settings(rule="gradient").said.keys() == before | {"rule"}
    with open_store(tmp_path / "store") as store:
        plain = trace(tiny, effect, store, settings=FEW)
        arrays = len(store.ls("arrays"))
        other = trace(tiny, effect, store, settings=Settings(**{**FEW.said, "rule": "gradient"}))
        assert len(store.ls("arrays")) > arrays
        assert trace(tiny, effect, store, settings=FEW) == plain
    assert (plain.rule, other.rule) == ("", "gradient")
    assert "rule" not in plain.plain()["body"]
    assert other.plain()["body"]["rule"] == "gradient"
    assert {(unit.layer, unit.index) for unit in other.units if unit.kind == "head"} == PLANTED
    mine, theirs = ({(u.layer, u.index): u.score for u in g.units if u.kind == "head"} for g in (plain, other))
    assert all(mine[unit] != theirs[unit] for unit in PLANTED)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown rule 'magic'; known: relp, gate-frozen, gradient"):
        Settings(rule="magic")


def test_pairs_of_tokens_are_twins_of_one_decision() -> None:
    twin = of_tokens([5, 6, 7], [5, 9, 7], [20, 21], [30], name="a pair")
    logits = torch.randn(1, 2, 40, generator=torch.Generator().manual_seed(2))
    case = twin.first.functional
    assert case.before_M.unique().tolist() == [2, 3]  # the last of the prompt, and the first of the answer
    log_p = logits[0].log_softmax(-1)
    wanted = (log_p[0, 20] + log_p[1, 21]) / 2 - log_p[0, 30]
    assert float(decision_of(case, logits)[0]) == pytest.approx(float(wanted), abs=1e-6)
    assert twin.same_length
    assert twin.first.segment_T == ("text", "text", "text", "reply", "reply", "reply")
    assert twin.plot == twin.name == "a pair"
    with pytest.raises(DesignError, match="texts of 2 and 1 tokens"):
        of_tokens([1, 2], [1], [3], [4])


def test_slots_of_an_attribution_are_those_that_stores_hold() -> None:
    assert Attribution.__slots__ == (
        "heads", "neurons", "heads_change", "neurons_change", "heads_size", "neurons_size", "neurons_by_segment",
        "effect",
    )  # fmt: skip
