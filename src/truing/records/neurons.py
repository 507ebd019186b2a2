"""What neurons of a case's graph stand for, as it stands in the case's record. Texts and lists are bounded: records
come from anywhere.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from truing.records.base import Value
from truing.records.values import Quantity

MOST_LABELS, MOST_PLACES, MOST_TOKENS = 1024, 16, 16
MOST_GROUPS, MOST_MEMBERS = 64, 4096
CALLED = 60
"""Characters of a name that a target gave."""
BEFORE, TOKEN, AFTER, NAME = 60, 40, 30, 120
"""Characters of what stands before a token, of the token, of what follows, and of a supernode's name."""
Word = Annotated[str, Field(max_length=TOKEN)]
Said = Annotated[tuple[tuple[Word, float], ...], Field(max_length=MOST_TOKENS)]


class Place(Value):
    """A token of some text, what stands around it, and a neuron's activation there."""

    before: Annotated[str, Field(max_length=BEFORE)]
    token: Word
    after: Annotated[str, Field(max_length=AFTER)]
    activation: float


Places = Annotated[tuple[Place, ...], Field(max_length=MOST_PLACES)]


class Labelled(Value):
    """The label of one neuron, and how well it predicts the neuron."""

    layer: Annotated[int, Field(ge=0)]
    index: Annotated[int, Field(ge=0)]
    tokens: Said
    """Tokens at which it is other than usual, and what is expected there; what is farthest from 0 first."""
    pairs: Said
    """Pairs of tokens, at whose second it is other than its token says."""
    strongest: Places
    """Where it is largest in the texts that the label is made from."""
    weakest: Places
    """Where it is smallest, or most negative."""
    score: Quantity
    """Correlation of what the label predicts with activations on texts that it was not made from."""
    shuffled: Quantity
    """The same by the label of another neuron of the layer."""

    @property
    def unit(self) -> str:
        """The neuron's name: "layer.index"."""
        return f"{self.layer}.{self.index}"


class Called(Value):
    """What a target that was asked calls a neuron, and what that is worth. Text of unknown intent."""

    layer: Annotated[int, Field(ge=0)]
    index: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(max_length=CALLED)]
    """Empty where it gave none."""
    score: Quantity
    """Share of held-out places, half of them strong ones, that the same target sorts rightly by the name; guessing is
    1/2. An answer that is neither yes nor no counts as wrong."""
    unclear: Annotated[int, Field(ge=0)]
    """How many answers were neither."""

    @property
    def unit(self) -> str:
        """The neuron: "layer.index"."""
        return f"{self.layer}.{self.index}"


class Supernode(Value):
    """Neurons of a graph that are fed alike and feed alike."""

    name: Annotated[str, Field(max_length=NAME)]
    """Where most of their inputs come from, and what most of their outputs go to."""
    nodes: Annotated[tuple[int, ...], Field(min_length=1, max_length=MOST_MEMBERS)]
    """Places in the graph, each a neuron's."""


NeuronLabels = Annotated[tuple[Labelled, ...], Field(max_length=MOST_LABELS)]
NeuronNames = Annotated[tuple[Called, ...], Field(max_length=MOST_LABELS)]
Supernodes = Annotated[tuple[Supernode, ...], Field(max_length=MOST_GROUPS)]
