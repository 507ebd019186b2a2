"""A small Llama that is trained, and whose circuit is known all the same: it was chosen before the training.

The task is that of `trace_planted`: an item stands among fillers, a query comes last, and the answer is the item's
image under one map and then another. A program does it in bits, and a seed says which units of which layers hold each:

    hop      the bits of what the item maps to       neurons, where the item stands
    carried  the same bits                           a head each, where the query stands
    answer   the bits of what these map to           neurons, where the query stands

Beside that the model has another task, so that units outside the circuit have something to do: every token is of a
class, and at each token of a text the model names how its class and that of the token before it differ. Nothing of this
is of use to the answer. (Without it such units hardly differ between texts, and the largest change finds the circuit.)

Strict interchange intervention training (SIIT: Gupta et al. 2024, InterpBench, arXiv:2407.14494) has three losses:

    behaviour    the answer, and the other task, by cross entropy
    interchange  units of some bits take the values that they have in another text: the program's answer where these
                 bits are that text's, by cross entropy
    strictness   any other units take the values that they have in another text: the logits from before, by squares

Whether the training brought all this about is looked up in the model, before anything is scored (`trace_trained`).
"""

# B texts  T tokens  U units of a site, each W wide  K stages times bits

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from truing.targets.local.inside import Site, site_module, units

STAGES: tuple[Site, ...] = ("neuron", "head", "neuron")
"""hop, carried, answer: the kind of unit of each."""
Place = tuple[Site, int]
"""Site and layer."""
CLASSES = 4
"""Of tokens; two differ by the bits in which they do."""
Unit = tuple[Site, int, int]
"""Site, layer, index."""
Values = dict[Place, Tensor]
"""Of all units: (B, T, U * W)."""


@dataclass(frozen=True)
class Shape:
    """How large the model and its task are, how many units a bit has at each stage, and how long it is trained."""

    bits: int = 3
    layers: int = 4
    width: int = 64
    heads: int = 4
    neurons: int = 96
    units: tuple[int, int, int] = (2, 1, 4)
    fillers: int = 24
    length: int = 6
    batch: int = 64
    steps: int = 1000
    rate: float = 4e-3

    @property
    def items(self) -> int:
        """So many, and as many answers. Tokens: items, the query, fillers, answers, and how classes differ."""
        return 2**self.bits

    @property
    def query(self) -> int:
        """The last token of a text."""
        return self.items

    @property
    def first_answer(self) -> int:
        """The token of the answer 0."""
        return self.items + 1 + self.fillers

    @property
    def first_difference(self) -> int:
        """The token that says that two classes do not differ."""
        return self.first_answer + self.items

    @property
    def places(self) -> list[Place]:
        """Where there are units."""
        return [(site, layer) for layer in range(self.layers) for site in ("head", "neuron")]


@dataclass(frozen=True)
class Program:
    """The maps, classes of tokens, and which units hold a bit: by stage, then by bit."""

    first: Tensor
    second: Tensor
    classes: Tensor
    nodes: tuple[tuple[tuple[Unit, ...], ...], ...]

    def answer(self, items: Tensor, others: Tensor, taken: Tensor) -> Tensor:
        """Answers (B,) to items where marked bits (B, stages, bits) are what they are for other items."""
        hop, theirs = self.first[items], self.first[others]
        hop = mixed(mixed(hop, theirs, taken[:, 0]), theirs, taken[:, 1])
        return mixed(self.second[hop], self.second[theirs], taken[:, 2])

    def differences(self, ids: Tensor) -> Tensor:
        """How the class of each token but the first differs from that of the one before, the query's left out."""
        of = self.classes[ids[:, :-1]]
        return of[:, 1:] ^ of[:, :-1]

    def planted(self, site: Site) -> set[tuple[int, int]]:
        """Layer and index of the circuit's units of a kind."""
        return {(layer, unit) for stage in self.nodes for bit in stage for at, layer, unit in bit if at == site}


