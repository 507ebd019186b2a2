"""Effects in decoders of any shape: patches against plain passes, a planted circuit, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from truing import open_store
from truing.errors import TargetError
from truing.records import Message
from truing.report import overview
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, counts, layers, place
from truing.targets.local.inside import Patch, Site, llama_shaped, run
from truing.trace import Effect, Settings, between, differ, retrace, trace, trace_case
from truing.trace import draw as drawing
from truing.trace import mediate as mediating
from truing.trace.accounts import by_autograd
from truing.trace.derive import decision_of, values
from truing.trace.draw import BIASES, OUTPUT, account, draw
from truing.trace.mediate import Choice, both_ways
from truing.trace.twins import Twin, by_plot, of_tokens, twins

from ..targets.test_architectures import ARCHITECTURES, EXPERTS, SMALL, random_model  # noqa: TID252 - no package
from .accounts import shaken

LLAMAS = "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"
PARTS = {
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "opt": ("model.decoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.fc2"),
    "gemma2": LLAMAS, "gemma3_text": LLAMAS, "qwen2": LLAMAS, "qwen3": LLAMAS, "phi3": LLAMAS, "olmo": LLAMAS,
    "olmo2": LLAMAS, "stablelm": LLAMAS, "cohere": LLAMAS, "gemma4_text": LLAMAS,
}  # fmt: skip
"""Where heads and neurons stand, by the architectures' own names."""
KNOWN = ARCHITECTURES | {
    # Heads are wider in some layers.
    "gemma4_text": SMALL | {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8, "global_head_dim": 32},
}
SITES: tuple[Site, ...] = get_args(Site)
FIRST, SECOND = [5, 40, 41, 42, 7, 90, 13, 8], [5, 40, 61, 42, 7, 91, 13, 8]
ANSWERS = [7, 8], [9, 8, 11]
WIDTH, HEADS, LAYER, PLANTED = 64, 4, 1, ((1, 0), (1, 1))
FEW = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=6, drawn_twins=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


# -- patches -----------------------------------------------------------------------------------------------------------


def plainly(model: Any, kind: str, choice: Choice, onto: Sequence[int], source: Sequence[int]) -> float:
    """The decision by one plain pass along each answer, its units taken from a pass over the other text."""
    means = []
    for answer in ANSWERS:
        width = len(answer)
        with torch.no_grad(), pytest.MonkeyPatch.context() as context:
            kept: dict[str, Tensor] = {}
            patched(model, kind, choice, kept, context)
            model(torch.tensor([[*source, *answer]]), use_cache=False)
            logits = model(torch.tensor([[*onto, *answer]]), use_cache=False).logits[0]
        log_p = logits[-width - 1 : -1].log_softmax(-1)
        means.append(float(log_p[torch.arange(width), torch.tensor(answer)].double().mean()))
    return means[0] - means[1]


def patched(model: Any, kind: str, choice: Choice, kept: dict[str, Tensor], context: pytest.MonkeyPatch) -> None:
    """The first pass is noted; the second has the units of the first."""
    for layer in {layer for layer, _ in choice.units}:
        name = PARTS[kind][SITES.index(choice.site)].format(layer)
        module = model.get_submodule(name)
        plain = module.forward

        def forward(x: Tensor, name: str = name, layer: int = layer, plain: Any = plain) -> Tensor:
            if name not in kept:
                kept[name] = x.clone()
                return plain(x)
            width = x.shape[-1] // HEADS if choice.site == "head" else 1
            x = x.clone()
            for at, index in choice.units:
                if at == layer:
                    x[..., index * width : (index + 1) * width] = kept[name][..., index * width : (index + 1) * width]
            return plain(x)

        context.setattr(module, "forward", forward)


