"""The decision after each layer: what norm and head written out make of it, and the decision itself at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetError
from truing.records import BY_LAYER, Estimate, Message
from truing.report import overview
from truing.store import open_store
from truing.targets.local import LocalTarget
from truing.trace import CaseSettings, between, trace_case, written
from truing.trace.by_layer import beside, by_layer, said

from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)


@torch.no_grad()
def log_probs(target: LocalTarget, layer: int, prompt: list[int], reply: list[int]) -> float:
    """The mean log-probability of a reply's tokens by the residual stream after a layer, norm and head written out."""
    streams: list[Any] = []
    block = target.model.model.layers[layer]
    handle = block.register_forward_hook(lambda _, __, out: streams.append(out[0] if isinstance(out, tuple) else out))
    target.model(torch.tensor([[*prompt, *reply]]), use_cache=False)
    handle.remove()
    x = streams[0][0, len(prompt) - 1 : -1]
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + target.model.config.rms_norm_eps)
    log_p = (x * target.model.model.norm.weight @ target.model.lm_head.weight.T).log_softmax(-1)
    return float(log_p[torch.arange(len(reply)), reply].mean())


def test_each_layer_is_norm_and_head_written_out(tiny: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    context = between(tiny, ASKED, ("True.", "It is."), ("False.",))
    found = by_layer(tiny, context.functional)
    prompt = tiny.prompt_ids(ASKED)
    for layer, value in enumerate(found):
        one, two, other = (
            log_probs(tiny, layer, prompt, tiny.text_ids(text)) for text in ("True.", "It is.", "False.")
        )
        assert value == pytest.approx((one + two) / 2 - other, abs=1e-4)
    assert len(found) == tiny.model.config.num_hidden_layers
    assert abs(found[0] - found[-1]) > 1e-2
    monkeypatch.setattr("truing.trace.by_layer.ROWS", 2)
    assert by_layer(tiny, context.functional) == pytest.approx(found, abs=1e-5)


def test_what_was_written_and_other_architectures_are_read(tiny: LocalTarget) -> None:
    turns = (*ASKED, Message(role="assistant", content="It is green, as you say."))
    assert all(value < 0 for value in by_layer(tiny, written(tiny, turns, ["as you say"]).functional))
    settings = ARCHITECTURES["gemma2"] | {"vocab_size": len(tiny.tokenizer)}
    other = LocalTarget("local/gemma2", random_model("gemma2", settings), tiny.tokenizer, weights="7" * 64)
    context = between(other, ASKED, ("True.",), ("False.",))
    case = log_probs_of(other, context)
    assert by_layer(other, context.functional)[-1] == pytest.approx(case, abs=1e-4)


def log_probs_of(target: LocalTarget, context: Any) -> float:
    prompt = target.prompt_ids(ASKED)
    found, _ = target.log_probs([(prompt, target.text_ids(text)) for text in (*context.actions, *context.alternatives)])
    return float(found[0].mean() - found[1].mean())


def test_another_reading_comes_between(tiny: LocalTarget) -> None:
    context = between(tiny, ASKED, ("True.",), ("False.",))
    last = by_layer(tiny, context.functional, read=lambda _, x: torch.zeros_like(x))
    even = [len(tiny.text_ids(text)) for text in ("True.", "False.")]
    assert min(even) > 0
    assert last == pytest.approx([0.0] * len(last), abs=1e-6)  # every token is as likely as any other


def test_an_end_that_is_not_the_models_is_refused(tiny: LocalTarget) -> None:
    settings = ARCHITECTURES["llama"] | {"vocab_size": len(tiny.tokenizer)}
    other = LocalTarget("local/odd", random_model("llama", settings), tiny.tokenizer, weights="7" * 64)
    tokens = [0]
    other.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: tokens.__setitem__(0, args[0].shape[1])
    )
    # A head that minds how long the text is.
    other.model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * (1 + 0.1 * tokens[0]),))
    with pytest.raises(TargetError, match="so no lens can be put on it"):
        by_layer(other, between(other, ASKED, ("True.",), ("False.",)).functional)


def test_where_it_forms_is_said() -> None:
    assert said([3.0, -0.1, 0.2, 1.0, 0.6, 1.0]) == (
        "of the decision's sign from layer 2 on, and at least half of it from layer 3 on"
    )
    assert "from layer 0 on, and at least half of it from layer 1 on" in said([-0.1, -2.0])
    assert said([1.0, 0.0]) == "the decision is 0"


def test_the_reading_stands_beside_the_case_and_in_the_report(tiny: LocalTarget, tmp_path: Path) -> None:
    context = between(tiny, ASKED, ("True.",), ("False.",))
    with open_store(tmp_path / "store") as store:
        case = trace_case(tiny, context, store, settings=CaseSettings(neurons=2, check=False))
        before = overview([case, tiny.card], blobs=store.blob_bytes)
        read = beside(tiny, by_layer(tiny, context.functional), case, store)
        assert store.get(read.id) == read
        after = overview([case, tiny.card, read], blobs=store.blob_bytes)
    assert (read.name, set(read.parents)) == (BY_LAYER, {tiny.card.id, case.id})
    last = read.quantities[-1].quantity
    assert isinstance(last, Estimate)
    assert last.value == pytest.approx(case.value, abs=1e-5)
    assert "Where it forms" not in before
    assert "Where it forms" in after
    assert "layer 2, decision:" in after