@dataclass(frozen=True)
class Trained:
    """A model, and the program that it was trained to follow."""

    model: Any
    shape: Shape
    program: Program

    @property
    def neurons(self) -> set[tuple[int, int]]:
        """Layer and index."""
        return self.program.planted("neuron")

    @property
    def heads(self) -> set[tuple[int, int]]:
        """Layer and index."""
        return self.program.planted("head")


def mixed(mine: Tensor, theirs: Tensor, taken: Tensor) -> Tensor:
    """Numbers (B,) with the marked bits (B, bits) of other numbers."""
    mask = (taken.long() << torch.arange(taken.shape[1])).sum(1)
    return (mine & ~mask) | (theirs & mask)


def draw(shape: Shape, seed: int) -> Program:
    """The program of a seed. What reads a bit stands in a later layer than what writes it, or, as neurons stand behind
    heads, in the same one.
    """
    drawn = random.Random(seed)
    maps = [torch.tensor(drawn.sample(range(shape.items), shape.items)) for _ in range(2)]
    classes = torch.tensor(drawn.choices(range(CLASSES), k=shape.first_answer))
    each = {"head": shape.heads, "neuron": shape.neurons}
    free = {(site, layer): drawn.sample(range(each[site]), each[site]) for site, layer in shape.places}
    hop = [drawn.randrange(shape.layers - 2) for _ in range(shape.bits)]
    carried = [drawn.randrange(layer + 1, shape.layers - 1) for layer in hop]
    answer = [drawn.randrange(max(carried), shape.layers) for _ in range(shape.bits)]
    nodes = tuple(
        tuple(tuple((site, layer, free[site, layer].pop()) for _ in range(count)) for layer in layers)
        for site, layers, count in zip(STAGES, (hop, carried, answer), shape.units, strict=True)
    )
    return Program(maps[0], maps[1], classes, nodes)


def texts(shape: Shape, items: Tensor, chance: torch.Generator, *, place: Tensor) -> Tensor:
    """Ids (B, T): items at these places among fillers, and the query."""
    ids = torch.randint(shape.query + 1, shape.first_answer, (len(items), shape.length + 1), generator=chance)
    ids[torch.arange(len(items)), place] = items
    ids[:, -1] = shape.query
    return ids


# -- the model with units taken from elsewhere -------------------------------------------------------------------------


def reading(made: Trained, ids: Tensor) -> tuple[Tensor, Values]:
    """Logits (B, T, V), and the values of all units."""
    seen: Values = {}

    def keep(at: Place, x: Tensor) -> Tensor:
        seen[at] = x
        return x

    with _entering(made, keep):
        return made.model(input_ids=ids, use_cache=False).logits, seen


def patched(made: Trained, ids: Tensor, theirs: Values, taken: dict[Place, Tensor]) -> Tensor:
    """Logits of the answers (B, answers) where marked units (B, U) have other values."""

    def patch(at: Place, x: Tensor) -> Tensor:
        mask = taken[at].repeat_interleave(units(made.model, at[0])[1], 1)
        return torch.where(mask[:, None], theirs[at], x)

    with _entering(made, patch):
        return answers(made, made.model(input_ids=ids, use_cache=False).logits)


def answers(made: Trained, logits: Tensor) -> Tensor:
    """Those of the answers at the query: (B, answers)."""
    return logits[:, -1, made.shape.first_answer : made.shape.first_difference]


def differences(made: Trained, logits: Tensor) -> Tensor:
    """Those of the other task at every token that has one before it: (B, T - 2, classes)."""
    return logits[:, 1:-1, made.shape.first_difference :]