@pytest.mark.parametrize("kind", PARTS)
def test_units_are_patched_as_plain_passes_patch_them(kind: str) -> None:
    """In texts that begin alike, for longer than the windows of some layers."""
    texts = [*range(100, 140), *FIRST], [*range(100, 140), *SECOND]
    model, twin = shaken(kind, KNOWN[kind]), of_tokens(*texts, *ANSWERS)
    every = tuple((layer, head) for layer in range(3) for head in range(HEADS))
    choices = [
        Choice("head", "attribution", ((0, 1), (2, 3))), Choice("neuron", "attribution", ((0, 3), (1, 50), (2, 7))),
        Choice("head", "random", every), Choice("head", "random", ()),
    ]  # fmt: skip
    found = both_ways(model, twin, choices, choices)
    for values_, (onto, source) in ((found.removed, texts), (found.restored, texts[::-1])):
        expected = [plainly(model, kind, choice, onto, source) for choice in choices]
        assert values_ == pytest.approx(expected, abs=1e-5)
        assert max(abs(value - values_[3]) for value in values_) > 1e-3
    assert (found.removed[3], found.restored[3]) == pytest.approx((found.first, found.second), abs=1e-5)


@pytest.mark.parametrize("kind", PARTS)
def test_all_units_together_are_the_other_twin(kind: str) -> None:
    model, twin = shaken(kind, KNOWN[kind]), of_tokens(FIRST, SECOND, *ANSWERS)
    there, width = values(model, twin.second.functional), counts(model)
    all_of = {(site, layer): torch.ones(1, width[site], dtype=torch.bool) for site in SITES for layer in range(3)}
    case = twin.first.functional
    logits = run(model, case.tree, case.before_M.unique(), patch=Patch(all_of, there, twin.onto_T, twin.from_T))
    first = values(model, case).decision
    assert float(decision_of(case, logits)[0]) == pytest.approx(there.decision, abs=1e-5)
    assert abs(first - there.decision) > 1e-3


# -- both ways of reading ----------------------------------------------------------------------------------------------


def test_by_hand_and_in_any_shape_are_the_same(
    tiny: LocalTarget, effect: Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twins(tiny, effect.choosing, effect.cells, per_plot=1)[0][0]
    choices = [Choice("head", "attribution", PLANTED), Choice("neuron", "random", ((0, 3), (2, 90)))]
    segments = tuple(dict.fromkeys(twin.first.segment_T))
    spots = [(0, 3, "statement"), (2, 7, "reply"), (1, 7, "ask"), (2, 7, "ask")]
    hand = both_ways(tiny.model, twin, choices, choices), draw(tiny.model, [twin], spots, segments)
    for module in (mediating, drawing):
        monkeypatch.setattr(module, "llama_shaped", lambda _: False)
    other = both_ways(tiny.model, twin, choices, choices), draw(tiny.model, [twin], spots, segments, at_once=1)
    for name in ("first", "second", "removed", "restored"):
        assert getattr(hand[0], name) == pytest.approx(getattr(other[0], name), abs=1e-5)
    nodes, again = ({node.id: node for node in nodes} for _, (nodes, _, _) in (hand, other))
    assert nodes.keys() == again.keys()  # no biases, and none are named
    for name, node in nodes.items():
        assert (node.value, node.contribution) == pytest.approx((again[name].value, again[name].contribution), abs=1e-5)
    one = account(tiny.model, twin.first, spots, segments)
    two = by_autograd(tiny.model, twin.first, spots, segments, at_once=3)
    torch.testing.assert_close(two.flow[:, :-1], one.flow, atol=1e-5, rtol=1e-4)
    assert not two.flow[:, -1].any()
    assert max(one.error, two.error) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "cohere"])
