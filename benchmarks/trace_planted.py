"""A small Llama whose weights are written by hand, so that the circuit is known: what scores of units must find.

The task has two hops: an item stands somewhere among fillers, a query comes last, and the answer is an item's image
under one map and then another.

    layer 0  a neuron for each item writes what the item maps to                     planted
    layer 1  two heads carry that from the item to the query, a half of it each      planted
    layer 2  a neuron for each of these writes the answer                            planted

Beside them stand distractors that fire as much or more, and change as much between twins, and whose output nothing
reads: neurons in every layer, and the other two heads of layer 1. All other weights have noise, and so have these.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from truing.trace.attribute import Scoring, attribute
from truing.trace.twins import Twin, of_tokens

ITEMS, FILLERS, WIDTH, LAYERS, HEADS, HEAD_WIDTH, NEURONS = 8, 24, 72, 3, 4, 16, 96
QUERY, FIRST_FILLER, ANSWERS = ITEMS, ITEMS + 1, ITEMS + 1 + FILLERS
"""Tokens: items come first, then the query, fillers, and answers."""
ITEM, IS_ITEM, IS_QUERY, ALWAYS, HOP, CARRIED, ANSWER, JUNK = 0, 8, 9, 10, 11, 19, 27, 35
"""Where in the residual stream what is written; from JUNK on nothing is read."""
COPIERS = ((1, 0), (1, 1))
DISTRACTORS = 32
NOISE, GAIN = 0.01, 6.0
LENGTH = 6


@dataclass(frozen=True)
class Planted:
    """The model, its maps, and where its circuit stands."""

    model: Any
    first: tuple[int, ...]
    second: tuple[int, ...]

    @property
    def neurons(self) -> set[tuple[int, int]]:
        """Layer and index."""
        return {(layer, item) for layer in (0, 2) for item in range(ITEMS)}

    @property
    def heads(self) -> set[tuple[int, int]]:
        """Layer and index."""
        return set(COPIERS)

    def answer(self, item: int) -> int:
        """The token that an item leads to."""
        return ANSWERS + self.second[self.first[item]]


@torch.no_grad()
def build(seed: int = 0) -> Planted:
    """The model of a seed."""
    state, drawn = torch.get_rng_state(), random.Random(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ANSWERS + ITEMS, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD_WIDTH, max_position_embeddings=64,
        rope_theta=1e9, tie_word_embeddings=False, bos_token_id=QUERY, eos_token_id=QUERY, pad_token_id=QUERY,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 2:
            parameter.normal_(0, NOISE)
    found = Planted(model, *(tuple(drawn.sample(range(ITEMS), ITEMS)) for _ in range(2)))
    _embed(model)
    _look_up(model.model.layers[0].mlp, ITEM, HOP, found.first)
    _look_up(model.model.layers[2].mlp, CARRIED, ANSWER, found.second)
    for layer, read in zip(model.model.layers, (ITEM, HOP, CARRIED), strict=True):
        _idle(layer.mlp, read)
    for head, half in ((0, 0), (1, 4)):
        _carry(model.model.layers[1].self_attn, head, HOP + half, CARRIED + half, 1)
        _carry(model.model.layers[1].self_attn, head + len(COPIERS), HOP + half, JUNK + half, 3)
    for answer in range(ITEMS):
        model.lm_head.weight[ANSWERS + answer, ANSWER + answer] += 4
    torch.set_rng_state(state)
    return found


def _embed(model: Any) -> None:
    table = model.model.embed_tokens.weight
    table[:, ALWAYS] += 4  # hardly any norm depends on what else there is
    for item in range(ITEMS):
        table[item, ITEM + item] += 2
    table[:ITEMS, IS_ITEM] += 2
    table[QUERY, IS_QUERY] += 2
    table[FIRST_FILLER:ANSWERS, JUNK + 8 :] += 0.3 * torch.randn(FILLERS, WIDTH - JUNK - 8)


def _look_up(mlp: Any, read: int, write: int, image: tuple[int, ...]) -> None:
    """A neuron for each entry, which writes its image."""
    for entry in range(ITEMS):
        mlp.gate_proj.weight[entry, read + entry] += 2
        mlp.up_proj.weight[entry, read + entry] += 1
        mlp.down_proj.weight[write + image[entry], entry] += GAIN / 4


def _idle(mlp: Any, read: int) -> None:
    """Neurons that fire twice as much for each entry, and write what none reads."""
    for neuron in range(ITEMS, ITEMS + DISTRACTORS):
        entry = neuron % ITEMS
        mlp.gate_proj.weight[neuron, read + entry] += 2
        mlp.up_proj.weight[neuron, read + entry] += 2
        mlp.down_proj.weight[JUNK + entry, neuron] += GAIN / DISTRACTORS


def _carry(attention: Any, head: int, take: int, put: int, gain: float) -> None:
    """A head that looks from the query to the item, and carries four dimensions from there."""
    begin = head * HEAD_WIDTH
    slow = begin + HEAD_WIDTH - 1  # hardly turned by its place in the text
    attention.q_proj.weight[slow, IS_QUERY] += 8
    attention.k_proj.weight[slow, IS_ITEM] += 8
    for dimension in range(4):
        attention.v_proj.weight[begin + dimension, take + dimension] += gain
        attention.o_proj.weight[put + dimension, begin + dimension] += 2 / gain


def pairs(planted: Planted, count: int = 40, *, seed: int = 0) -> list[Twin]:
    """Twins of two items in the same place among the same fillers."""
    drawn, found = random.Random(seed), []
    for number in range(count):
        one, two = (number % ITEMS, (number + 1 + number // ITEMS % (ITEMS - 1)) % ITEMS)
        text, place = drawn.choices(range(FIRST_FILLER, ANSWERS), k=LENGTH), drawn.randrange(LENGTH)
        first, second = ([*text[:place], item, *text[place + 1 :], QUERY] for item in (one, two))
        answers = [planted.answer(one)], [planted.answer(two)]
        found.append(of_tokens(first, second, *answers, name=f"{one} {two} at {place} #{number}"))
    return found


def area(scores: Tensor, planted: Tensor) -> float:
    """The area under the ROC curve of a score for what is planted; ties count half."""
    good, bad = scores[planted], scores[~planted]
    higher = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return float(higher.mean())


def areas(planted: Planted, twins: list[Twin], rule: Scoring) -> dict[str, float]:
    """The area of |mean score| for planted units among all: neurons, heads, and both together."""
    scores = mean_scores(planted.model, twins, rule)
    return areas_of(scores, marked(planted, scores))


def mean_scores(model: Any, twins: list[Twin], rule: Scoring) -> dict[str, Tensor]:
    """|Mean score| of neurons (L, F) and heads (L, H)."""
    found = [attribute(model, twin, ("text", "reply"), rule) for twin in twins]
    return {kind: torch.stack([getattr(one, kind) for one in found]).mean(0).abs() for kind in ("neurons", "heads")}


def marked(planted: Any, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which units are planted, in the shapes of scores."""
    marks = {kind: torch.zeros_like(found, dtype=torch.bool) for kind, found in scores.items()}
    for kind, units in (("neurons", planted.neurons), ("heads", planted.heads)):
        for unit in units:
            marks[kind][unit] = True
    return marks


def areas_of(scores: dict[str, Tensor], marks: dict[str, Tensor]) -> dict[str, float]:
    """The area of scores for marked units among all: neurons, heads, and both together."""
    together = {kind: area(scores[kind].flatten(), marks[kind].flatten()) for kind in scores}
    return together | {
        "units": area(
            torch.cat([s.flatten() for s in scores.values()]), torch.cat([m.flatten() for m in marks.values()])
        )
    }
