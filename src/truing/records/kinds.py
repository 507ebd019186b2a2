"""The kinds of record that flow between stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from truing.records.base import Id, Record, Sparse, Value, digest_of
from truing.records.neurons import NeuronLabels, NeuronNames, Supernodes
from truing.records.values import Blob, Estimate, Named, Quantity

Half = Literal["develop", "held-out"]
Outcome = Literal["preference", "behaviour"]
Verdict = Literal["supported", "not specific", "null", "inconclusive"]
Label = Literal["harmful", "harmless", "unclear"]


class Tool(Value):
    """A function that a model may ask for."""

    name: str
    description: str = ""
    parameters: str = '{"properties":{},"type":"object"}'
    """JSON Schema of an object, as canonical JSON."""

    @property
    def plain(self) -> dict[str, Any]:
        """The function as templates and providers are told of it."""
        said = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": said}


class ToolCall(Value):
    """A function that a model asked for, as parsed from what it wrote."""

    name: str
    arguments: str
    """Canonical JSON of an object."""
    id: str = ""
    """As the asker named it; some templates and providers need one to match a result with its call."""


class Message(Sparse):
    """One turn of a conversation."""

    later = frozenset({"calls", "call", "tool"})

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    """What an assistant turn asks for."""
    call: str = ""
    """The id of the call that a tool turn answers."""
    tool: str = ""
    """The name of the function that a tool turn answers."""


class Clause(Value):
    """One numbered rule of a spec, in plain words."""

    id: str
    title: str
    text: str


class Spec(Record):
    """Numbered clauses that predicates, pairs and claims cite."""

    kind: ClassVar[str] = "spec"

    name: str
    title: str
    clauses: tuple[Clause, ...]


class Target(Record):
    """Who was studied: the name as given, and digests of all that determines its answers."""

    kind: ClassVar[str] = "target"

    name: str
    weights: str
    """Digest of weights, configuration and the tokens that end a reply ("scripted" targets: of their rules)."""
    template: str
    """Digest of tokenizer and chat template."""
    dtype: str
    abilities: tuple[str, ...]
    adapter: Blob | None = None
    """A PEFT adapter that is merged into the weights of the parent."""
    adapter_config: str = ""
    """Canonical JSON of the adapter's settings that differ from PEFT's defaults."""


class Decision(Value):
    """One rule for what is decided: actions A against alternatives B, and how log-probabilities are normalised.

    Its value in a context is mean over A of s(a) minus mean over B of s(b), in nats per token, where s(c) is the
    mean log-probability per token of c after the context, minus that of c after `prior` (a content-free prompt).
    Positive: the model leans to A. The prior cancels in every difference between contexts.
    """

    actions: tuple[str, ...]
    alternatives: tuple[str, ...]
    normalise: Literal["token"] = "token"
    prior: tuple[Message, ...] = ()


class Case(Value):
    """One surface at one setting of the factors, as the target sees it."""

    cell: str
    """Factor settings, "threat=present leverage=absent"."""
    messages: tuple[Message, ...]
    segments: tuple[tuple[str, str], ...]
    """The last user turn as labelled parts, in order; joined they are its text."""


class Surface(Value):
    """One wording of one plot: its cases share actions, names and wording, and differ in the factors alone."""

    plot: str
    """The cluster that statistics are taken over."""
    name: str
    half: Half
    decision: Decision
    cases: tuple[Case, ...]
    says: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Word lists that classify a free reply, by label."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A changed copy, with a digest of its own: what was computed of this one is not taken along."""
        del deep  # values are frozen: nothing to copy deeply
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | dict(update or {}))

    @cached_property
    def digest(self) -> Id:
        """SHA-256 of the surface's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


class Contrast(Value):
    """A difference between cells: mean of the plus terms minus mean of the minus terms, summed term by term.

    Each term is a partial setting ("threat=present leverage=present"), averaged over the factors it does not name.
    """

    name: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]


class Surfaces(Record):
    """What will be asked, word for word: the surfaces of a family that one design is over."""

    kind: ClassVar[str] = "surfaces"

    family: str
    half: Half | Literal["both"]
    wordings: str
    """Which wordings of the content were used: "develop" or "held-out"."""
    surfaces: tuple[Surface, ...]


class Design(Record, Sparse):
    """What will be measured, written down and hashed before anything runs. Parent: its surfaces."""

    kind: ClassVar[str] = "design"
    later = frozenset({"rules"})

    family: str
    clause: str
    question: str
    half: Half | Literal["both"]
    wordings: str
    """Which wordings of the content were used: "develop" or "held-out"."""
    naive: Contrast
    """What a single-factor reading would report."""
    specific: Contrast
    """The estimand of the claim: the effect beyond its control."""
    controls: tuple[Contrast, ...]
    bound_preference: float
    """Smallest effect of interest, nats per token."""
    bound_behaviour: float
    """Smallest effect of interest, probability."""
    level: float
    surfaces: tuple[Id, ...]
    """Digests of the surfaces, in order."""
    rules: str = ""
    """Digest of all that episodes are played and judged by, where there are any: plots, factors, tools, families."""


class Row(Value):
    """The decision in one case."""

    cell: str
    value: float
    """Nats per token, prior subtracted."""
    actions: tuple[float, ...]
    """Mean log-probability per token of each action, prior not subtracted."""
    alternatives: tuple[float, ...]


class Scores(Record):
    """One unit of scoring: all cases of one surface."""

    kind: ClassVar[str] = "scores"

    target: Id
    plot: str
    surface: str
    digest: Id
    """Digest of the surface that was scored."""
    rows: tuple[Row, ...]
    tokens: int
    """Tokens that went through the model."""


class Said(Value):
    """A free reply in one case, and the class a predicate gave it, with the span that decided."""

    surface: str
    cell: str
    reply: str
    outcome: str
    span: str = ""


class Replies(Record):
    """One unit of generation."""

    kind: ClassVar[str] = "replies"

    target: Id
    plot: str
    rows: tuple[Said, ...]
    tokens: int
    redactions: int = 0
    """Secrets replaced by pattern before storing."""


class Turn(Record, Sparse):
    """One reply to one prompt, so that no call of a target is ever made twice."""

    kind: ClassVar[str] = "turn"
    later = frozenset({"read"})

    target: Id
    prompt: Id
    """Digest of the conversation, the tools, and the most tokens of a reply."""
    epoch: int
    text: str
    calls: tuple[ToolCall, ...]
    tokens: int
    finished: bool
    unparsed: bool
    refused: bool
    redactions: int = 0
    """Secrets replaced by pattern before storing."""
    read: int | None = None
    """Tokens of the prompt, where the provider said."""


class Deed(Value):
    """A call that was made in an episode, and what came of it."""

    turn: int
    tool: str
    arguments: tuple[tuple[str, str], ...]
    ok: bool
    """Whether it was carried out."""
    result: str


class Played(Value):
    """One episode: a cell, what was done in it, and the class that predicates gave it."""

    cell: str
    ending: str
    stage: str
    """How far harm went: considered, drafted, executed, or "" where there was none."""
    clause: str = ""
    """The clause that the deciding call broke or kept."""
    span: str = ""
    """The text that it was judged by."""
    why: str = ""
    deeds: tuple[Deed, ...]
    said: tuple[str, ...]
    """What the agent wrote besides calls."""
    answer: str = ""
    """What it answered when it was asked about the situation."""
    tokens: int


class Episodes(Record):
    """The episodes of one surface of a plot."""

    kind: ClassVar[str] = "episodes"

    target: Id
    family: str
    plot: str
    surface: str
    rows: tuple[Played, ...]
    epoch: int = 1
    rules: Id
    """Digest of all that they were played and judged by."""
    way: tuple[tuple[str, int], ...]
    """Turns, the most tokens of a reply, and whether comprehension was asked for."""
    judge: str = ""
    """Id of the judge's target; "" where words decided."""


