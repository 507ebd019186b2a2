"""The graph of one decision: what is traced, what is refused, and that its accounts close."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import RecordError, TargetError, UsageError
from truing.records import CaseGraph, Circuit, Message
from truing.share.graphs import from_neuronpedia, neuronpedia
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace import CaseSettings, between, trace_case, written
from truing.trace.case import account
from truing.trace.influence import closure, influence, least, prune, scores
from truing.trace.leak import leaking
from truing.trace.plan import plan

from ..cases import case as case_of  # noqa: TID252 - tests are no package
from ..targets.test_architectures import APART, ARCHITECTURES, random_model  # noqa: TID252 - tests are no package
from .accounts import shaken

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)
FEW = CaseSettings(neurons=24, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def target_of(kind: str, settings: dict[str, Any], tiny: Any) -> LocalTarget:
    return LocalTarget(f"local/{kind}", random_model(kind, settings), tiny.tokenizer, weights="7" * 64)


def wide(kind: str, tiny: Any) -> LocalTarget:
    """An architecture with the vocabulary of the tokenizer."""
    return target_of(kind, ARCHITECTURES[kind] | {"vocab_size": len(tiny.tokenizer)}, tiny)


# -- what is traced ----------------------------------------------------------------------------------------------------


def test_a_decision_is_traced_and_its_accounts_close(tiny: LocalTarget, store: Store) -> None:
    context = between(tiny, ASKED, ("True.",), ("False.", "No."))
    case = trace_case(tiny, context, store, settings=FEW)
    circuit = Circuit.unpacked(store.blob_path(case.graph).read_bytes())
    assert case.closure_error < 1e-5
    assert closure(circuit) < 1e-4
    assert case.selected == 24
    config = tiny.model.config
    assert case.candidates == config.num_hidden_layers * len(case.tokens) * config.intermediate_size
    assert len(case.tokens) == len(case.segments) == len(case.before)
    assert {"1 user", "chat frame", "reply"} == set(case.segments)
    assert 0 < case.replacement < 1
    assert 0 < case.completeness < 1
    # The accounts are of the decision and the entropies of the frozen distributions.
    assert case.accounted != case.value
    assert len(case.inputs) == len(case.tokens)
    assert sum(case.inputs) == pytest.approx(case.accounted, abs=1e-4)
    assert trace_case(tiny, context, store, settings=FEW) == case
    layer, index = map(int, case.writes[0][0].split("."))
    column = tiny.model.model.layers[layer].mlp.down_proj.weight[:, index] * tiny.model.model.norm.weight
    best = int((tiny.model.get_output_embeddings().weight @ column).argmax())
    assert case.writes[0][1][0] == tiny.tokenizer.decode([best])


def test_the_value_is_the_decision(tiny: LocalTarget, store: Store) -> None:
    case = trace_case(
        tiny, between(tiny, ASKED, ("True.",), ("False.",)), store, settings=CaseSettings(neurons=2, check=False)
    )
    prompt = tiny.prompt_ids(ASKED)
    found, _ = tiny.log_probs([(prompt, tiny.text_ids(text)) for text in ("True.", "False.")])
    assert case.value == pytest.approx(float(found[0].mean() - found[1].mean()), abs=1e-5)


def test_the_span_of_a_transcript_is_traced(tiny: LocalTarget, store: Store) -> None:
    turns = (*ASKED, Message(role="assistant", content="It is green, as you say."))
    context = written(tiny, turns, ["as you say"])
    text = tiny.tokenizer.decode(context.functional.tree.ids_N[context.functional.nodes_M])
    assert "as you say" in text
    assert len(text) < len("as you say") + 8
    assert float(context.functional.weight_M.sum()) == pytest.approx(1)
    case = trace_case(tiny, context, store, settings=FEW)
    assert case.alternatives == ()
    assert case.value < 0  # a log-probability
    assert "2 assistant" in case.segments


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2"])
def test_any_transformer_is_traced(kind: str, tiny: LocalTarget, store: Store) -> None:
    target = wide(kind, tiny)
    case = trace_case(target, between(target, ASKED, ("True.",), ("False.",)), store, settings=FEW)
    assert case.closure_error < 1e-5
    assert case.selected == 24
    if kind == "gemma2":  # no biases
        assert sum(case.inputs) == pytest.approx(case.accounted, abs=1e-4)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_the_same_text_on_both_sides_is_no_decision(tiny: LocalTarget) -> None:
    with pytest.raises(UsageError, match="both the action and its alternative"):
        between(tiny, ASKED, ("True.",), ("True.",))


def test_texts_that_differ_can_be_the_same_tokens(tiny: LocalTarget) -> None:
    tokens = tiny.tokenizer

    class Lowering:
        """Knows no capitals, as some tokenizers do."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokens, name)

        def __call__(self, text: str, **kwargs: Any) -> Any:
            return tokens(text.lower(), **kwargs)

    low = LocalTarget("local/low", tiny.model, Lowering(), weights="6" * 64)
    with pytest.raises(
        UsageError, match=r"'Yes\.' and 'yes\.', which are the same tokens, are both the action and its"
    ):
        between(low, ASKED, ("No.", "Yes."), ("yes.",))
    with pytest.raises(UsageError, match=r"'No\.' and 'NO\.', which are the same tokens, are given twice on one side"):
        between(low, ASKED, ("Yes.",), ("No.", "NO."))
    assert between(tiny, ASKED, ("Yes.",), ("yes.",)).actions == ("Yes.",)


