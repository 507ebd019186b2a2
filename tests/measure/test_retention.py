"""What a fix costs, on targets whose cost is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.measure import retention
from truing.measure.retention import REPLY_TOKENS, passages, requests
from truing.records import Estimate, Measurement, Message
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.protocols import Reply

NAMES = (
    "bits per byte before",
    "bits per byte after",
    "bits per byte, after - before",
    "KL(before || after) on ordinary requests",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def worse(wild: LocalTarget) -> LocalTarget:
    """The same model with noise on one matrix."""
    model = deepcopy(wild.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return LocalTarget("local/worse", model, wild.tokenizer, weights="3" * 64)


def seen(record: Measurement) -> list[Estimate]:
    assert tuple(named.name for named in record.quantities) == NAMES
    found = [named.quantity for named in record.quantities]
    assert all(isinstance(quantity, Estimate) for quantity in found)
    return [quantity for quantity in found if isinstance(quantity, Estimate)]


def test_against_itself_nothing_changed(wild: LocalTarget, store: Store) -> None:
    before, after, changed, kl = seen(retention(wild, wild, store, prompts=6))
    assert before == after
    assert (changed.value, changed.low, changed.high) == (0, 0, 0)
    assert (kl.value, kl.low, kl.high) == (0, 0, 0)
    assert (changed.n, changed.clusters, changed.unit) == (len(passages()), len(passages()), "bits/byte")


def test_a_change_is_what_it_is_by_hand(wild: LocalTarget, worse: LocalTarget, store: Store) -> None:
    before, after, changed, kl = seen(retention(wild, worse, store, prompts=6))

    def log_p(model: Any, ids: list[int]) -> Any:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)

    def bits_per_byte(target: LocalTarget, text: str) -> float:
        ids = target.tokenizer(text, add_special_tokens=False)["input_ids"]
        values = log_p(target.model, [target.tokenizer.bos_token_id, *ids])[:-1]
        nats = -float(values[torch.arange(len(ids)), torch.tensor(ids)].sum())
        return nats / math.log(2) / len(text.encode())

    rows = [[bits_per_byte(target, text) for text in passages()] for target in (wild, worse)]
    assert before.value == pytest.approx(sum(rows[0]) / len(rows[0]), rel=1e-5)
    assert after.value == pytest.approx(sum(rows[1]) / len(rows[1]), rel=1e-5)
    assert changed.value == pytest.approx(after.value - before.value, abs=1e-9)
    assert changed.high - changed.low < after.high - after.low  # paired
    divergences = []
    for text in requests()[:6]:
        asked = (Message(role="user", content=text),)
        (reply,) = wild.reply([asked], max_tokens=REPLY_TOKENS)
        prompt, ids = wild.prompt_ids(asked), wild.text_ids(reply.text)
        p, q = (log_p(t.model, [*prompt, *ids])[len(prompt) - 1 : -1] for t in (wild, worse))
        divergences.append(float((p.exp() * (p - q)).sum()) / len(ids))
    assert kl.value == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert kl.low <= kl.value
    assert kl.value > 0
    assert kl.unit == "nats/token"


def test_a_request_without_a_reply_is_named(
    wild: LocalTarget, worse: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = LocalTarget.reply

    def silent_at_first(self: LocalTarget, *given: Any, **options: Any) -> list[Reply]:
        first, *rest = reply(self, *given, **options)
        return [replace(first, text="", tokens=0), *rest]

    monkeypatch.setattr(LocalTarget, "reply", silent_at_first)
    record = retention(wild, worse, store, prompts=6)
    kl = seen(record)[-1]
    assert (kl.n, kl.clusters) == (5, 5)
    assert "; 1 of 6 requests got no reply and are not in it" in record.quantities[-1].note
    monkeypatch.undo()
    assert "no reply" not in retention(worse, wild, store, prompts=6).quantities[-1].note


def test_it_is_measured_once(
    wild: LocalTarget, worse: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = retention(wild, worse, store, prompts=5)
    assert store.get(record.id) == record
    assert record.targets == (wild.card.id, worse.card.id)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    for name in ("bits", "reply", "divergence"):
        monkeypatch.setattr(LocalTarget, name, never)
    assert retention(wild, worse, store, prompts=5) == record
    with pytest.raises(AssertionError, match="asked again"):
        retention(worse, wild, store, prompts=5)  # another question: replies of the other model


def test_the_content_is_enough_for_an_interval() -> None:
    assert len(passages()) == len(set(passages())) >= 5
    assert len(requests()) == len(set(requests())) >= 16
    assert all(passage.strip() for passage in passages())