def test_accounts_hold_neurons_and_biases(kind: str) -> None:
    model, twin = shaken(kind, KNOWN[kind]), of_tokens(FIRST, SECOND, *ANSWERS)
    spots = [(0, 3, "text"), (2, 40, "reply"), (2, 41, "text"), (1, 9, "text")]
    found = by_autograd(model, twin.first, spots, ("text", "reply"), at_once=2)
    inside = values(model, twin.first.functional)
    for row, (layer, neuron, segment) in enumerate(spots):
        at = [node for node, label in enumerate(twin.first.segment_T) if label == segment]
        assert float(found.values[row]) == pytest.approx(float(inside.neurons[layer][at, neuron].sum()), abs=1e-4)
    assert found.error < 1e-5
    assert not found.flow[0, : len(spots)].any()  # nothing stands below the first layer
    assert found.flow[-1, : len(spots)].all()
    nodes, edges, _ = draw(model, [twin], spots, ("text", "reply"), keep=1)
    biases = [node for node in nodes if node.kind == "bias"]
    assert bool(biases) == (kind == "gpt2") == any(edge.source == BIASES for edge in edges)
    into = sum(edge.weight for edge in edges if edge.target == OUTPUT)
    assert into == pytest.approx(nodes[-1].value, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "changed", "by_hand"),
    [
        ("llama", {}, True), ("mistral", {}, True), ("qwen3", {}, True), ("granite", {}, True),
        ("granite", {"residual_multiplier": 0.5}, False), ("granite", {"logits_scaling": 4.0}, False),
        ("olmo", {}, False), ("gemma4_text", {}, False),
        ("llama", {"attention_bias": True}, False), ("llama", {"hidden_act": "gelu"}, False),
    ],
)  # fmt: skip
def test_only_what_is_llama_shaped_is_read_by_hand(kind: str, changed: dict[str, Any], by_hand: bool) -> None:
    model = random_model(kind, KNOWN[kind] | changed)
    assert llama_shaped(model) == by_hand
    twin = of_tokens(FIRST, SECOND, *ANSWERS)
    assert max(one.error for one in books(model, twin)) < 1e-5


def books(model: Any, twin: Twin) -> list[Any]:
    spots = [(1, 3, "text"), (2, 5, "reply")]
    found = [by_autograd(model, twin.first, spots, ("text", "reply"))]
    return [*found, account(model, twin.first, spots, ("text", "reply"))] if llama_shaped(model) else found


# -- a whole trace -----------------------------------------------------------------------------------------------------


def value_rows(kind: str, attention: Any) -> Tensor:
    """The value projection, (groups, head width, width of the stream), on the model's own memory; queries are 0."""
    if kind == "gpt2":
        attention.c_attn.weight[:, :WIDTH] = 0
        return attention.c_attn.weight[:, 2 * WIDTH :].T.unflatten(0, (HEADS, -1))
    if kind == "gpt_neox":
        parts = attention.query_key_value.weight.unflatten(0, (HEADS, 3, -1))
        parts[:, 0] = 0
        return parts[:, 2]
    if kind == "phi3":
        attention.qkv_proj.weight[:WIDTH] = 0
        return attention.qkv_proj.weight[WIDTH + WIDTH // 2 :].unflatten(0, (HEADS // 2, -1))
    attention.q_proj.weight.zero_()
    return attention.v_proj.weight.unflatten(0, (HEADS if kind == "opt" else HEADS // 2, -1))


def planted(kind: str, tiny: LocalTarget) -> LocalTarget:
    """As `local/tiny`: two heads of one layer attend evenly and write what they see; everything else is faint."""
    more = {"vocab_size": len(tiny.tokenizer), "sliding_window": 512, "tie_word_embeddings": True, "ffn_dim": 96}
    model = random_model(kind, ARCHITECTURES[kind] | more)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.03, generator=generator)
            if "wpe" in name or "embed_positions" in name:
                parameter.zero_()
            if "post_" in name and kind.startswith("gemma"):  # norms of what is written: 1 + weight
                parameter.fill_(3 if f".{LAYER}.post_attention" in name else -0.98)
        model.get_input_embeddings().weight.normal_(0, 0.25, generator=generator)
        model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)
        out = place(model, Units("head", LAYER))[0]
        block = layers(model)[LAYER]
        attention = next(part for part in block.modules() if any(out is child for child in part.children()))
        values_GED = value_rows(kind, attention)
        width = WIDTH // HEADS
        into = out.weight.T if kind != "gpt2" else out.weight  # (heads * width, stream)
        for _, head in PLANTED:
            group = head * len(values_GED) // HEADS
            other = torch.randn(WIDTH, width, generator=generator)
            if head == group:
                values_GED[group] = torch.linalg.qr(other)[0].T
            into[head * width : (head + 1) * width] = 20 * values_GED[group]
    return LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="7" * 64)