class Stratum(Value):
    """Episodes of one class, by one target in one family, and how many of them were drawn to be read."""

    target: Id
    family: str
    ending: str
    size: int
    drawn: int
    probability: float
    """That an episode of it was drawn: drawn / size."""


class Drawn(Value):
    """An episode that is to be read."""

    id: str
    """The name that its reader knows it by. It tells nothing."""
    episodes: Id
    row: int
    """Its place in that record, counted from 0."""
    digest: Id
    """Of all that its reader is shown."""


class Sample(Record):
    """Episodes drawn at random, to be read by people. Parents: all episodes that they were drawn from."""

    kind: ClassVar[str] = "sample"

    seed: int
    strata: tuple[Stratum, ...]
    items: tuple[Drawn, ...]
    """In the order in which they are read, which is random."""


class Labels(Record):
    """What one reader says of a sample, in its order; of its beginning where not all was read. Parent: the sample."""

    kind: ClassVar[str] = "labels"

    sample: Id
    reader: str
    labels: tuple[tuple[str, Label], ...]
    """Item and label."""


class Standing(Record):
    """How much harm a target does in a family of company plots, or leans to. Parents: the target, and the evidence."""

    kind: ClassVar[str] = "standing"

    target: Id
    family: str
    clause: str
    outcome: Outcome
    harm: Quantity
    """Where the means are there: probability, undecided episodes counted as harmless; or nats per token."""
    control: Quantity
    """The same where the means are absent."""
    worst_case: tuple[float, float] | None
    """Harm if every undecided episode was harmless, and if every one was harmful (behaviour only)."""
    competence: Quantity
    """How well it does where no harm can be: the share of episodes that ended well. Of preferences: the share of
    questions about the situation to which it prefers the right answer."""
    by_plot: tuple[tuple[str, float, float], ...]
    """Plot, and harm with undecided episodes as harmless and as harmful."""
    classes: tuple[tuple[str, int], ...]
    effort: tuple[tuple[str, int], ...]
    """How hard it was tried to see harm: turns, most tokens of a reply, epochs; cells; tokens that it wrote or read."""


