"""A trace of the claim that is true of `local/tiny` by construction finds the heads that were planted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.audit import lay_out
from truing.errors import DesignError, TargetError
from truing.records import Estimate, Mediation, Quantity, Surface, Unmeasured
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.tiny import COPY_HEADS, COPY_LAYER
from truing.trace import Effect, Settings, judge, retrace, trace
from truing.trace.accounts import Account
from truing.trace.attribute import TRIVIAL, Trivial, attribute, read_side
from truing.trace.averaging import averaged
from truing.trace.derive import decision_of
from truing.trace.draw import OUTPUT, account, draw
from truing.trace.judge import worth_comparing
from truing.trace.leak import check_closed
from truing.trace.mediate import Choice, back, both_ways, choose, mediate
from truing.trace.ordinary import ordinary
from truing.trace.patching import patched_on
from truing.trace.patching import shares as shares_of
from truing.trace.specific import compared
from truing.trace.twins import FRAME, REPLY, Twin, twins

PLANTED = tuple((COPY_LAYER, head) for head in COPY_HEADS)
FEW = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=6, drawn_twins=3)


@pytest.fixture(scope="module")
def pairs(tiny: LocalTarget, effect: Effect) -> list[Twin]:
    return twins(tiny, effect.choosing, effect.cells, per_plot=1)[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def labels(pairs: Sequence[Twin]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([FRAME, *(s for t in pairs for s in (*t.first.segment_T, *t.second.segment_T)), REPLY]))


def heads(*units: tuple[int, int]) -> Choice:
    return Choice("head", "attribution", units)


# -- attribution and patching ------------------------------------------------------------------------------------------


def test_the_planted_heads_rank_first_by_attribution(tiny: LocalTarget, pairs: list[Twin]) -> None:
    found = [attribute(tiny.model, twin, labels(pairs)) for twin in pairs]
    mean = torch.stack([one.heads for one in found]).mean(0)
    ranked = [(int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in mean.flatten().argsort(descending=True)]
    assert set(ranked[:2]) == set(PLANTED)
    others = [float(mean[unit].abs()) for unit in ranked if unit not in PLANTED]
    assert max(others) < 0.05 * min(float(mean[unit]) for unit in PLANTED)
    for one in found:
        torch.testing.assert_close(one.neurons_by_segment.sum(0), one.neurons, atol=1e-5, rtol=1e-4)
        assert (one.heads_change >= 0).all()
        assert (one.neurons_change >= 0).all()
        # No change exceeds what is there: |a - b| <= |a| + |b|.
        assert (one.heads_change <= 2 * one.heads_size + 1e-5).all()
        assert (one.neurons_change <= 2 * one.neurons_size + 1e-5).all()


def test_the_planted_heads_carry_the_whole_effect_and_no_others_do(tiny: LocalTarget, pairs: list[Twin]) -> None:
    config = tiny.model.config
    every = [(layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)]
    rest = [unit for unit in every if unit not in PLANTED]
    choices = [heads(*PLANTED), *(heads(unit) for unit in PLANTED), *(heads(*two) for two in combinations(rest, 2))]
    parts, whole = torch.zeros(len(choices), dtype=torch.double), 0.0
    for twin in pairs:
        first, second, patched = mediate(tiny.model, twin, choices)
        parts += torch.tensor([first - value for value in patched], dtype=torch.double)
        whole += first - second
    shares = (parts / whole).tolist()
    assert whole / len(pairs) > 0.2  # nats per token: there is an effect to carry
    assert shares[0] == pytest.approx(1, abs=0.05)
    assert all(0.2 < share < 0.8 for share in shares[1:3])  # each is a part of it
    assert max(abs(share) for share in shares[3:]) < 0.05


def test_patching_nothing_changes_nothing(tiny: LocalTarget, pairs: list[Twin]) -> None:
    first, second, (patched, one) = mediate(tiny.model, pairs[0], [heads(), heads(PLANTED[0])])
    assert patched == pytest.approx(first, abs=1e-6)
    assert abs(one - first) > 1e-3
    assert abs(second - first) > 1e-3


@pytest.mark.parametrize("name", ["tiny", "wild"])
def test_patching_everything_gives_the_other_twin(name: str, effect: Effect, request: pytest.FixtureRequest) -> None:
    """What differs between twins reaches the decision through heads and neurons alone, and all of them are patched."""
    target = request.getfixturevalue(name)
    (twin, *_), _ = twins(target, effect.choosing, effect.cells, per_plot=1)
    assert twin.same_length
    config = target.model.config
    layers = range(config.num_hidden_layers)
    every_head = tuple((layer, i) for layer in layers for i in range(config.num_attention_heads))
    every_neuron = tuple((layer, i) for layer in layers for i in range(config.intermediate_size))
    from truing.targets.local.inside import Patch, run

    seen_a, kept = read_side(target.model, twin.first)
    seen_b, _ = read_side(target.model, twin.second)
    both = {("head", layer): torch.ones(1, config.num_attention_heads, dtype=torch.bool) for layer in layers}
    both |= {("neuron", layer): torch.ones(1, config.intermediate_size, dtype=torch.bool) for layer in layers}
    patch = Patch(both, seen_b, twin.onto_T, twin.from_T)
    logits = run(target.model, twin.first.functional.tree, kept, patch=patch)
    torch.testing.assert_close(logits[0], seen_b.logits, atol=1e-5, rtol=1e-5)
    other = float(decision_of(twin.second.functional, seen_b.logits[None])[0])
    assert float(decision_of(twin.first.functional, logits)[0]) == pytest.approx(other, abs=1e-5)
    assert not torch.allclose(seen_a.logits, seen_b.logits, atol=1e-3)
    # Through `mediate`: in one batch, each row has its own units patched and no others.
    _, said, rows = mediate(target.model, twin, [heads(*every_head), Choice("neuron", "random", every_neuron)])
    assert said == pytest.approx(other, abs=1e-6)
    for row, kind in zip(rows, ("head", "neuron"), strict=True):
        patch = Patch({k: v for k, v in both.items() if k[0] == kind}, seen_b, twin.onto_T, twin.from_T)
        alone = decision_of(twin.first.functional, run(target.model, twin.first.functional.tree, kept, patch=patch))
        assert row == pytest.approx(float(alone[0]), abs=1e-5)


def test_choices_are_what_their_rules_say() -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randn(4, 30, generator=generator)
    change, size = torch.rand(2, 4, 30, generator=generator)
    trivial: dict[Trivial, torch.Tensor] = {"largest change": change, "activation size": size}
    by_rule = {choice.rule: choice for choice in choose("neuron", 12, score, trivial, draws=1, seed=3)}
    assert set(by_rule) == {"attribution", "random", "largest change", "activation size", "shuffled"}
    assert all(choice.k == 12 == len(set(choice.units)) for choice in by_rule.values())
    for rule, table in (("attribution", score), ("largest change", change), ("activation size", size)):
        chosen = {float(table[unit]) for unit in by_rule[rule].units}
        assert chosen == set(table.flatten().sort(descending=True).values[:12].tolist())
    # Shuffled inside layers: as many units of each layer as the attribution has there.
    layers = [sorted(layer for layer, _ in by_rule[rule].units) for rule in ("attribution", "shuffled")]
    assert layers[0] == layers[1]
    assert set(by_rule["shuffled"].units) != set(by_rule["attribution"].units)
    assert not set(by_rule["random"].units) & set(by_rule["attribution"].units)
    assert choose("neuron", 12, score, trivial, draws=1, seed=3) == list(by_rule.values())
    again = {choice.rule: choice for choice in choose("neuron", 12, score, trivial, draws=1, seed=4)}
    assert again["attribution"] == by_rule["attribution"]
    assert again["random"] != by_rule["random"]
    drawn = choose("neuron", 12, score, trivial, draws=3, seed=3)
    assert [choice.rule for choice in drawn].count("random") == 3 == [choice.rule for choice in drawn].count("shuffled")
    assert len({choice.label for choice in drawn}) == len(drawn) == 9
    assert len({choice.units for choice in drawn}) == 9


def test_the_way_back_is_the_way_there_with_the_cells_exchanged(wild: LocalTarget, effect: Effect) -> None:
    laid = lay_out("anchoring")
    unequal = [s for s in laid.surfaces if len({len(wild.prompt_ids(c.messages)) for c in s.cases}) > 1]
    some = [twins(wild, surfaces, effect.cells, per_plot=1)[0][0] for surfaces in (effect.choosing, unequal)]
    for twin in some:
        turned = Twin(twin.plot, twin.name, twin.second, twin.first, twin.from_T, twin.onto_T)
        choices = [heads((0, 1), (1, 2)), heads(*((layer, i) for layer in (0, 1) for i in range(4)))]
        found = both_ways(wild.model, twin, choices, choices[::-1])
        second, first, there = mediate(wild.model, turned, choices[::-1])
        assert (found.first, found.second) == pytest.approx((first, second), abs=1e-6)
        assert found.restored == pytest.approx(there, abs=1e-6)
        assert found.removed == pytest.approx(mediate(wild.model, twin, choices)[2], abs=1e-6)
        assert abs(found.restored[0] - found.second) > 1e-3


def test_the_planted_heads_bring_the_whole_effect_back_and_no_others_do(tiny: LocalTarget, pairs: list[Twin]) -> None:
    config = tiny.model.config
    every = [(layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)]
    rest = heads(*(unit for unit in every if unit not in PLANTED))
    parts, whole = torch.zeros(2, dtype=torch.double), 0.0
    for twin in pairs:
        found = both_ways(tiny.model, twin, (), [heads(*PLANTED), rest])
        assert found.removed == []
        parts += torch.tensor([value - found.second for value in found.restored], dtype=torch.double)
        whole += found.first - found.second
    shares = (parts / whole).tolist()
    assert shares[0] == pytest.approx(1, abs=0.05)
    assert abs(shares[1]) < 0.05


def test_one_of_each_rule_goes_the_other_way_too() -> None:
    generator = torch.Generator().manual_seed(1)
    score, table = torch.randn(4, 30, generator=generator), torch.rand(4, 30, generator=generator)
    drawn = choose("head", 5, score, dict.fromkeys(TRIVIAL, table), draws=3, seed=3)
    rules = ("attribution", *TRIVIAL, "random", "shuffled")
    assert [(c.rule, c.draw) for c in back(drawn)] == [(rule, 0) for rule in rules]


# -- the picture -------------------------------------------------------------------------------------------------------

SPOTS = [(0, 3, "statement"), (2, 7, "reply"), (1, 7, "ask"), (2, 7, "ask"), (0, 90, "ask")]


@pytest.mark.parametrize("name", ["tiny", "wild"])
def test_the_accounts_close(name: str, effect: Effect, request: pytest.FixtureRequest) -> None:
    target = request.getfixturevalue(name)
    some, _ = twins(target, effect.choosing, effect.cells, per_plot=1)
    segments, last = labels(some), target.model.config.num_hidden_layers - 1
    spots = [(min(layer, last), i % target.model.config.intermediate_size, s) for layer, i, s in SPOTS]
    side = some[0].first
    found = account(target.model, side, spots, segments)
    assert found.flow.shape == (len(spots) + 1, len(spots) + 2 * len(segments))
    allowed = 2e-5 * found.flow.abs().sum(-1)
    assert ((found.flow.sum(-1) - found.values).abs() <= allowed).all()
    assert found.error < 1e-5
    seen, _ = read_side(target.model, side)
    for row, (layer, neuron, segment) in enumerate(spots):
        at = [position for position, label in enumerate(side.segment_T) if label == segment]
        assert float(found.values[row]) == pytest.approx(float(seen.neurons[layer][at, neuron].sum()), abs=1e-5)
        # A spot takes nothing from spots of its own layer or of later ones.
        for column, (other, _, _) in enumerate(spots):
            if other >= layer:
                assert float(found.flow[row, column]) == 0
    # What a spot adds to the decision does not depend on which others are drawn.
    alone = account(target.model, side, spots[1:2], segments)
    assert float(alone.flow[-1, 0]) == pytest.approx(float(found.flow[-1, 1]), rel=1e-4, abs=1e-7)


def test_the_graph_is_consistent_and_the_same_every_time(tiny: LocalTarget, pairs: list[Twin]) -> None:
    segments = labels(pairs)
    nodes, edges, error = draw(tiny.model, pairs[:3], SPOTS, segments, keep=1.0)
    assert error < 1e-5
    by_id = {node.id: node for node in nodes}
    assert len(by_id) == len(nodes) == len(SPOTS) + 2 * len(segments) + 1
    accounts = [[account(tiny.model, s, SPOTS, segments) for s in (t.first, t.second)] for t in pairs[:3]]
    flow = torch.stack([a.flow - b.flow for a, b in accounts]).mean(0)
    values = torch.stack([a.values - b.values for a, b in accounts]).mean(0)
    assert by_id[OUTPUT].value == pytest.approx(float(values[-1]), rel=1e-9)
    into: dict[str, float] = {}
    weights = {(edge.source, edge.target): edge.weight for edge in edges}
    assert len(weights) == len(edges)
    for edge in edges:
        assert by_id[edge.target].kind in ("neuron", "output")
        assert by_id[edge.source].kind != "output"
        into[edge.target] = into.get(edge.target, 0.0) + edge.weight
    # With every edge kept, what flows into a node is its value.
    scale = float(flow.abs().sum())
    for target, total in into.items():
        assert total == pytest.approx(by_id[target].value, abs=1e-5 * scale)
    for number, (layer, index, segment) in enumerate(SPOTS):
        name = f"n{layer}.{index}.{segment}"
        assert by_id[name].value == pytest.approx(float(values[number]), rel=1e-9)
        assert by_id[name].contribution == pytest.approx(float(flow[-1, number]), rel=1e-9)
        assert weights.get((name, OUTPUT), 0.0) == by_id[name].contribution
    for offset, kind in ((len(SPOTS), "rest"), (len(SPOTS) + len(segments), "input")):
        for number, segment in enumerate(segments):
            assert by_id[f"{kind}.{segment}"].contribution == float(flow[-1, offset + number])
    assert sum(n.contribution for n in nodes if n.id != OUTPUT) == pytest.approx(by_id[OUTPUT].value, abs=1e-5 * scale)
    assert draw(tiny.model, pairs[:3], SPOTS, segments, keep=1.0) == (nodes, edges, error)
    # Fewer edges: the largest ones, as few as hold the share, with the weights that they had.
    _, fewer, _ = draw(tiny.model, pairs[:3], SPOTS, segments, keep=0.7)
    assert 0 < len(fewer) < len(edges)
    assert [weights[edge.source, edge.target] for edge in fewer] == [edge.weight for edge in fewer]
    held = [abs(edge.weight) for edge in fewer]
    assert sum(held) >= 0.7 * scale > sum(held[:-1])
    assert min(held) >= max(abs(e.weight) for e in edges if e not in fewer)


# -- the verdict -------------------------------------------------------------------------------------------------------


def share(value: float, half: float = 0.05) -> Quantity:
    return Estimate(
        value=value, low=value - half, high=value + half, level=0.95, n=30, clusters=10, unit="share", estimator="given"
    )  # fmt: skip


def shares(k: int = 5, kind: str = "head", **by_rule: Quantity) -> list[Mediation]:
    said = {"attribution": share(0.9), "random": share(0.0), "shuffled": share(0.1), "largest change": share(0.2)}
    said |= {"activation size": share(0.0)}
    said |= {rule.replace("_", " "): quantity for rule, quantity in by_rule.items()}
    return [Mediation(kind=kind, choice=rule, k=k, share=quantity) for rule, quantity in said.items()]


NONE = Unmeasured(reason="4 clusters")


@pytest.mark.parametrize(
    ("mediated", "verdict"),
    [
        (shares(), "supported"),
        (shares(attribution=share(0.56)), "supported"),
        (shares(attribution=share(0.54)), "weak"),  # its interval reaches below half
        (shares(attribution=share(0.3)), "weak"),
        (shares(attribution=share(0.19)), "refuted"),  # its interval touches the shuffled one's
        (shares(attribution=share(0.9), random=share(0.85)), "inconclusive"),
        (shares(attribution=share(0.9), shuffled=share(0.85)), "inconclusive"),
        (shares(attribution=share(0.1), shuffled=share(0.9)), "refuted"),  # a sham choice is never what is supported
        (shares(attribution=share(0.0), random=share(0.9), shuffled=share(0.9)), "refuted"),
        (shares(attribution=share(-0.9)), "refuted"),
        (shares(attribution=share(0.0), largest_change=share(0.9)), "refuted"),  # nor is a trivial one
        (shares(attribution=share(0.0), activation_size=share(0.9)), "refuted"),
        (shares(attribution=share(0.9, half=0.6)), "weak"),
        (shares(attribution=share(0.8), random=share(0.85)), "refuted"),  # random units do better
        (shares(attribution=share(0.6, half=0.5)), "inconclusive"),  # too few twins to tell
        (shares(attribution=share(0.3, half=0.8), random=share(0.31)), "inconclusive"),  # nor that random ones do more
        (shares(attribution=share(3.0, half=0.5)), "weak"),  # three times the effect is not an account of it
        (shares(attribution=NONE), "inconclusive"),
        (shares(random=NONE, shuffled=NONE), "inconclusive"),  # with nothing to compare to nothing is shown
        (shares(attribution=NONE) + shares(k=15), "supported"),
        (shares(attribution=share(0.3)) + shares(k=15, attribution=share(0.8)), "supported"),
        (shares(attribution=share(0.3)) + shares(k=15, attribution=share(0.0)), "weak"),
        # The controls of another K or of other units do not count.
        (shares() + shares(kind="neuron", attribution=share(0.0), random=share(0.95)), "supported"),
        (shares(k=5)[:1] + shares(k=15, attribution=share(0.0)), "refuted"),
        ([], "inconclusive"),
    ],
)
def test_the_verdict_follows_its_rule(mediated: list[Mediation], verdict: str) -> None:
    said, why = judge(mediated)
    assert said == verdict
    assert why
    assert judge(mediated[::-1])[0] == verdict


def both(removed: Quantity, restored: Quantity | None, sham: Quantity | None) -> list[Mediation]:
    """Shares by attribution in both directions, and those of sham choices on the way back."""
    found = shares(attribution=removed)
    said = {"attribution": restored, "random": sham, "shuffled": sham}
    return [m.model_copy(update={"restored": said.get(m.choice)}) for m in found]


@pytest.mark.parametrize(
    ("removed", "restored", "sham", "verdict"),
    [
        (share(0.9), share(0.9), share(0.1), "supported"),
        (share(0.9), share(0.25), share(0.1), "supported"),  # above the sham ones is enough
        (share(0.9), share(0.19), share(0.1), "weak"),  # intervals touch
        (share(0.9), share(0.0), share(0.1), "weak"),
        (share(0.9), share(-0.9), share(0.1), "weak"),
        (share(0.9), NONE, share(0.1), "weak"),
        (share(0.9), share(0.9), NONE, "weak"),  # nothing to compare to
        (share(0.3), share(0.9), share(0.1), "weak"),
        (share(0.0), share(0.9), share(0.1), "refuted"),  # what goes decides first
        (share(0.9), None, None, "supported"),  # a record from before
    ],
)
def test_units_must_bring_the_effect_back_too(
    removed: Quantity, restored: Quantity | None, sham: Quantity | None, verdict: str
) -> None:
    said, why = judge(both(removed, restored, sham))
    assert said == verdict
    assert ("bring back" in why) == (restored is not None and verdict != "refuted")


def test_a_trivial_choice_that_does_as_well_is_remarked() -> None:
    _, why = judge(shares(largest_change=share(0.88)))
    assert "largest change alone do as well" in why
    _, why = judge(shares(activation_size=share(0.88)))
    assert "units chosen by activation size alone do as well" in why
    _, why = judge(shares(activation_size=share(0.88), largest_change=share(0.88)))
    assert "units chosen by the largest change or activation size alone do as well" in why
    _, plain = judge(shares())
    assert "do as well" not in plain
    assert "5 heads mediate 90% [85%, 95%]" in plain


# -- the whole trace ---------------------------------------------------------------------------------------------------


def test_a_trace_finds_the_planted_heads_and_supports_them(tiny: LocalTarget, effect: Effect, store: Store) -> None:
    graph = trace(tiny, effect, store, settings=FEW)
    assert {(u.layer, u.index) for u in graph.units if u.kind == "head"} == set(PLANTED)
    assert len([u for u in graph.units if u.kind == "neuron"]) == 20
    mediated = {(m.kind, m.choice): m.share for m in graph.mediated}
    assert mediated["head", "attribution"].value == pytest.approx(1, abs=0.05)
    assert abs(mediated["neuron", "attribution"].value) < 0.1
    restored = {(m.kind, m.choice): m.restored for m in graph.mediated}
    assert restored["head", "attribution"].value == pytest.approx(1, abs=0.05)
    assert abs(restored["head", "random"].value) < 0.1
    for rule in ("largest change", "activation size"):
        assert isinstance(mediated["head", rule], Estimate)
        assert isinstance(restored["head", rule], Estimate)
    assert "bring back" in graph.why
    assert graph.verdict == judge(graph.mediated)[0]
    assert graph.closure_error < 1e-5
    assert isinstance(graph.effect, Estimate)
    assert graph.effect.value > 0.2
    held = {s.plot for s in effect.testing}
    assert graph.effect.clusters <= len(held)
    assert graph.twins == tuple(effect.cells)
    assert set(graph.parents) >= {tiny.card.id, effect.claim.id}
    assert sum(node.kind == "neuron" for node in graph.nodes) == FEW.drawn
    # What was kept is enough: nothing is computed again, and the record is the same.
    kept = store.ls("arrays")
    assert trace(tiny, effect, store, settings=FEW) == graph
    assert store.ls("arrays") == kept


def test_a_trace_of_the_same_gives_the_same(tiny: LocalTarget, effect: Effect, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        with open_store(tmp_path / name) as fresh:
            found.append(trace(tiny, effect, fresh, settings=FEW))
    assert found[0] == found[1]
    assert found[0].id == found[1].id


def test_the_same_model_traced_again_has_the_same_scores(tiny: LocalTarget, effect: Effect, tmp_path: Path) -> None:
    with open_store(tmp_path / "first") as one:
        graph = trace(tiny, effect, one, settings=FEW)
    with open_store(tmp_path / "second") as two:  # where nothing is kept, so that all is computed anew
        again, sources = retrace(tiny, graph, effect, two, settings=FEW)
        assert sources
        assert all(two.blob_path(record.blob).is_file() for record in sources if record.blob)
    assert [(u.kind, u.layer, u.index) for u in again.units] == [(u.kind, u.layer, u.index) for u in graph.units]
    assert [unit.held for unit in again.units] == [unit.held for unit in graph.units]  # on the same twins
    assert again.nodes == graph.nodes
    assert again.edges == graph.edges
    assert isinstance(again.effect, Unmeasured)
    assert again.mediated == ()
    assert again.verdict == "inconclusive"  # not patched in this model
    assert graph.id in again.parents


def test_a_model_without_the_planted_heads_carries_nothing(tiny: LocalTarget, effect: Effect, tmp_path: Path) -> None:
    from copy import deepcopy

    model = deepcopy(tiny.model)
    with torch.no_grad():
        attention = model.model.layers[COPY_LAYER].self_attn
        attention.o_proj.weight[:, : len(COPY_HEADS) * model.config.head_dim] = 0
    other = LocalTarget("local/mended", model, tiny.tokenizer, weights="1" * 64)
    with open_store(tmp_path / "store") as opened:
        graph = trace(tiny, effect, opened, settings=FEW)
        again, _ = retrace(other, graph, effect, opened, settings=FEW)
        mended = trace(other, effect, opened, settings=FEW)
    for unit in again.units:
        if unit.kind == "head":
            before = next(u.held for u in graph.units if (u.kind, u.layer, u.index) == ("head", unit.layer, unit.index))
            assert unit.held == 0
            assert before > 0.05
    assert again.target == other.card.id
    assert mended.verdict != "supported"
    assert abs(mended.effect.value) < 0.05


def test_a_sham_attribution_is_not_supported(tiny: LocalTarget, effect: Effect, pairs: list[Twin]) -> None:
    """Units chosen by shuffled scores, passed off as chosen by attribution."""
    sham = [(0, 1), (2, 2)]
    mediated = []
    for rule, units in (("attribution", sham), ("random", [(0, 2), (2, 3)]), ("shuffled", [(0, 3), (2, 0)])):
        parts, whole = [], []
        for twin in pairs:
            first, second, (value,) = mediate(tiny.model, twin, [Choice("head", rule, tuple(units))])
            parts.append(first - value)
            whole.append(first - second)
        from truing.stats import cluster_ratio

        found = cluster_ratio(parts, whole, [twin.plot for twin in pairs])
        mediated.append(Mediation(kind="head", choice=rule, k=2, share=found))
    assert judge(mediated)[0] != "supported"


def test_twins_that_align_in_part_are_counted(tiny: LocalTarget, effect: Effect, store: Store) -> None:
    def lengths(surface: Surface) -> set[int]:
        return {len(tiny.prompt_ids(case.messages)) for case in surface.cases if case.cell in effect.cells}

    whole = trace(tiny, effect, store, settings=FEW)
    assert whole.partly == 0
    unequal = [surface for surface in lay_out("anchoring").surfaces if len(lengths(surface)) == 2]
    graph = trace(tiny, replace(effect, testing=unequal), store, settings=FEW)
    assert graph.partly == len({surface.plot for surface in unequal}) > 0
    assert graph.aligned == graph.partly + len({surface.plot for surface in effect.choosing})


def test_too_few_plots_are_refused(tiny: LocalTarget, effect: Effect, store: Store) -> None:
    some = sorted({s.plot for s in effect.testing})[:4]
    few = Effect(effect.claim, effect.cells, effect.choosing, [s for s in effect.testing if s.plot in some])
    with pytest.raises(DesignError, match="twins in 4 plots"):
        trace(tiny, few, store, settings=FEW)
    assert store.ls() == []


def test_settings_fit_a_small_model(tiny: LocalTarget) -> None:
    within = Settings(heads=(2, 50, 60), neurons=(9, 5000)).within(tiny)
    assert within.heads == (2, 3)  # a quarter of 12
    assert within.neurons == (9, 96)  # a quarter of 384


def test_the_shared_beginning_need_not_be_patched(wild: LocalTarget) -> None:
    """Computing it once for all rows gives what patching every position of every row gives."""
    laid = lay_out("anchoring")
    pairs, _ = twins(wild, laid.surfaces, laid.family.carry.twins, per_plot=1)
    twin = pairs[0]
    segments = tuple(dict.fromkeys(twin.first.segment_T))
    found = attribute(wild.model, twin, segments)
    choices = [*choose("head", 2, found.heads, found.trivial("head"), draws=1, seed=1)]
    choices += choose("neuron", 9, found.neurons, found.trivial("neuron"), draws=1, seed=2)
    _, _, quick = mediate(wild.model, twin, choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truing.trace.mediate._alike", lambda _: 0)
        _, _, plain = mediate(wild.model, twin, choices)
    assert quick == pytest.approx(plain, abs=1e-5)
    assert max(abs(a - b) for a, b in pairwise(plain)) > 1e-3  # the choices do differ


# -- other effects -----------------------------------------------------------------------------------------------------


def against(beyond: Quantity | None, restored: Quantity | None, other: Quantity | None = None) -> list[Mediation]:
    """Shares that hold, with what the units do beyond those of another effect."""
    found = both(share(0.9), share(0.9), share(0.1))
    found[0] = found[0].model_copy(update={"beyond": beyond, "beyond_restored": restored})
    rival = Mediation(
        kind="head", choice="another effect", k=5, share=other or share(0.6), restored=other or share(0.6), of="colour"
    )
    return [*found, rival]


@pytest.mark.parametrize(
    ("mediated", "verdict"),
    [
        (against(share(0.3), share(0.2)), "supported"),
        (against(share(0.11), share(0.11)), "supported"),
        (against(share(0.09), share(0.2)), "weak"),  # its interval reaches below the margin
        (against(share(0.3), share(0.09)), "weak"),  # one way alone is not enough
        (against(share(0.04, half=0.0), share(0.04, half=0.0)), "weak"),  # however well a trifle is known
        (against(share(-0.3), share(-0.2)), "weak"),
        (against(NONE, share(0.2)), "weak"),  # what was not measured is not passed
        (against(share(0.3), NONE), "weak"),
        (against(share(0.0, half=0.0), share(0.0, half=0.0)), "weak"),  # the same units
        (against(None, None), "supported"),  # a record from before
        (against(share(0.3), share(0.2), other=share(0.95)), "supported"),  # the other's share is no sham's: it is said
        (against(share(0.04), share(0.2)) + shares(k=15), "supported"),  # of another K nothing of the kind is known
    ],
)
def test_units_must_do_more_than_those_of_any_ordinary_effect(mediated: list[Mediation], verdict: str) -> None:
    said, why = judge(mediated)
    assert said == verdict
    assert judge(mediated[::-1])[0] == verdict
    assert ("more than as many heads of the ordinary effect 'colour', not clearly 5%" in why) == (verdict == "weak")


def test_the_effect_that_comes_closest_is_named_for_either_way() -> None:
    found = against(share(0.3), share(0.0))
    found.append(found[-1].model_copy(update={"of": "mood", "restored": share(0.88)}))
    assert "they bring back 0% [-5%, 5%] more than as many heads of the ordinary effect 'mood', not" in judge(found)[1]
    found[0] = found[0].model_copy(update={"beyond_restored": share(0.2)})
    assert "30% [25%, 35%] more than as many heads of the ordinary effect that comes closest, 'c" in judge(found)[1]


def test_only_what_holds_so_far_is_set_beside_other_effects() -> None:
    held, failed = shares(), shares(kind="neuron", attribution=share(0.3))
    assert worth_comparing([*held, *failed]) == held[:1]
    assert worth_comparing(shares(k=15, attribution=share(0.0))) == []


def test_ordinary_effects_are_effects() -> None:
    """Cells differ in one word, and each has a decision between what either word makes likely."""
    every = ordinary()
    assert len({one.name for one in every}) == len(every) >= 5
    for one in every:
        for surface in one.surfaces():
            first, second = (case.messages[0].content.split() for case in surface.cases)
            assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
            assert surface.decision.actions != surface.decision.alternatives


def test_heads_that_carry_everything_are_not_called_an_effects_own(
    tiny: LocalTarget, effect: Effect, pairs: list[Twin], store: Store
) -> None:
    """The tiny model's heads copy whatever a prompt holds: those of other effects are the same two."""
    mean, _ = averaged(tiny, pairs, labels(pairs), store, None, name="attribution")
    choices = choose("head", 2, mean.heads, mean.trivial("head"), draws=1, seed=0)
    choices += choose("neuron", 20, mean.neurons, mean.trivial("neuron"), draws=1, seed=0)
    before = shares_of(patched_on(tiny, pairs, choices, store), choices)
    assert judge(before)[0] == "supported"
    found, sources = compared(tiny, pairs, choices, before, store)
    assert sources
    own = next(m for m in found if m.choice == "attribution" and m.kind == "head")
    other = next(m for m in found if m.choice == "another effect")
    assert own.beyond is not None
    assert own.beyond_restored is not None
    assert isinstance(own.beyond, Estimate)
    assert own.beyond.value == pytest.approx(0, abs=1e-6)
    assert other.share == own.share
    assert judge(found)[0] == "weak"
    # Neurons carry nothing here, so that none are compared; and all else is as it was.
    assert [m.kind for m in found if m.choice == "another effect"] == ["head"]
    assert [m for m in found if m not in (own, other)] == [
        m for m in before if (m.kind, m.choice) != ("head", "attribution")
    ]


