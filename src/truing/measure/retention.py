"""What a fix costs: bits per byte on ordinary text, divergence on ordinary requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.records import Arrays, Measurement, Message, Named, Value, digest_of
from truing.records.content import folder, read
from truing.runner import Unit, Watcher, run
from truing.stats import cluster_mean
from truing.store import Store

PACKAGE = "truing.measure"
REPLY_TOKENS = 24


class _Passages(Value):
    passages: tuple[str, ...]


class _Prompts(Value):
    prompts: tuple[str, ...]


def passages() -> tuple[str, ...]:
    """Ordinary text, one passage a cluster."""
    return read(folder(PACKAGE, "passages.yaml"), _Passages, schema="passages/1").passages


def requests() -> tuple[str, ...]:
    """Ordinary requests, one a cluster."""
    return read(folder(PACKAGE, "benign.yaml"), _Prompts, schema="prompts/1").prompts


def retention(
    before: Any, after: Any, store: Store, *, watcher: Watcher | None = None, prompts: int = 16
) -> Measurement:
    """Change in bits per byte, paired by passage, and KL(before || after) per token on replies of the first model."""
    texts = passages()
    first, second = (_bits(target, texts, store, watcher) for target in (before, after))
    names = [f"passage {i:02d}" for i in range(len(texts))]
    changed = [b - a for a, b in zip(first, second, strict=True)]
    asked = requests()[:prompts]
    kl = _divergence(before, after, asked, store, watcher)
    silent = len(asked) - len(kl)
    missing = f"; {silent} of {len(asked)} requests got no reply and are not in it" if silent else ""
    per_token = [value / count for value, count in kl]
    labels = [f"request {i:02d}" for i in range(len(kl))]
    unit = "bits/byte"
    record = Measurement(
        name="retention",
        targets=(before.card.id, after.card.id),
        parents=(before.card.id, after.card.id),
        quantities=(
            Named(name="bits per byte before", quantity=cluster_mean(first, names, unit=unit)),
            Named(name="bits per byte after", quantity=cluster_mean(second, names, unit=unit)),
            Named(
                name="bits per byte, after - before",
                quantity=cluster_mean(changed, names, unit=unit),
                note="paired by passage; above zero is worse",
            ),
            Named(
                name="KL(before || after) on ordinary requests",
                quantity=cluster_mean(per_token, labels, unit="nats/token"),
                note=f"exact over the vocabulary, on the first model's own replies{missing}",
            ),
        ),
    )
    store.add(record)
    return record


def _bits(target: Any, texts: Sequence[str], store: Store, watcher: Watcher | None) -> list[float]:
    def work(item: tuple[int, str]) -> list[Arrays]:
        number, text = item
        bits, size, tokens = target.bits(text)
        numbers = (("bits", bits), ("bytes", float(size)), ("tokens", float(tokens)))
        return [_numbers("bits", target, f"passage {number:02d}", numbers)]

    units = [
        Unit(item=(number, text), stage="bits", inputs={"target": target.card.id, "text": text})
        for number, text in enumerate(texts)
    ]
    done = run(units, work, ledger=store, watcher=watcher, label=f"retention of {target.card.name}")
    found = [dict(record.numbers) for records in done for record in records if isinstance(record, Arrays)]
    return [numbers["bits"] / numbers["bytes"] for numbers in found]


def _divergence(
    before: Any, after: Any, prompts: Sequence[str], store: Store, watcher: Watcher | None
) -> list[tuple[float, float]]:
    asked = [(Message(role="user", content=prompt),) for prompt in prompts]

    def work(_: None) -> list[Arrays]:
        replies = before.reply(asked, max_tokens=REPLY_TOKENS)
        records = []
        for number, (messages, reply) in enumerate(zip(asked, replies, strict=True)):
            if reply.text:
                value, tokens = before.divergence(after, messages, reply.text)
                numbers = (("kl", value), ("tokens", float(tokens)))
                records.append(_numbers("divergence", after, f"request {number:02d}", numbers))
        return records

    inputs = {
        "before": before.card.id,
        "after": after.card.id,
        "prompts": digest_of(list(prompts)),
        "tokens": REPLY_TOKENS,
    }
    units = [Unit(item=None, stage="divergence", inputs=inputs)]
    done = run(units, work, ledger=store, watcher=watcher, label="divergence on ordinary requests")
    found = [dict(record.numbers) for records in done for record in records if isinstance(record, Arrays)]
    return [(numbers["kl"], numbers["tokens"]) for numbers in found]


def _numbers(name: str, target: Any, plot: str, numbers: tuple[tuple[str, float], ...]) -> Arrays:
    return Arrays(name=name, target=target.card.id, plot=plot, cases=(), numbers=numbers, parents=(target.card.id,))