class Grid(Record):
    """Many targets beside each other. Parents: their standings, and their claims."""

    kind: ClassVar[str] = "grid"

    targets: tuple[tuple[str, Id], ...]
    """Names as they were given, and cards; in the order of the file."""
    options: tuple[tuple[str, str], ...]
    """What targets were loaded with, by name, as canonical JSON: part of how hard it was tried to see harm."""
    standings: tuple[Id, ...]
    ties: tuple[tuple[Id, str], ...]
    """Letters by standing: in one family and outcome, those that share one do not differ. `a` is most harm."""
    capability: tuple[tuple[Id, float], ...]
    """By target, what harm is regressed on."""
    capability_from: str
    """Where that comes from: "given", or "competence"."""
    slopes: tuple[Named, ...]
    """Harm on capability over targets, by family and outcome."""
    failed: tuple[tuple[str, str], ...]
    """Targets that could not be audited, and why."""


class Claim(Record, Sparse):
    """A spec clause, an estimand, its controls, its evidence and a verdict."""

    kind: ClassVar[str] = "claim"
    later = frozenset({"effect", "labels", "p_equivalence"})

    family: str
    clause: str
    outcome: Outcome
    statement: str
    design: Id
    target: Id
    naive: Quantity
    specific: Quantity
    controls: tuple[Named, ...]
    bound: float
    """Smallest effect of interest, in the unit of the estimate."""
    p: float | None
    p_holm: float | None
    minimum_detectable: float | None
    """Effect that this design finds with 80% power."""
    classes: tuple[tuple[str, int], ...]
    """Outcome classes of the evidence, failures included, with counts."""
    by_plot: tuple[tuple[str, float, float], ...] = ()
    """Plot, its naive and its specific contrast: the cluster means that the intervals are taken over."""
    worst_case: tuple[float, float] | None = None
    """Bounds on the specific contrast if every undecided reply went one way or the other (behaviour only)."""
    verdict: Verdict
    why: str
    effect: str = ""
    """The level or interaction whose effect it is, "threat=replacement", where a family is for several."""
    p_equivalence: float | None = None
    """That the specific effect lies within the bound on either side (TOST); of claims that name an effect."""
    labels: Id | None = None
    """The labels by which the verdicts on its episodes were corrected; None where they stand as the machine gave them.
    """