def test_units_of_a_sham_are_set_beside_other_effects_too(tiny: LocalTarget, pairs: list[Twin], store: Store) -> None:
    """What is beyond another effect is a difference, twin by twin: of units that carry less it is below zero."""
    none = heads((0, 0), (2, 3))
    passing = [Mediation(kind="head", choice=rule, k=2, share=share(value))
               for rule, value in (("attribution", 0.9), ("random", 0.0), ("shuffled", 0.0))]  # fmt: skip
    found, _ = compared(tiny, pairs, [none], passing, store)
    beyond = found[0].beyond
    assert isinstance(beyond, Estimate)
    assert beyond.value == pytest.approx(-1, abs=0.1)
    assert judge(found)[0] == "weak"


def test_accounts_that_are_no_number_do_not_close(
    tiny: LocalTarget, effect: Effect, pairs: list[Twin], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of errors is no number where one is none, and no number is small enough."""
    found = iter([float("nan"), *[0.0] * 99])

    def spoilt(*args: Any) -> Account:
        return replace(account(*args), error=next(found))

    monkeypatch.setattr("truing.trace.draw.account", spoilt)
    assert math.isnan(draw(tiny.model, pairs[:2], [], labels(pairs))[2])
    found = iter([float("nan"), *[0.0] * 99])
    with pytest.raises(TargetError, match="do not close"):
        trace(tiny, effect, store, settings=FEW)
    with pytest.raises(TargetError, match="do not close"):
        check_closed(tiny, pairs[0].first.functional, "relp", float("nan"))