def test_a_text_that_joins_with_the_prompt_is_refused(tiny: LocalTarget) -> None:
    tokens = tiny.tokenizer

    class Joining:
        """Ends its prompts with a letter that is one token with the next."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokens, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokens(*args, **kwargs)

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "th"

    joined = LocalTarget("local/joining", tiny.model, Joining(), weights="7" * 64)
    assert joined.encoded("the") != [*joined.encoded("th"), *joined.encoded("e")]
    with pytest.raises(UsageError, match="made of both"):
        between(joined, ASKED, ("e",), ("x",))


@pytest.mark.parametrize(("spans", "said"), [(["nowhere at all"], "holds no 'nowhere"), ([""], "holds no ''")])
def test_a_span_that_is_not_there_is_refused(tiny: LocalTarget, spans: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        written(tiny, ASKED, spans)


def test_the_first_token_follows_nothing(tiny: LocalTarget) -> None:
    first = tiny.tokenizer.decode(tiny.prompt_ids(ASKED)[:1])
    with pytest.raises(UsageError, match="follows nothing"):
        written(tiny, ASKED, [first])


def test_a_case_that_memory_does_not_hold_is_refused_with_the_numbers(tiny: LocalTarget, store: Store) -> None:
    short = LocalTarget("local/short", tiny.model, tiny.tokenizer, weights="7" * 64)
    short.max_memory = 1_000_000
    with pytest.raises(TargetError, match=r"takes about [\d,]+ MB beyond the weights, more than the 1 MB allowed"):
        trace_case(short, between(short, ASKED, ("True.",), ("False.",)), store, settings=FEW)
    assert not store.of_kind("case")


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_mixture_of_experts_is_refused(kind: str, tiny: LocalTarget, store: Store) -> None:
    target = wide(kind, tiny)
    with pytest.raises(TargetError, match="mixture of experts"):
        trace_case(target, between(target, ASKED, ("True.",), ("False.",)), store, settings=FEW)


def test_a_quantised_model_is_refused(tiny: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.model, "is_quantized", True, raising=False)
    with pytest.raises(TargetError, match="quantised"):
        trace_case(tiny, between(tiny, ASKED, ("True.",), ("False.",)), store, settings=FEW)


def test_a_short_format_is_refused(tiny: LocalTarget, store: Store) -> None:
    from copy import deepcopy

    short = LocalTarget("local/bf16", deepcopy(tiny.model).bfloat16(), tiny.tokenizer, weights="7" * 64)
    with pytest.raises(TargetError, match="TRUING_DTYPE=fp32"):
        trace_case(short, between(short, ASKED, ("True.",), ("False.",)), store, settings=FEW)


@pytest.mark.parametrize("wrong", [{"neurons": 0}, {"rule": "gradient"}, {"keep_nodes": 0.0}, {"keep_edges": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"add up under|between 0 and 1"):
        CaseSettings(**wrong)


def test_an_architecture_that_leaks_is_named_with_its_module(tiny: LocalTarget, store: Store) -> None:
    """An activation written out in an unusual way, in the middle of a model that is fine otherwise."""
    from torch import nn

    target = wide("llama", tiny)

    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.pow(3)

    target.model.model.layers[1].mlp.act_fn = Odd()
    target.model.config.hidden_act = "odd"  # so that it is not read by hand
    context = between(target, ASKED, ("True.",), ("False.",))
    with pytest.raises(TargetError, match=r"LlamaForCausalLM\) do not close.*model\.layers\.1\.mlp\.act_fn \(Odd\)"):
        trace_case(target, context, store, settings=FEW)
    assert not store.of_kind("case")


@pytest.mark.parametrize(
    ("kind", "module"), [("mamba", "MambaMixer"), ("rwkv", "Rwkv"), ("qwen3_next", "GatedDeltaNet")]
)
def test_what_leaks_in_a_state_space_model_is_found(kind: str, module: str, tiny: LocalTarget) -> None:
    model = random_model(kind, APART[kind])
    context = written(tiny, ASKED, ["green?"])
    ids = context.functional.tree.ids_N % 300
    functional = type(context.functional)(
        type(context.functional.tree)(ids, context.functional.tree.parent_N, context.functional.tree.depth_N),
        context.functional.nodes_M, context.functional.weight_M, context.functional.prompt,
    )  # fmt: skip
    assert module in leaking(model, functional, "relp")
    plain = random_model("llama", ARCHITECTURES["llama"])
    assert leaking(plain, functional, "relp") == ""


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_plan_grows_with_the_text_and_shrinks_its_batch(tiny: LocalTarget) -> None:
    small, large = (plan(tiny.model, n, 64, budget=10**11, by_hand=True) for n in (100, 1000))
    assert large.bytes > 5 * small.bytes
    tight = plan(tiny.model, 1000, 64, budget=large.bytes - 1, by_hand=True)
    assert tight.batch < large.batch
    assert "1,000 tokens" in str(large)
    many = [plan(tiny.model, n, 512, budget=10**13, by_hand=True).batch for n in (100, 2048, 4096, 200_000)]
    assert many == [64, 64, 32, 1]  # more would take the memory of a long case


# -- graphs as arrays --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny: LocalTarget) -> Circuit:
    return account(tiny, between(tiny, ASKED, ("True.",), ("False.",)), CaseSettings(neurons=60)).circuit


def test_influence_is_that_of_the_matrix(whole: Circuit) -> None:
    """w (1 - N)^-1 by dense algebra."""
    n = len(whole)
    dense = np.zeros((n, n))
    np.add.at(dense, (whole.target_E, whole.source_E), np.abs(whole.weight_E.astype(np.float64)))
    dense /= np.maximum(dense.sum(1, keepdims=True), 1e-30)
    expected = np.linalg.inv(np.eye(n) - dense)[-1]
    np.testing.assert_allclose(influence(whole), expected, atol=1e-9)
    errors = whole.of("remainder")
    explained = expected[whole.of("embedding")].sum()
    assert scores(whole).replacement == pytest.approx(explained / (explained + expected[errors].sum()))
    rows = dense.sum(1) > 0
    inputs = (1 - dense[:, errors].sum(1))[rows]
    assert scores(whole).completeness == pytest.approx((inputs * expected[rows]).sum() / expected[rows].sum())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_pruned_graph_keeps_what_it_says_and_still_adds_up(whole: Circuit, share: float) -> None:
    small = prune(whole, nodes=share, edges=share)
    assert len(small) < len(whole)
    assert closure(small) < 1e-4
    assert small.of("embedding").sum() == whole.of("embedding").sum()
    assert small.names[:2] == ("R_adds", "R_takes")
    assert (small.weight_E[small.source_E == 0] > 0).all()
    assert (small.weight_E[small.source_E == 1] < 0).all()
    # Absolute contributions are what they were: what is left out cancels out nowhere, and counts as error.
    before, after = (
        dict(zip(one.names, np.bincount(one.target_E, np.abs(one.weight_E), len(one)), strict=True))
        for one in (whole, small)
    )
    both = before.keys() & after.keys()
    assert {name: after[name] for name in both} == pytest.approx({name: before[name] for name in both}, rel=1e-4)
    np.testing.assert_allclose(small.influence_N, influence(small), atol=1e-6)
    leaves = small.of("embedding") | small.of("bias") | small.of("remainder")
    assert small.influence_N[leaves].sum() == pytest.approx(1, abs=1e-4)
    assert small.influence_N[:2].sum() >= influence(whole)[whole.of("remainder")].sum() * 0.99
    for node in small.of("neuron").nonzero()[0]:
        assert (small.source_E == node).any()
        assert (small.target_E == node).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.5, 0.98, 1.0])
def test_the_threshold_is_that_of_a_sort(seed: int, share: float) -> None:
    values = np.exp(np.random.default_rng(seed).normal(size=20_000) * 3)
    ordered = np.sort(values)[::-1]
    place = int(np.searchsorted(ordered.cumsum(), share * ordered.sum()))
    expected = 0.0 if share >= 1 else ordered[place]
    assert least(values, share) == pytest.approx(expected, rel=1e-9)
    assert least(np.full(5000, 2.0), share) <= 2
    assert least(np.zeros(3), share) == 0


def test_a_graph_is_the_same_after_packing(whole: Circuit) -> None:
    again = Circuit.unpacked(whole.packed())
    for name in ("kind_N", "layer_N", "weight_E", "influence_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.names == whole.names
    assert len(set(whole.names)) == len(whole)


@pytest.mark.parametrize("wrong", ["cycle", "nan", "kind", "length", "dtype", "no decision", "bytes", "names"])
def test_a_hostile_graph_is_refused(whole: Circuit, wrong: str) -> None:
    from safetensors.numpy import save

    arrays = {name: getattr(whole, name).copy() for name in Circuit.__dataclass_fields__}
    if wrong == "cycle":
        arrays["source_E"][0] = arrays["target_E"][0]
    elif wrong == "nan":
        arrays["weight_E"][3] = np.nan
    elif wrong == "kind":
        arrays["kind_N"][1] = 9
    elif wrong == "length":
        arrays["layer_N"] = arrays["layer_N"][:-1]
    elif wrong == "dtype":
        arrays["weight_E"] = arrays["weight_E"].astype(np.float64)
    elif wrong == "no decision":
        arrays["kind_N"][-1] = 2
    elif wrong == "names":
        arrays["more"] = arrays["kind_N"]
    data = b"{" if wrong == "bytes" else save(arrays)
    with pytest.raises(RecordError):
        Circuit.unpacked(data)


def test_tokens_and_biases_add_up_to_the_decision_and_are_listed_so(tiny: LocalTarget) -> None:
    """In a model with biases, what the lines say of turns is not all there is."""
    model = shaken("gpt2", ARCHITECTURES["gpt2"] | {"vocab_size": len(tiny.tokenizer)})
    target = LocalTarget("local/biased", model, tiny.tokenizer, weights="3" * 64)
    context = between(target, ASKED, ("True.",), ("False.",))
    found = account(target, context, CaseSettings(neurons=4))
    graph = found.circuit
    said = dict(
        case_of(graph, segments=context.segment_T, inputs=found.inputs, biases=found.biases, accounted=found.value,
                tokens=("x",) * len(found.inputs), before=tuple(context.functional.tree.parent_N.tolist())).by_turn()
    )  # fmt: skip
    assert abs(said["biases"]) > 1e-4
    assert "rounding" not in said
    assert sum(said.values()) == pytest.approx(found.value, abs=1e-5)


def test_both_remainders_of_all_layers_come_back_from_another_programs_file(tiny: LocalTarget, store: Store) -> None:
    case = trace_case(
        tiny, between(tiny, ASKED, ("True.",), ("False.",)), store, settings=CaseSettings(neurons=9, check=False)
    )
    graph = Circuit.unpacked(store.blob_bytes(case.graph))
    again = from_neuronpedia(json.dumps(neuronpedia(case, graph)).encode()).circuit
    assert {"R_adds", "R_takes"} < set(again.names)
    assert sorted(again.names) == sorted(graph.names)


def test_a_case_is_a_record_that_comes_back(tiny: LocalTarget, store: Store) -> None:
    case = trace_case(
        tiny, between(tiny, ASKED, ("True.",), ("False.",)), store, settings=CaseSettings(neurons=2, check=False)
    )
    again = store.get(case.id)
    assert isinstance(again, CaseGraph)
    assert again == case