class Pair(Sparse):
    """A prompt with a chosen and a rejected continuation."""

    later = frozenset({"text"})

    plot: str
    surface: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    role: Literal["fix", "keep"]
    """`fix` pairs train the behaviour out; `keep` pairs guard what must not be lost."""
    text: str = ""
    """A plain text that the replies go on from, where there are no messages."""


class Pairs(Record, Sparse):
    """Preference pairs made from a claim, or read from a file."""

    kind: ClassVar[str] = "pairs"
    later = frozenset({"source"})

    clause: str
    """The clause of the spec that they train for; "" where nobody said."""
    pairs: tuple[Pair, ...]
    source: str = ""
    """Name of the file that they were read from."""


class Step(Sparse):
    """One optimiser step."""

    later = frozenset({"drift", "held", "reward", "kl", "cut"})

    step: int
    loss: float
    margin: float | None
    """Mean over pairs of the implicit reward margin beta * (chosen - rejected log-ratio); None without a reference."""
    chosen: float
    """Mean log-probability of the chosen continuations, nats (summed over tokens)."""
    rejected: float | None
    """The same of the rejected; None where only the chosen are looked at."""
    grad_norm: float
    drift: float | None = None
    """Mean log-ratio of policy and reference of the chosen continuations, nats; below 0 they became less likely."""
    held: float | None = None
    """The mean loss of the pairs that are held out, after the step; at the end of a unit of work alone."""
    reward: float | None = None
    """Mean reward of the replies that were written in the step, in standard deviations of those to the pairs, less what
    is taken off where one was cut off."""
    kl: float | None = None
    """KL(policy || reference), nats. Where replies were written: a reply, estimated on these (before the step). Else a
    token, exact over the vocabulary, on chosen replies; at the end of a unit of work alone."""
    cut: float | None = None
    """Share of the replies written that were cut off at the most tokens."""


class Training(Record, Sparse):
    """A finished (or, as a checkpoint, an unfinished) training run."""

    kind: ClassVar[str] = "training"
    later = frozenset({"truncated"})

    method: str
    target: Id
    settings: tuple[tuple[str, float | int | str], ...]
    pairs: Id
    steps: tuple[Step, ...]
    state: Blob
    """Adapter (finished) or adapter and optimiser state (checkpoint), as safetensors."""
    finished: bool
    truncated: int | None = None
    """Pairs whose prompts lost their beginning, to be within `max_length`."""


class Arrays(Record):
    """One unit of numbers too large for a record, named by a blob."""

    kind: ClassVar[str] = "arrays"

    name: str
    target: Id
    plot: str
    cases: tuple[str, ...]
    numbers: tuple[tuple[str, float], ...] = ()
    blob: Blob | None = None


class Unit(Value):
    """A part of the model that is patched as one: an attention head or an MLP neuron."""

    kind: Literal["head", "neuron"]
    layer: int
    index: int
    score: float
    """Attribution to the effect, nats per token, on the twins that units were chosen on; positive carries it."""
    held: float
    """The same on the twins that they were tested on."""


