"""Labels of neurons without a second model: what a neuron writes, where it is strong, and how well that predicts it.

The label is made on one half of the texts: a few tokens, and pairs of tokens, at which its activation is other than
usual. Its score is the correlation of what it predicts with the activations on the other half, beside that of another
neuron's label. Most neurons answer to several things (they are polysemantic), and most scores are far below 1.
"""

# T tokens  U neurons  V tokens that occur  P pairs that occur more than once  K tokens of a label

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from truing.errors import DesignError, TargetError
from truing.records import Measurement, Named, Quantity
from truing.runner import Silent, Watcher
from truing.stats.estimates import correlation
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, layers, place
from truing.text import one_line
from truing.trace.contexts import LENGTH, Context, Floats, Neuron, Piece, Strongest, activations, context, pieces
from truing.trace.lens import ROWS, end

CELLS = 1 << 23
"""Numbers that are held for a batch of neurons: the fewer the more tokens occur."""
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""What architectures call a norm between the MLP and the residual stream."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeuronLabel:
    """What is known of one neuron."""

    layer: int
    index: int
    promotes: tuple[str, ...]
    """Next tokens that it makes likelier where it is positive, by what it writes to the residual stream."""
    suppresses: tuple[str, ...]
    tokens: tuple[tuple[str, float], ...]
    """The label: tokens at which it is other than usual, and what is expected there; the largest first."""
    pairs: tuple[tuple[str, float], ...]
    """The label, too: pairs of tokens, at whose second it is other than its token says."""
    strongest: tuple[Context, ...]
    """Where it is largest on the texts that the label is made from."""
    weakest: tuple[Context, ...]
    held: tuple[Context, ...]
    """Where it is largest on the others."""
    ordinary: tuple[Context, ...]
    """Places drawn at random from the others, for comparison."""
    score: Quantity
    """Correlation of what the label predicts with the activations on the others; intervals over texts."""
    shuffled: Quantity
    """The same by the label of another neuron of the layer, drawn at random."""