@pytest.fixture(scope="module")
def small(effect: Effect) -> Effect:
    """Five plots."""
    halves = (
        tuple(surface for members in list(by_plot(half).values())[:5] for surface in members[:1])
        for half in (effect.choosing, effect.testing)
    )
    choosing, testing = halves
    return replace(effect, choosing=choosing, testing=testing)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "gemma2", "qwen2", "phi3"])
def test_what_was_planted_in_any_shape_is_found_and_carries_the_effect(
    kind: str, tiny: LocalTarget, small: Effect, store: Store
) -> None:
    target = planted(kind, tiny)
    need(target, "WhiteBox")
    graph = trace(target, small, store, settings=FEW)
    assert graph.effect.low > 0
    assert {(u.layer, u.index) for u in graph.units if u.kind == "head"} == set(PLANTED)
    shares = {(m.kind, m.choice): (m.share.value, m.restored and m.restored.value) for m in graph.mediated}
    assert shares["head", "attribution"] == pytest.approx((1, 1), abs=0.05)
    assert shares["head", "random"] == pytest.approx((0, 0), abs=0.1)
    assert shares["neuron", "attribution"] == pytest.approx((0, 0), abs=0.1)
    assert graph.closure_error < 1e-5
    assert sum(node.kind == "neuron" for node in graph.nodes) == FEW.drawn
    dropped = sum(abs(edge.weight) for edge in graph.edges) * 0.02 / 0.98  # at most
    into = sum(edge.weight for edge in graph.edges if edge.target == OUTPUT)
    assert into == pytest.approx(graph.nodes[-1].value, abs=dropped + 1e-6)
    assert trace(target, small, store, settings=FEW) == graph