class Mediation(Sparse):
    """Share of the effect that patching K units removes, and the share that they bring back, on held-out twins."""

    later = frozenset({"restored", "of", "beyond", "beyond_restored"})

    kind: Literal["head", "neuron"]
    choice: Literal["attribution", "random", "largest change", "activation size", "shuffled", "another effect"]
    k: int
    draws: int = 1
    """Choices that the share is averaged over."""
    share: Quantity
    """In the first cell, with the units' values of the second: what goes."""
    restored: Quantity | None = None
    """In the second cell, with the units' values of the first: what comes. Of one draw; in older records not
    measured, or not of trivial choices."""
    of: str = ""
    """The other effect whose units these are: of the ordinary ones, that which the chosen units exceed least in what
    goes; where there are two, the second is that of what comes. Of one twin of each plot."""
    beyond: Quantity | None = None
    """By how much more goes than by units of that effect, twin by twin; of units by attribution that hold otherwise."""
    beyond_restored: Quantity | None = None
    """By how much more comes than by units of the ordinary effect that comes closest on the way back."""


class Node(Value):
    """A node of the effect graph."""

    id: str
    kind: Literal["input", "neuron", "rest", "bias", "output"]
    """bias: all biases and added numbers together, which stand in no segment of the text."""
    layer: int
    """-1 for inputs and biases; the number of layers for the output."""
    segment: str
    index: int = -1
    value: float
    """Mean difference of the node's value between twins."""
    contribution: float
    """Mean direct contribution to the effect, in the unit of the output."""


class Edge(Value):
    """Mean difference, between twins, of what source adds to target."""

    source: str
    target: str
    weight: float


class Graph(Record, Sparse):
    """Which parts of the model carry an effect, and the causal check."""

    kind: ClassVar[str] = "graph"
    later = frozenset({"rule"})

    target: Id
    claim: Id | None
    """None where an effect is traced that nobody audited."""
    twins: tuple[str, str]
    """The two cells whose difference is traced."""
    aligned: int
    """Twins used."""
    skipped: int
    """Twins left out because their tokens do not align."""
    partly: int = 0
    """Twins that align at their beginning and end alone: what differs between them was not patched."""
    effect: Quantity
    """Decision in the first cell minus the second, held-out twins."""
    closure_error: float
    """Largest |sum of contributions - value| over the sum of absolute contributions. Accounting, not faithfulness.
    Above 1e-4 there are no nodes and edges, and `why` says so."""
    segments: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    units: tuple[Unit, ...]
    mediated: tuple[Mediation, ...]
    verdict: Literal["supported", "weak", "refuted", "inconclusive"]
    why: str
    rule: str = ""
    """What units were scored by, where it was not relp."""


class Curve(Value):
    """What is left of a decision when all but the first k nodes, by some order, are ablated; or those k alone."""

    name: Literal["faithfulness", "completeness"]
    """faithfulness: the k are kept; completeness: they are ablated and the others kept. 1 is the whole decision, 0 what
    is left when all are ablated."""
    ablation: Literal["zero", "mean", "counterfactual"]
    choice: str
    """What the order is by: "attribution", "influence", "activation", "random"."""
    points: tuple[tuple[int, float], ...]
    """k, and the share."""


ROUNDING = 1e-4
"""Sums in fp32 over all paths may be off by so much of what is summed before that is said."""


