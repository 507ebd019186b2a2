"""Features ablated: what a pass gives is what the same written out gives, and the check of a graph stands on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetError
from truing.records import Estimate
from truing.targets.local import LocalTarget
from truing.targets.local.inside import forward
from truing.trace.ablate import Bench, Edit, Reference, counterfactual, mean, zero
from truing.trace.causal import Checks
from truing.trace.derive import decision_of
from truing.trace.dictionaries import Dictionary
from truing.trace.feature_ablation import Features
from truing.trace.feature_check import check_features
from truing.trace.feature_set import FeatureSet
from truing.trace.features import DictionaryEngine
from truing.trace.picked import Picked

from .test_dictionaries import KINDS, LAYERS, D, F, case, made, model  # noqa: F401 - a fixture is one of them

MEMORY = 2**30
FEW = Checks(sizes=3, draws=1, singly=16, shams=39, jointly=8, resamples=99)


def bench(model: Any, dicts: tuple[Any, ...], beginning: int = 1) -> Bench:  # noqa: F811
    return Bench(model, case(), memory=MEMORY, basis=Features(model, dicts, beginning=beginning))


def active(on: Bench, count: int, *, seed: int = 0) -> Any:
    """Places at which features are active."""
    spots = [(layer, *at) for layer, values in enumerate(on.neurons) for at in values.nonzero().tolist()]
    return torch.tensor([spots[i] for i in np.random.default_rng(seed).permutation(len(spots))[:count]])


@torch.no_grad()
def written_out(model: Any, dicts: tuple[Any, ...], edit: Edit, beginning: int = 1) -> float:  # noqa: F811
    """One pass over the whole tree, every layer's features as a dense table, moved one by one."""
    functional, noted, later = case(), {}, {}
    handles = []

    def moved(layer: int, mlp_in: Any, out: Any) -> Any:
        one, x = dicts[layer], noted[layer]
        out = out + later.get(layer, 0)
        if one is None:
            return out
        norm = model.model.layers[layer].post_attention_layernorm
        normalized = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        read = {"before norm": x, "normalized": normalized, "mlp in": mlp_in, "mlp out": out}[one.reads][0]
        a = read @ one.encoder_FD.T + one.bias_F
        a = torch.where(a > one.threshold_F, a, 0)
        if one.most is not None:
            a = torch.where(a >= a.topk(one.most, 1).values[:, -1:], a, 0)
        changed = torch.zeros_like(a, dtype=torch.bool)
        for low, node, index in edit.places.tolist():
            changed[node, index] |= low == layer
        changed = ~changed if edit.others else changed
        changed[:beginning] = False
        to = edit.reference.layers[layer].expand_as(a)
        step = torch.where(changed, to + edit.factor * (a - to) - a, 0)
        for above, decoder in enumerate(one.decoders_WFD):
            if above:
                later[layer + above] = later.get(layer + above, 0) + (step @ decoder)[None]
            else:
                out = out + (step @ decoder)[None]
        return out

    for layer, block in enumerate(model.model.layers):
        norm = block.post_attention_layernorm
        handles += [
            norm.register_forward_pre_hook(lambda _, args, layer=layer: noted.__setitem__(layer, args[0])),
            block.mlp.register_forward_hook(lambda _, args, out, layer=layer: moved(layer, args[0], out)),
        ]
    logits = forward(model, functional.tree, functional.before_M.unique()).logits
    for handle in handles:
        handle.remove()
    return float(decision_of(functional, logits)[0])


def some_edits(on: Bench, references: tuple[Reference, ...]) -> list[Edit]:
    one, few, many = active(on, 1), active(on, 6, seed=1), active(on, 40, seed=2)
    silent = torch.tensor([[1, 7, int((on.neurons[1][7] == 0).nonzero()[0, 0])]])
    return [
        edit
        for to in references
        for edit in (
            Edit(one, to), Edit(few, to), Edit(many, to, others=True), Edit(few, to, factor=0.5),
            Edit(one, to, factor=1), Edit(many, to, others=True, factor=2.0), Edit(silent, to),
            Edit(torch.zeros(0, 3, dtype=torch.long), to),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "site"), [*((kind, "mlp in") for kind in KINDS), ("cross", "before norm"), ("jump", "normalized")]
)
def test_a_pass_gives_what_the_same_written_out_gives(model: Any, kind: str, site: str) -> None:  # noqa: F811
    dicts = made(kind, site)
    on = bench(model, dicts)
    edits = some_edits(on, (zero(on), mean(on)))
    values = on.values(edits)
    assert on._short
    assert max(abs(value - on.value) for value in values) > 0.01
    for edit, value in zip(edits, values, strict=True):
        assert value == pytest.approx(written_out(model, dicts, edit), abs=2e-5)


def test_a_layer_without_a_dictionary_is_left_alone(model: Any) -> None:  # noqa: F811
    one, _, three = made("plain")
    on = bench(model, (one, None, three))
    assert on.neurons[1].shape == (len(case().tree), 0)
    edit = Edit(active(on, 5), zero(on), others=True)
    assert on.values([edit])[0] == pytest.approx(written_out(model, (one, None, three), edit), abs=2e-5)