@contextmanager
def _entering(made: Trained, change: Callable[[Place, Tensor], Tensor]) -> Iterator[None]:
    """What units hold goes through a function."""
    hooks = []
    for at in made.shape.places:

        def hook(_: Any, args: Any, at: Place = at) -> Any:
            return (change(at, args[0]), *args[1:])

        hooks.append(site_module(made.model, *at).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Texts, others with the item at the same place, and what is taken from these: bits of the program (B, stages,
    bits) in a first pass, units outside the circuit (B, U) in a second.
    """

    items: Tensor
    others: Tensor
    ids: Tensor
    other_ids: Tensor
    bits: Tensor
    inside: dict[Place, Tensor]
    outside: dict[Place, Tensor]


def batch(made: Trained, count: int, chance: torch.Generator) -> Batch:
    """Drawn anew; how many bits and units are taken is drawn for every text."""
    shape = made.shape
    place = torch.randint(shape.length, (count,), generator=chance)
    items, others = torch.randint(shape.items, (2, count), generator=chance)
    ids, other_ids = (texts(shape, one, chance, place=place) for one in (items, others))
    drawn = torch.rand(count, len(STAGES), shape.bits, generator=chance)
    bits = drawn < torch.rand(count, 1, 1, generator=chance)
    share = torch.rand(count, 1, generator=chance)
    inside, outside = {}, {}
    for at, members_KU in _members(made).items():
        inside[at] = bits.flatten(1).float() @ members_KU > 0
        outside[at] = (torch.rand(count, members_KU.shape[1], generator=chance) < share) & (members_KU.sum(0) == 0)
    return Batch(items, others, ids, other_ids, bits, inside, outside)


def _members(made: Trained) -> dict[Place, Tensor]:
    """Which units hold which bit: (K, U), 0 or 1."""
    found = {at: torch.zeros(len(STAGES) * made.shape.bits, units(made.model, at[0])[0]) for at in made.shape.places}
    for number, node in enumerate(bit for stage in made.program.nodes for bit in stage):
        for site, layer, unit in node:
            found[site, layer][number, unit] = 1
    return found


def losses(made: Trained, drawn: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Behaviour and interchange in nats, strictness in squared nats."""
    count, nothing = len(drawn.ids), torch.zeros_like(drawn.bits)
    ids = torch.cat([drawn.ids, drawn.other_ids])
    every, seen = reading(made, ids)
    logits, other_task = answers(made, every), differences(made, every)
    right = [made.program.answer(items, items, nothing) for items in (drawn.items, drawn.others)]
    theirs = {at: x[count:].repeat(2, 1, 1) for at, x in seen.items()}
    taken = {at: torch.cat([drawn.inside[at], drawn.outside[at]]) for at in drawn.inside}
    after = patched(made, drawn.ids.repeat(2, 1), theirs, taken)
    moved = after[count:] - logits[:count]
    return (
        cross_entropy(logits, torch.cat(right))
        + cross_entropy(other_task.flatten(0, 1), made.program.differences(ids).flatten()),
        cross_entropy(after[:count], made.program.answer(drawn.items, drawn.others, drawn.bits)),
        (moved - moved.mean(1, keepdim=True)).square().mean(),
    )


def build(seed: int = 0, shape: Shape = Shape()) -> Trained:
    """The model of a seed, trained. In one thread, so that sums are the same however many cores there are."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    try:
        made = Trained(_fresh(shape), shape, draw(shape, seed))
        _train(made, torch.Generator().manual_seed(seed))
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
    return made


def _fresh(shape: Shape) -> Any:
    config = LlamaConfig(
        vocab_size=shape.first_difference + CLASSES, hidden_size=shape.width, intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=shape.query, eos_token_id=shape.query,
        pad_token_id=shape.query, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _train(made: Trained, chance: torch.Generator) -> None:
    shape, weights = made.shape, list(made.model.parameters())
    optimizer = torch.optim.Adam(weights, shape.rate, betas=(0.9, 0.99))
    for step in range(shape.steps):
        optimizer.param_groups[0]["lr"] = shape.rate * min((step + 1) / 50, 1 - step / shape.steps)
        optimizer.zero_grad()
        sum(losses(made, batch(made, shape.batch, chance))).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    made.model.eval().requires_grad_(False)