class CaseGraph(Record, Sparse):
    """What carries one decision in one context: an attribution graph, for illustration, with causal checks.

    One case has no interval: it is not evidence for a claim.
    """

    kind: ClassVar[str] = "case"
    later = frozenset({"biases", "labels", "labelled_from", "supernodes", "names", "named_by"})

    target: Id
    claim: Id | None
    """The claim that it illustrates."""
    tokens: tuple[str, ...]
    """Texts of the nodes of the tree: the prompt, then the continuations."""
    before: tuple[int, ...]
    """The node before each; -1 for the first."""
    segments: tuple[str, ...]
    """A label for each: the turn, or the span, that it is in."""
    prompt: int
    """How many tokens belong to the prompt."""
    actions: tuple[str, ...]
    alternatives: tuple[str, ...]
    value: float
    """The decision, nats per token."""
    accounted: float
    """What contributions add up to: the decision and the entropies of the frozen distributions, nats per token."""
    inputs: tuple[float, ...] = ()
    """What each token adds to that by all paths, through neurons too; with biases, and errors of dictionaries, they sum
    to it. Nats per token."""
    biases: float = 0.0
    """What biases and constants add to it by all paths."""
    rule: Literal["relp", "gate-frozen"]
    basis: str
    """What nodes are: "neurons", or "features of transcoders (name, digest)"; nodes are of kind neuron either way."""
    layers: int
    selected: int
    """Neurons, or features, in the graph before pruning."""
    candidates: int
    """Neurons, or features, that there are, at all places."""
    closure_error: float
    """Largest |sum of inputs - value| over the sum of absolute inputs, of all nodes. Accounting, not faithfulness."""
    replacement: float
    completeness: float
    """Both before pruning, 0 to 1; remainders count as error."""
    kept: tuple[float, float]
    """Shares of the influence that nodes, and edges, were pruned to."""
    graph: Blob
    """The pruned graph, see `Circuit`."""
    writes: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()
    """Of neurons, by "layer.index": the tokens that they make likelier where they are positive, and those less likely,
    by what they write alone (logit lens)."""
    labels: NeuronLabels = ()
    """Of the neurons with the most influence: where they are strongest, and how well that predicts them."""
    labelled_from: Id | None = None
    """SHA-256 of the texts that labels were made from and tested on, as canonical JSON."""
    names: NeuronNames = ()
    """What a target calls the first of them, and whether others can be told by that."""
    named_by: Id | None = None
    """That target."""
    supernodes: Supernodes = ()
    """Neurons of the pruned graph that are fed alike and feed alike; none is in two."""
    curves: tuple[Curve, ...] = ()
    checks: tuple[Named, ...] = ()
    verdict: Literal["supported", "weak", "refuted", "inconclusive"]
    why: str

    def by_turn(self) -> tuple[tuple[str, float], ...]:
        """What turns add to what is accounted for by all paths, in their order, and what is in none; they sum to it.
        Nothing where the case does not say what its tokens add.
        """
        if len(self.inputs) != len(self.segments):
            return ()
        found: dict[str, float] = {}
        for segment, total in zip(self.segments, self.inputs, strict=True):
            found[segment] = found.get(segment, 0.0) + total
        rest = self.accounted - sum(self.inputs) - self.biases
        if self.biases:
            found["biases"] = self.biases
        if self.unit == "feature":  # errors are sources that pass nothing on
            found["what no feature stands for"] = rest
        elif abs(rest) > ROUNDING * sum(map(abs, self.inputs)):
            found["rounding"] = rest
        return tuple(found.items())

    def unlabelled(self, parents: tuple[Id, ...] = ()) -> CaseGraph:
        """The case without what its neurons stand for, which is added and changes nothing in it."""
        named = {"labels": (), "labelled_from": None, "names": (), "named_by": None, "supernodes": ()}
        return self.model_copy(update={**named, "parents": parents})

    @property
    def unit(self) -> Literal["neuron", "feature"]:
        """What its nodes of kind neuron are."""
        return "neuron" if self.basis == "neurons" else "feature"


BY_LAYER = "decision by layer"
"""Name of a measurement beside a case: quantity "layer 3" is the decision as a lens reads it after layer 3."""


class Measurement(Record):
    """Quantities about one target or a pair of targets (before, after)."""

    kind: ClassVar[str] = "measurement"

    name: str
    targets: tuple[Id, ...]
    quantities: tuple[Named, ...]
    note: str = ""


GateVerdict = Literal["gone within budget", "hidden", "not fixed", "undecided"]


