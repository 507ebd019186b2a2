"""Where neurons are strongest in many texts: text after text, with nothing kept but the strongest places so far."""

# T tokens of a piece  U neurons  K places

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truing.records import Episodes, Record, Replies, Turn
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units

Floats = NDArray[np.float64]
Neuron = tuple[int, int]
"""Layer and index, both from 0."""
LENGTH = 256
"""Tokens that go through the model at once."""
BEFORE, AFTER = 12, 4
"""Tokens shown around the one at which a neuron is strong."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of a part of a text. The first follows nothing: all others look at it, and it is never counted."""

    text: int
    """Which text it is of."""
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """A token in its surroundings, and the activation there."""

    text: int
    before: str
    token: str
    after: str
    activation: float


def pieces(target: LocalTarget, texts: Sequence[str], *, length: int = LENGTH) -> list[Piece]:
    """Texts cut into parts of at most so many tokens, each behind the model's begin token where it has one."""
    start = target.tokenizer.bos_token_id
    first = () if start is None else (int(start),)
    step = length - len(first)
    found = []
    for number, text in enumerate(texts):
        ids = target.encoded(text)
        found += [Piece(number, (*first, *ids[at : at + step])) for at in range(0, len(ids), step)]
    return [piece for piece in found if len(piece.ids) > 1]


def activations(
    target: LocalTarget, some: Iterable[Piece], neurons: Sequence[Neuron]
) -> Iterator[tuple[Piece, Floats]]:
    """What the neurons are in each piece, (T - 1, U), its first token left out; one piece at a time."""
    by_layer: dict[int, list[int]] = {}
    for layer, index in neurons:
        by_layer.setdefault(layer, []).append(index)
    sites = {layer: Units("neuron", layer, which=tuple(sorted(set(which)))) for layer, which in by_layer.items()}
    place = {(layer, index): at for layer, site in sites.items() for at, index in enumerate(site.which or ())}
    for piece in some:
        seen = target.activations(piece.ids, list(sites.values()))
        layers = {layer: seen[site][1:].double().cpu().numpy() for layer, site in sites.items()}
        yield piece, np.stack([layers[neuron[0]][:, place[neuron]] for neuron in neurons], axis=1)


class Strongest:
    """The places where each of some neurons is strongest, of all that was shown so far; ties go to the earlier."""

    def __init__(self, neurons: int, count: int, *, sign: int = 1) -> None:
        """`sign` -1: where they are weakest, or most negative."""
        self._count, self._sign = count, sign
        self._value_KU = np.zeros((0, neurons))
        self._place_KU2 = np.zeros((0, neurons, 2), dtype=np.int64)

    def see(self, number: int, values_TU: Floats) -> None:
        """The activations of a piece, by its number, from its second token on."""
        here = np.stack(np.broadcast_arrays(number, np.arange(1, len(values_TU) + 1)), -1)
        value = np.concatenate([self._value_KU, values_TU])
        place = np.concatenate([self._place_KU2, np.repeat(here[:, None], values_TU.shape[1], axis=1)])
        order = np.argsort(-self._sign * value, axis=0, kind="stable")[: self._count]
        self._value_KU = np.take_along_axis(value, order, 0)
        self._place_KU2 = np.take_along_axis(place, order[..., None], 0)

    def contexts(self, target: LocalTarget, shown: Sequence[Piece], neuron: int) -> tuple[Context, ...]:
        """Those of one neuron, the strongest first. `shown`: the pieces by their numbers."""
        return tuple(
            context(target, shown[number], position, float(value))
            for value, (number, position) in zip(
                self._value_KU[:, neuron].tolist(), self._place_KU2[:, neuron].tolist(), strict=True
            )
        )


def context(target: LocalTarget, piece: Piece, position: int, activation: float) -> Context:
    """One place of a piece, with what stands around it."""
    decode: Any = target.tokenizer.decode
    ids = list(piece.ids)
    start = max(1 if target.tokenizer.bos_token_id is not None else 0, position - BEFORE)
    after = decode(ids[position + 1 : position + 1 + AFTER])
    return Context(piece.text, decode(ids[start:position]), decode([ids[position]]), after, activation)


def stored_texts(store: Store) -> tuple[str, ...]:
    """What targets wrote, of the replies, turns and episodes of a store; each text once, in the order of arrival."""
    return tuple(dict.fromkeys(each_stored(store)))


def each_stored(store: Store) -> Iterator[str]:
    """The same texts one by one, some more than once; no record is read before its texts are asked for."""
    for kind in ("replies", "turn", "episodes"):
        for entry in store.ls(kind):
            yield from (text for text in _written(store.get(entry.id)) if text.strip())


def _written(record: Record) -> Iterator[str]:
    match record:
        case Replies():
            yield from (row.reply for row in record.rows)
        case Turn():
            yield record.text
        case Episodes():
            yield from (text for row in record.rows for text in (*row.said, row.answer))


__all__ = ["Context", "Neuron", "Piece", "Strongest", "activations", "each_stored", "pieces", "stored_texts"]