def label(
    target: LocalTarget,
    neurons: Sequence[Neuron],
    texts: Sequence[str],
    *,
    top: int = 10,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> tuple[NeuronLabel, ...]:
    """Labels of neurons, made on every other text and tested on the texts between. Texts that repeat are used once.

    One pass over each text for every batch of neurons. DesignError where there are under two texts.
    """
    watcher = watcher or Silent()
    cut = pieces(target, tuple(dict.fromkeys(texts)), length=target.room((), LENGTH))
    making, testing = [p for p in cut if p.text % 2 == 0], [p for p in cut if p.text % 2]
    if not making or not testing:
        raise DesignError(f"{len(cut)} texts; a label is made on some and tested on others, so give at least 2")
    known = _Known.of(making)
    size = max(1, CELLS // (2 * (len(known.tokens_V) + len(known.pairs_P))))
    found: list[NeuronLabel] = []
    watcher.start("trace: labels of neurons", len(cut) * -(-len(neurons) // size))
    for start in range(0, len(neurons), size):
        batch = list(neurons[start : start + size])
        others = _others(target, batch, seed)
        found += _labelled(target, batch, others, known, making, testing, top, seed, watcher)
    return tuple(found)


def label_measurement(target: LocalTarget, labels: Sequence[NeuronLabel]) -> Measurement:
    """The scores of labels as a record."""
    rows = [
        Named(name=f"neuron {one.layer}.{one.index}{what}", quantity=quantity, note=one_line(said))
        for one in labels
        for what, quantity, said in (
            ("", one.score, " | ".join(token for token, _ in one.tokens)),
            (", another's label", one.shuffled, ""),
        )
    ]
    return Measurement(name="labels of neurons", targets=(target.card.id,), parents=(target.card.id,),
                       quantities=tuple(rows))  # fmt: skip


# -- what neurons write ------------------------------------------------------------------------------------------------


@torch.no_grad()
def written(target: LocalTarget, neurons: Sequence[Neuron]) -> Iterator[Tensor]:
    """For each neuron, what it does to the logits where it is positive, (V,): what it writes through the final norm's
    weights and the output head, for a residual stream of unit root mean square. Biases cancel.
    """
    for part in range(0, len(neurons), ROWS):
        x_ND = torch.stack([_column(target.model, neuron) for neuron in neurons[part : part + ROWS]])
        # A norm's scale divides what it is given by its own length, and one half of the difference is free of biases.
        yield from (end(target.model, x_ND) - end(target.model, -x_ND)) / 2


def tokens_written(
    target: LocalTarget, neurons: Sequence[Neuron], top: int = 4
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each neuron, the tokens whose logits it raises most where it is positive, and those that it lowers most."""

    def texts(logits_V: Tensor, *, largest: bool) -> tuple[str, ...]:
        return tuple(target.tokenizer.decode([int(token)]) for token in logits_V.topk(top, largest=largest).indices)

    return [(texts(one, largest=True), texts(one, largest=False)) for one in written(target, neurons)]


def _column(model: Any, neuron: Neuron) -> Tensor:
    """What one neuron adds to the residual stream, but for a scale: (D,)."""
    layer, index = neuron
    module, _ = place(model, Units("neuron", layer))
    weight_DF = module.weight if isinstance(module, nn.Linear) else module.weight.T
    if not 0 <= index < weight_DF.shape[1]:
        raise TargetError(f"no neuron {index} in layer {layer}: there are {weight_DF.shape[1]}")
    column = weight_DF[:, index].float()
    block = layers(model)[layer]
    norms = [norm for name in AFTER_MLP if (norm := getattr(block, name, None)) is not None]
    for norm in norms:
        column = (norm(column) - norm(-column)) / 2
    return column


# -- what predicts them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """Tokens and pairs of tokens that occur where labels are made, in order."""

    tokens_V: Ints
    pairs_P: Ints
    """Those that occur more than once, each as one number."""

    @classmethod
    def of(cls, making: Sequence[Piece]) -> _Known:
        tokens = np.unique(np.concatenate([np.array(piece.ids[1:], dtype=np.int64) for piece in making]))
        pairs, times = np.unique(np.concatenate([_pairs(piece) for piece in making]), return_counts=True)
        return cls(tokens, pairs[times > 1])

    def places(self, piece: Piece) -> tuple[Ints, Ints]:
        """For each counted token of a piece its number, and that of its pair; behind the last where it is unknown."""
        ids = np.array(piece.ids[1:], dtype=np.int64)
        return _find(self.tokens_V, ids), _find(self.pairs_P, _pairs(piece))


def _pairs(piece: Piece) -> Ints:
    ids = np.array(piece.ids, dtype=np.int64)
    return ids[:-1] << 32 | ids[1:]


def _find(known: Ints, wanted: Ints) -> Ints:
    at = np.searchsorted(known, wanted)
    same = np.append(known, -1)[at] == wanted
    return np.where(same, at, len(known))


@dataclass(frozen=True, slots=True, eq=False)
class _Rules:
    """What labels say: `mean` everywhere but at some tokens and pairs. NaN where they say nothing."""

    mean_U: Floats
    token_VU: Floats
    pair_PU: Floats

    def predicted(self, at_token: Ints, at_pair: Ints) -> Floats:
        """(T, U)."""
        nothing = np.full((1, len(self.mean_U)), np.nan)
        token, pair = (np.concatenate([rules, nothing]) for rules in (self.token_VU, self.pair_PU))
        said = np.where(np.isnan(token[at_token]), self.mean_U, token[at_token])
        return np.where(np.isnan(pair[at_pair]), said, pair[at_pair])


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Sums of activations by token and by pair, and how often each occurred."""

    token_VU: Floats
    pair_PU: Floats
    count_V: Floats
    count_P: Floats

    @classmethod
    def none(cls, known: _Known, neurons: int) -> _Sums:
        V, P = len(known.tokens_V), len(known.pairs_P)
        # What is unknown goes to a last row, and is cut off.
        return cls(np.zeros((V + 1, neurons)), np.zeros((P + 1, neurons)), np.zeros(V + 1), np.zeros(P + 1))

    def add(self, at_token: Ints, at_pair: Ints, values_TU: Floats) -> None:
        for sums, counts, at in ((self.token_VU, self.count_V, at_token), (self.pair_PU, self.count_P, at_pair)):
            np.add.at(sums, at, values_TU)
            np.add.at(counts, at, 1.0)

    def rules(self, known: _Known, top: int) -> _Rules:
        """The tokens, then the pairs beside what their tokens say, that explain most of the variance."""
        token_VU, count_V = self.token_VU[:-1], self.count_V[:-1]
        mean_U = token_VU.sum(0) / count_V.sum()
        said_VU = _chosen(token_VU, count_V, np.broadcast_to(mean_U, token_VU.shape), top)
        usual_VU = np.where(np.isnan(said_VU), mean_U, said_VU)
        usual_PU = usual_VU[_find(known.tokens_V, known.pairs_P & 0xFFFFFFFF)]
        return _Rules(mean_U, said_VU, _chosen(self.pair_PU[:-1], self.count_P[:-1], usual_PU, top))


def _chosen(sum_VU: Floats, count_V: Floats, usual_VU: Floats, top: int) -> Floats:
    """Means, drawn to what is usual as if that had been seen once more; of the `top` that explain most, else NaN."""
    mean_VU = (sum_VU + usual_VU) / (count_V + 1)[:, None]
    gain_VU = count_V[:, None] * (mean_VU - usual_VU) ** 2
    order_KU = np.argsort(-gain_VU, axis=0, kind="stable")[:top]
    chosen = np.zeros(gain_VU.shape, dtype=bool)
    np.put_along_axis(chosen, order_KU, values=True, axis=0)
    return np.where(chosen & (gain_VU > 0), mean_VU, np.nan)


def _others(target: LocalTarget, neurons: Sequence[Neuron], seed: int) -> list[Neuron]:
    """For each neuron another of its layer, at random."""
    found = []
    for layer, index in neurons:
        module, _ = place(target.model, Units("neuron", layer))
        width = module.weight.shape[1] if isinstance(module, nn.Linear) else module.weight.shape[0]
        drawn = int(np.random.default_rng([seed, layer, index]).integers(width - 1))
        found.append((layer, drawn + (drawn >= index)))
    return found


# -- putting it together -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """What was seen of neurons on the texts that labels are tested on."""

    own_G6U: Floats
    """By text, what `stats.estimates.correlation` takes."""
    other_G6U: Floats
    strongest: Strongest
    ordinary: list[tuple[int, int, Floats]]
    """Piece, position, activations (U,)."""


def _labelled(
    target: LocalTarget, neurons: list[Neuron], others: list[Neuron], known: _Known, making: Sequence[Piece],
    testing: Sequence[Piece], top: int, seed: int, watcher: Watcher,
) -> Iterator[NeuronLabel]:  # fmt: skip
    count = len(neurons)
    sums = _Sums.none(known, 2 * count)
    most, least = Strongest(count, top), Strongest(count, top, sign=-1)
    for number, (piece, values) in enumerate(activations(target, making, [*neurons, *others])):
        sums.add(*known.places(piece), values)
        most.see(number, values[:, :count])
        least.see(number, values[:, :count])
        watcher.step()
    rules = sums.rules(known, top)
    tested = _tested(target, neurons, rules, known, testing, top, seed, watcher)
    for u, ((layer, index), logits) in enumerate(zip(neurons, written(target, neurons), strict=True)):
        yield NeuronLabel(
            layer, index, _tokens(target, logits.topk(top).indices), _tokens(target, (-logits).topk(top).indices),
            _said(target, rules.token_VU[:, u], known.tokens_V[:, None]),
            _said(target, rules.pair_PU[:, u], np.stack([known.pairs_P >> 32, known.pairs_P & 0xFFFFFFFF], 1)),
            most.contexts(target, making, u), least.contexts(target, making, u),
            tested.strongest.contexts(target, testing, u),
            tuple(context(target, testing[n], p, float(seen[u])) for n, p, seen in tested.ordinary),
            correlation(tested.own_G6U[..., u]), correlation(tested.other_G6U[..., u]),
        )  # fmt: skip


def _tested(
    target: LocalTarget,
    neurons: list[Neuron],
    rules: _Rules,
    known: _Known,
    testing: Sequence[Piece],
    top: int,
    seed: int,
    watcher: Watcher,
) -> _Tested:
    count = len(neurons)
    row = {text: number for number, text in enumerate(dict.fromkeys(piece.text for piece in testing))}
    own, other = np.zeros((len(row), 6, count)), np.zeros((len(row), 6, count))
    strongest, ordinary = Strongest(count, top), []
    drawn = _drawn(testing, top, seed)
    for number, (piece, values) in enumerate(activations(target, testing, neurons)):
        # Around the means, so that sums of squares lose no digits.
        said = rules.predicted(*known.places(piece)) - rules.mean_U
        y = values - rules.mean_U[:count]
        own[row[piece.text]] += _moments(said[:, :count], y)
        other[row[piece.text]] += _moments(said[:, count:], y)
        strongest.see(number, values)
        ordinary += [(number, position, values[position - 1]) for position in drawn.get(number, ())]
        watcher.step()
    return _Tested(own, other, strongest, ordinary)


def _moments(x_TU: Floats, y_TU: Floats) -> Floats:
    parts = (np.ones_like(x_TU), x_TU, y_TU, x_TU**2, y_TU**2, x_TU * y_TU)
    return np.stack([part.sum(0) for part in parts])


def _drawn(testing: Sequence[Piece], count: int, seed: int) -> dict[int, list[int]]:
    """Some places at random: positions by piece, in order."""
    sizes = np.array([len(piece.ids) - 1 for piece in testing])
    ends = sizes.cumsum()
    chosen = np.random.default_rng(seed).choice(int(ends[-1]), size=min(count, int(ends[-1])), replace=False)
    found: dict[int, list[int]] = {}
    for one in sorted(chosen.tolist()):
        number = int(np.searchsorted(ends, one, side="right"))
        found.setdefault(number, []).append(int(one - (ends[number] - sizes[number])) + 1)
    return found


def _tokens(target: LocalTarget, ids: Tensor) -> tuple[str, ...]:
    return tuple(target.tokenizer.decode([token]) for token in ids.tolist())


def _said(target: LocalTarget, rule_V: Floats, ids_VK: Ints) -> tuple[tuple[str, float], ...]:
    """What a label says, what is farthest from nothing first."""
    some = np.flatnonzero(~np.isnan(rule_V))
    order = some[np.argsort(-np.abs(rule_V[some]), kind="stable")]
    return tuple((target.tokenizer.decode(ids_VK[at].tolist()), float(rule_V[at])) for at in order)


__all__ = ["NeuronLabel", "label", "label_measurement", "written"]