class Gate(Record, Sparse):
    """Whether a behaviour that a model had is gone from another that was made of it, or only hidden."""

    kind: ClassVar[str] = "gate"
    later = frozenset({"inside"})

    behaviour: str
    clause: str
    before: Id
    after: Id
    control: Id | None
    """A model that was trained alike without the behaviour; None: nothing is taken off."""
    budget: tuple[tuple[str, float], ...]
    """What the verdict stands on: how much was tried to bring the behaviour back, and the margins."""
    direct: tuple[Named, ...]
    """The behaviour on held-out cases: before, after, their difference, and how far it is above the control."""
    probes: tuple[Named, ...]
    """By each way to bring it back: how much more of it there is than in the control."""
    cost: tuple[Named, ...]
    """Where it must not show, ordinary text, divergence on ordinary requests."""
    inside: tuple[Named, ...] = ()
    """What is left of its path inside. Nothing calibrates that: no verdict rests on it. Empty where nobody looked."""
    verdict: GateVerdict
    harmed: tuple[str, ...] = ()
    """What got worse beyond its margin, in words."""
    why: str


class Answer(Record, Sparse):
    """What a player says about a sealed target."""

    kind: ClassVar[str] = "answer"
    later = frozenset({"wall_seconds", "loop_cpu_seconds", "carried"})

    game: Id
    number: int
    player: str
    seed: int
    target: Id
    score: float
    """The more, the more likely is something wrong; only the order counts."""
    chance: Annotated[float, Field(ge=0, le=1)]
    """Probability that something is wrong."""
    clause: str = ""
    """The clause that is broken, if the player dares to say."""
    trigger: str = ""
    """Where it shows, in words of a prompt."""
    mechanism: str = ""
    """The verdict of the trace, where there was one."""
    gate: str = ""
    """The verdict of the gate on the player's own fix, where there was one."""
    fixed: Blob | None = None
    """The adapter of that fix."""
    carried: str = ""
    """The clause of the claim that was fixed, and that the gate was asked about."""
    tokens: int
    """Tokens that the target computed."""
    cpu_seconds: float
    """What the guess took, without the loop. A measurement: another run gives another."""
    wall_seconds: float | None = None
    """The same by the clock on the wall."""
    loop_cpu_seconds: float | None = None
    """What the loop took, where there was one, beyond what had been computed for the answer."""


class Loop(Record, Sparse):
    """One turn of the wheel: what it found, carried on, changed. Its ancestors are the evidence."""

    kind: ClassVar[str] = "loop"
    later = frozenset({"judged"})

    target: Id
    claims: tuple[Id, ...]
    claim: Id | None
    why: str
    before: tuple[Named, ...] = ()
    after: tuple[Named, ...] = ()
    runout: tuple[Named, ...] = ()
    retention: tuple[Named, ...] = ()
    relearning: tuple[Named, ...] = ()
    graph: Id | None = None
    fixed_graph: Id | None = None
    training: Id | None = None
    gate: Quantity
    """How much of the behaviour is left on held-out cases above the control, or above nothing where there is none."""
    judged: Id | None = None
    """The gate's record, with its verdict."""
    failed: tuple[str, ...] = ()
    """What the fix was meant to reach and did not, in words."""


_ALL: tuple[type[Record], ...] = (
    Spec,
    Target,
    Surfaces,
    Design,
    Scores,
    Replies,
    Turn,
    Episodes,
    Sample,
    Labels,
    Standing,
    Grid,
    Claim,
    Pairs,
    Training,
    Arrays,
    Graph,
    CaseGraph,
    Measurement,
    Gate,
    Answer,
    Loop,
)
KINDS: dict[str, type[Record]] = {record.kind: record for record in _ALL}

__all__ = [
    "KINDS", "Answer", "Arrays", "Case", "CaseGraph", "Claim", "Clause", "Contrast", "Curve", "Decision", "Deed",
    "Design", "Drawn", "Edge", "Episodes", "Estimate", "Gate", "GateVerdict", "Graph", "Grid", "Half", "Label",
    "Labels", "Loop", "Measurement", "Mediation", "Message", "Named", "Node", "Outcome", "Pair", "Pairs", "Played",
    "Replies", "Row", "Said", "Sample", "Scores", "Spec", "Standing", "Step", "Stratum", "Surface", "Surfaces",
    "Target", "Tool", "ToolCall", "Training", "Turn", "Unit", "Verdict",
]  # fmt: skip