def test_features_are_those_of_the_engine(model: Any) -> None:  # noqa: F811
    for kind in KINDS:
        on, engine = bench(model, made(kind)), DictionaryEngine(model, case(), made(kind))
        for values, seen in zip(on.neurons, engine.active, strict=True):
            torch.testing.assert_close(values[seen.node_S, seen.index_S], seen.value_S, atol=1e-5, rtol=1e-4)
            assert int((values != 0).sum()) == len(seen.value_S)


def coordinates() -> tuple[Dictionary, ...]:
    """x = relu(x) - relu(-x): features that leave no error, so that without them an MLP gives nothing."""
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    none = torch.zeros(2 * D)
    return (Dictionary("mlp out", both, none, both[None], torch.zeros(D), none),) * LAYERS


def test_all_features_of_coordinates_ablated_are_all_neurons_ablated(model: Any) -> None:  # noqa: F811
    on, neurons = bench(model, coordinates(), beginning=0), Bench(model, case(), memory=MEMORY)
    nothing = torch.zeros(0, 3, dtype=torch.long)
    (features,), (theirs,) = (b.values([Edit(nothing, zero(b), others=True)]) for b in (on, neurons))
    assert features == pytest.approx(theirs, abs=1e-5)
    assert abs(features - on.value) > 0.01


def test_a_twin_gives_its_own_features(model: Any) -> None:  # noqa: F811
    on = bench(model, made("cross"))
    same = counterfactual(on, case(), memory=MEMORY)
    few = active(on, 6)
    for value in on.values([Edit(few, same), Edit(few, same, others=True)]):
        assert value == pytest.approx(on.value, abs=2e-5)  # moved to where they are, below them nothing else changes


def test_random_features_are_active_and_others(model: Any) -> None:  # noqa: F811
    on = bench(model, made("topk"))
    places = active(on, 20)
    drawn = on.basis.matched(on.neurons, places, np.random.default_rng(0))
    assert len({tuple(spot) for spot in drawn.tolist()}) == 20
    assert not {tuple(spot) for spot in drawn.tolist()} & {tuple(spot) for spot in places.tolist()}
    assert all(float(on.neurons[layer][node, index]) != 0 for layer, node, index in drawn.tolist())
    assert torch.equal(drawn[:, 0], places[:, 0])
    # Where there is nothing else, a baseline is what it is held against, and no graph is better than it.
    every = active(on, 10**6)
    assert torch.equal(on.basis.matched(on.neurons, every, np.random.default_rng(0)), every)


def target_of(model: Any, tiny: LocalTarget) -> LocalTarget:  # noqa: F811
    return LocalTarget("local/few", model, tiny.tokenizer, weights="7" * 64)


def picked_of(model: Any, features: FeatureSet, count: int) -> Picked:  # noqa: F811
    engine = DictionaryEngine(model, case(), features.layers, beginning=features.beginning)
    spots = [
        (layer, int(node), int(index))
        for layer, seen in enumerate(engine.active)
        for node, index in zip(seen.node_S, seen.index_S, strict=True)
    ]
    _, found = engine.by_all_paths(spots)
    best = found.abs().argsort(descending=True)[:count].tolist()
    return Picked.of([spots[i] for i in best], found[best].tolist(), found[best].abs().tolist())


def test_a_graph_is_checked_by_its_features(model: Any, tiny: LocalTarget) -> None:  # noqa: F811
    """Scores of features tell what each does; as many scores dealt out anew do not."""
    features = FeatureSet("coordinates", coordinates(), "7" * 64)
    picked = picked_of(model, features, 60)
    found = check_features(target_of(model, tiny), case(), picked, features, twin=case(), settings=FEW)
    said = {one.name: one.quantity for one in found.checks}
    assert "decision with all features ablated (counterfactual)" in said
    assert not [name for name in said if "neuron" in name]
    assert "neuron" not in found.why
    told = said["attribution and exact effect, Spearman (zero)"]
    assert isinstance(told, Estimate)
    assert told.value > 0.7
    on = bench(model, features.layers)
    alone = on.values([Edit(picked.places[n : n + 1], zero(on)) for n in range(len(picked))])
    exact = on.value - np.array(alone)
    assert np.corrcoef(exact, picked.score_K)[0, 1] > 0.7
    wrong = Picked(picked.places, np.random.default_rng(1).permutation(picked.score_K), picked.influence_K)
    assert check_features(target_of(model, tiny), case(), wrong, features, settings=FEW).verdict in {
        "refuted", "inconclusive",
    }  # fmt: skip


def test_what_does_not_fit_is_refused_with_its_size(model: Any, tiny: LocalTarget) -> None:  # noqa: F811
    features = FeatureSet("made", made("plain"), "7" * 64)
    target = target_of(model, tiny)
    target.max_memory = len(case().tree) * LAYERS * F * 4
    with pytest.raises(TargetError, match=r"MB, more than half of the .* MB allowed\. Allow more"):
        check_features(target, case(), picked_of(model, features, 4), features, settings=FEW)