def test_units_of_another_shape_are_read_again_in_a_fix(tiny: LocalTarget, small: Effect, store: Store) -> None:
    target = planted("gpt2", tiny)
    graph = trace(target, small, store, settings=FEW)
    mended = planted("gpt2", tiny)
    with torch.no_grad():
        place(mended.model, Units("head", LAYER))[0].weight[: 2 * WIDTH // HEADS] = 0
    other = LocalTarget("local/mended", mended.model, tiny.tokenizer, weights="8" * 64)
    again, _ = retrace(other, graph, small, store, settings=FEW)
    assert [(unit.kind, unit.layer, unit.index) for unit in again.units] == [
        (unit.kind, unit.layer, unit.index) for unit in graph.units
    ]
    assert all(unit.held == 0 for unit in again.units if unit.kind == "head")
    assert all(abs(unit.held) > 0.01 for unit in graph.units if unit.kind == "head")


def test_where_accounts_do_not_close_the_check_stands_without_a_picture(
    tiny: LocalTarget, small: Effect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.trace.run.CLOSURE", 0.0)
    graph = trace(planted("gpt2", tiny), small, store, settings=FEW)
    assert (graph.nodes, graph.edges) == ((), ())
    assert graph.closure_error > 0
    assert "no picture: the linear rules do not hold for a GPT2LMHeadModel" in graph.why
    (share,) = [m.share.value for m in graph.mediated if (m.kind, m.choice) == ("head", "attribution")]
    assert share == pytest.approx(1, abs=0.05)
    assert "No picture is drawn" in overview([graph])
    with pytest.raises(TargetError, match="do not close"):  # by hand, something is wrong with the hand
        trace(tiny, small, store, settings=FEW)


def test_units_are_not_chosen_by_rules_that_do_not_hold(
    tiny: LocalTarget, small: Effect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace ends before anything is computed, with the architecture's name; by other rules it goes on."""
    monkeypatch.setattr("truing.trace.leak.LEAK", 0.0)
    target = planted("gpt2", tiny)
    with pytest.raises(TargetError, match=r"\(GPT2LMHeadModel\) do not close"):
        trace(target, small, store, settings=FEW)
    assert not list(store.of_kind("arrays"))
    assert trace(target, small, store, settings=replace(FEW, rule="gradient")).mediated


# -- what is refused ---------------------------------------------------------------------------------------------------

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)
SHARED = EXPERTS | {"shared_expert_intermediate_size": 48}


def of_kind(kind: str, tiny: LocalTarget, **settings: Any) -> LocalTarget:
    model = random_model(kind, {**ARCHITECTURES.get(kind, SMALL), "vocab_size": len(tiny.tokenizer), **settings})
    return LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="7" * 64)


def refused(target: LocalTarget, small: Effect, store: Store) -> set[str]:
    """What a claim and a single case are told; nothing is kept of either."""
    said = set()
    for work in (
        lambda: Settings().within(target),
        lambda: trace(target, small, store, settings=FEW),
        lambda: trace_case(target, between(target, ASKED, ("True.",), ("False.",)), store),
    ):
        with pytest.raises(TargetError) as error:
            work()
        said.add(str(error.value))
    assert store.ls() == []
    return said


@pytest.mark.parametrize(("kind", "more"), [("mixtral", {}), ("qwen3_moe", {}), ("gpt_oss", {}), ("qwen2_moe", SHARED)])
def test_a_mixture_of_experts_is_refused(
    kind: str, more: dict[str, Any], tiny: LocalTarget, small: Effect, store: Store
) -> None:
    """Also where an expert is shared by all tokens: it is not all that a layer does."""
    target = of_kind(kind, tiny, **more)
    assert "WhiteBox" not in target.card.abilities
    (said,) = refused(target, small, store)
    assert "a mixture of experts, for one, has no neurons of a layer" in said


def test_short_formats_and_quantised_models_are_refused_alike(
    tiny: LocalTarget, small: Effect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = of_kind("gpt2", tiny)
    half = LocalTarget("local/half", random_model("gpt2", ARCHITECTURES["gpt2"] | {"vocab_size": 1536}).bfloat16(),
                       tiny.tokenizer, weights="7" * 64)  # fmt: skip
    (said,) = refused(half, small, store)
    assert "load local/half in fp32" in said
    monkeypatch.setattr(target.model, "is_quantized", True, raising=False)
    (said,) = refused(target, small, store)
    assert "quantised" in said


def test_layers_of_different_width_are_refused(tiny: LocalTarget) -> None:
    model = random_model("gpt2", ARCHITECTURES["gpt2"])
    model.transformer.h[1].mlp = type(model.transformer.h[1].mlp)(100, model.config)
    with pytest.raises(TargetError, match=r"differ in their heads or neurons \(4 heads, widths \[64\]; \[100, 256\]"):
        counts(model)
    assert "WhiteBox" not in LocalTarget("local/uneven", model, tiny.tokenizer, weights="7" * 64).card.abilities


def test_a_case_that_memory_does_not_hold_is_refused(tiny: LocalTarget, small: Effect, store: Store) -> None:
    target = planted("gpt2", tiny)
    target.max_memory = 1_000_000
    with pytest.raises(TargetError, match="more than the 1 MB allowed"):
        trace(target, small, store, settings=FEW)
    assert store.ls() == []  # it is known before anything is computed


def test_differences_still_read_llama_shaped_blocks(tiny: LocalTarget, small: Effect, store: Store) -> None:
    target = of_kind("gpt2", tiny)
    with pytest.raises(TargetError, match="GPT2LMHeadModel is built otherwise"):
        differ(target, target, small, store)


@pytest.mark.parametrize(("kind", "neurons"), [("gpt2", 256), ("opt", 3072), ("phi3", 96)])
def test_settings_count_what_a_model_has(kind: str, neurons: int, tiny: LocalTarget) -> None:
    """Whatever the configuration calls it."""
    within = Settings(heads=(2, 50), neurons=(9, 5000)).within(of_kind(kind, tiny))
    assert within.heads == (2, 3)  # a quarter of 12
    assert within.neurons == (9, 3 * neurons // 4)
