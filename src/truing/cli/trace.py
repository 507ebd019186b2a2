"""`truing trace`: EXPLAIN."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import Progress, emit, existing, json_option, number, seed_option, store_option
from truing.cli.trace_lines import lens_body, lens_lines, probe_lines
from truing.cli.trace_options import check_read
from truing.errors import UsageError
from truing.files import check_folder

if TYPE_CHECKING:
    from truing.records import Called, CaseGraph, Circuit, Graph, Message, Target

SHOWN = 10
HEADLINES = (
    "faithfulness",
    "attribution and exact effect, Pearson",
    "influence and size",
    "activation and size of exact",
    "p among shams",
    "overlap",
    "rank correlation",
)
"""Checks that are shown in lines; all of them are in the JSON and in the report."""
RULES = ("relp", "gate-frozen", "gradient", "integrated-gradients")
MOST_TURNS = 10_000_000
"""Bytes of a transcript."""


@click.command(
    "trace",
    epilog='Example:  truing trace --prompt "Is it safe?" --action " Yes" --instead " No"',
    short_help="EXPLAIN.",
)
@click.argument("claim", required=False)
@click.option("--prompt", help="Trace one decision: what the user says. A single case is an illustration.")
@click.option("--system", default="", help="What the system turn says, before the prompt.")
@click.option(
    "--action", "actions", multiple=True, help="A reply that the decision is for. May be given several times."
)
@click.option("--instead", multiple=True, help="A reply that it is against. May be given several times.")
@click.option(
    "--transcript", type=click.Path(path_type=Path),
    help="Trace what was written (--span), or what comes next (--action, --instead):"
    ' a JSON list of {"role", "content"}.',
)  # fmt: skip
@click.option("--span", "spans", multiple=True, help="Words of the transcript to explain. May be given several times.")
@click.option("--target", "name", default="local/smollm2-135m", show_default=True, help="Model of a case, or organism.")
@click.option(
    "--against", metavar="PROMPT|FILE",
    help="A prompt (or transcript) of as many tokens, for counterfactual ablation: the case as it is not.",
)  # fmt: skip
@click.option(
    "--paraphrase", "paraphrases", multiple=True, metavar="PROMPT|FILE",
    help="The prompt (or transcript) in other words: is the graph the same?",
)  # fmt: skip
@click.option("--full", is_flag=True, help="Ablate every neuron of a case's graph by itself, not a sample of 64.")
@click.option("--no-check", is_flag=True, help="Only the accounts of a case: no ablation, and no verdict.")
@click.option("--no-labels", is_flag=True, help="Do not say what a case's neurons stand for: no labels, no supernodes.")
@click.option(
    "--named-by", metavar="TARGET",
    help="A target that is asked for short names of the ten neurons with the most influence. It is sent what their"
    " labels are made from: texts that ship with Truing and replies in the store.",
)  # fmt: skip
@click.option("--neurons", type=click.IntRange(1), default=512, show_default=True, help="Neurons in a case's graph.")
@click.option(
    "--dictionary", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="A case's graph in features: transcoders or SAEs in circuit-tracer's or SAELens' layout.",
)  # fmt: skip
@click.option("--lens", is_flag=True, help="Read a case's decision after each layer too: where does it form?")
@click.option("--probe", is_flag=True, help="Does the inside tell the two cells of CLAIM apart, in plots left out?")
@click.option(
    "--rule", type=click.Choice(RULES), default="relp", show_default=True,
    help="What units are scored by; a case takes the first two, under which accounts close.",
)  # fmt: skip
@click.option(
    "--diff", nargs=2, metavar="A B",
    help="What is different inside two models over the cases of CLAIM; the same twice: between its cells.",
)  # fmt: skip
@click.option(
    "--cells", nargs=2, metavar="A B",
    help="Of a CLAIM about company plots: between these settings, such as cue=test cue=real, not the claim's own.",
)  # fmt: skip
@click.option(
    "--planted", metavar="RECIPE",
    help="Trace what carries a planted behaviour in --target, an organism: a recipe by name, or its file.",
)  # fmt: skip
@click.option(
    "--export", type=click.Choice(["truing", "neuronpedia"]),
    help="Write a case's graph to --out: as a pair of files, or for Neuronpedia and circuit-tracer.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("graph.json"), show_default=True, help="For --export."
)
@click.option("--scan", default="", help="The model's name on Neuronpedia, for --export neuronpedia.")
@seed_option
@store_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    claim: str | None,
    prompt: str | None,
    system: str,
    actions: tuple[str, ...],
    instead: tuple[str, ...],
    transcript: Path | None,
    spans: tuple[str, ...],
    against: str | None,
    paraphrases: tuple[str, ...],
    full: bool,
    no_check: bool,
    no_labels: bool,
    named_by: str | None,
    name: str,
    neurons: int,
    dictionary: Path | None,
    lens: bool,
    probe: bool,
    rule: str,
    diff: tuple[str, str] | None,
    cells: tuple[str, str] | None,
    planted: str | None,
    export: str | None,
    out: Path,
    scan: str,
    seed: int,
    store_path: Path,
    as_json: bool,
) -> int:
    """Trace the effect of CLAIM (an id, or its first digits), or one decision.

    Of a claim: which heads and neurons carry the effect. They are chosen on one half of the plots; on the other half
    they are patched from the twin, beside random units, largest changes and activations, and a shuffled explanation.

    Of a planted behaviour (--planted): what carries the effect of its trigger. With --diff: what is different inside
    two models over the cases of CLAIM. With --probe: whether linear probes tell its cells apart.

    Of one decision (--action, --instead) after a --prompt or a --transcript, or of what was written (--transcript,
    --span): a graph of what adds to what, whose accounts close. It is an illustration: one case has no interval.
    """
    mode = _check_one({"CLAIM": claim, "--prompt": prompt, "--transcript": transcript, "--planted": planted})
    _check_together(claim, diff=bool(diff), probe=probe)
    mode = "--diff" if diff else "--probe" if probe else mode
    # Labels are of neurons, and those of features have none.
    check_read(ctx, mode, checked=not no_check, labelled=not (no_labels or dictionary), export=export)
    if export:
        _check_out(export, out)
    between: dict[str, Any] = {"seed": seed, "cells": cells}
    if claim and (diff or probe):
        return _measured(claim, diff, store_path, between, as_json=as_json)
    if claim:
        return _claim(claim, store_path, {**between, "tracing": {"rule": rule}}, as_json=as_json)
    if planted:
        return _planted(name, planted, store_path, {"seed": seed, "rule": rule}, as_json=as_json)
    _check_decided(mode, actions, instead, spans)
    turns = _turns if transcript else partial(_asked, system)
    told = Asked(
        turns(str(transcript or prompt)), spans or actions, None if spans else instead,
        None if against is None else turns(against), tuple(map(turns, paraphrases)), not no_labels, named_by,
    )  # fmt: skip
    settings = {"neurons": neurons, "rule": rule, "seed": seed, "full": full, "check": not no_check}
    inside = Inside(dictionary, lens)
    files = Files(export, out, scan) if export else None
    return _case(name, told, store_path, settings, files, inside, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Asked:
    """A case as it was asked for: actions against alternatives; or (None) spans of what was written."""

    messages: tuple[Message, ...]
    actions: tuple[str, ...]
    instead: tuple[str, ...] | None
    against: tuple[Message, ...] | None
    paraphrases: tuple[tuple[Message, ...], ...]
    labelled: bool
    """Whether its neurons are."""
    namer: str | None
    """Who is asked to name them."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What else of a case's inside was asked for: features in the place of neurons, and the decision by layer."""

    dictionary: Path | None
    lens: bool


@dataclass(frozen=True, slots=True)
class Files:
    """As what a case's graph is written, and where."""

    what: str
    out: Path
    scan: str
    """The model's name on Neuronpedia; "" for the target's id."""


def _claim(claim: str, store_path: Path, settings: dict[str, Any], *, as_json: bool) -> int:
    from truing.studies.one import traced

    progress = Progress()
    with existing(store_path) as store, progress.running():
        graph = traced(claim, store, watcher=progress, **settings)
    emit(graph.plain()["body"] | {"id": graph.id}, as_json=as_json, lines=_lines(graph))
    return 0


def _measured(
    claim: str, diff: tuple[str, str] | None, store_path: Path, settings: dict[str, Any], *, as_json: bool
) -> int:
    """What two models differ in over a claim's cases; without them, whether probes tell its cells apart."""
    from truing.studies.one import differing, probed

    progress = Progress()
    with existing(store_path) as store, progress.running():
        if diff:
            measured = differing(claim, diff, store, watcher=progress, **settings)
        else:
            measured = probed(claim, store, watcher=progress, **settings)
    body = measured.plain()["body"]
    lines = _difference_lines(body, measured.id) if diff else probe_lines(measured)
    emit(body | {"id": measured.id}, as_json=as_json, lines=lines)
    return 0


def _planted(name: str, said: str, store_path: Path, settings: dict[str, Any], *, as_json: bool) -> int:
    from truing.store import open_store
    from truing.studies.carrying import carried
    from truing.trace import Settings

    progress = Progress()
    with open_store(store_path) as store, progress.running():
        graph = carried(name, said, store, settings=Settings(**settings), watcher=progress)
    emit(graph.plain()["body"] | {"id": graph.id}, as_json=as_json, lines=_lines(graph))
    return 0


def _case(
    name: str,
    asked: Asked,
    store_path: Path,
    settings: dict[str, Any],
    export: Files | None,
    inside: Inside,
    *,
    as_json: bool,
) -> int:
    from truing.records import circuit_of
    from truing.store import open_store
    from truing.studies.reading import reading
    from truing.targets import need, resolve
    from truing.targets.local import LocalTarget
    from truing.trace import CaseSettings, Naming, read_features, trace_case
    from truing.trace.by_layer import beside as kept_beside
    from truing.trace.by_layer import by_layer
    from truing.trace.dictionaries import check_layout

    progress, chosen = Progress(), CaseSettings(**settings)
    if inside.dictionary:
        check_layout(inside.dictionary)
    with open_store(store_path) as store, progress.running():
        target = resolve(name, progress)
        need(target, "Scored")
        if not isinstance(target, LocalTarget):
            raise UsageError(f"{name} has no inside that can be read; give a target local/...")
        namer = resolve(asked.namer, progress) if asked.namer else None
        if namer:
            need(namer, "Chat")
        features = read_features(inside.dictionary, target.model) if inside.dictionary else None
        context, beside = _laid_out(target, asked)
        naming = Naming(reading(store), seed=chosen.seed) if asked.labelled else None
        values = by_layer(target, context.functional) if inside.lens else []
        case = trace_case(
            target, context, store, beside=beside, settings=chosen, features=features, naming=naming, namer=namer,
            watcher=progress,
        )  # fmt: skip
        read = kept_beside(target, values, case, store) if inside.lens else None
        data = store.blob_bytes(case.graph)
    circuit = circuit_of(case, data)
    files = _exported(case, target.card, data, export) if export else ()
    said = ({"files": [str(file) for file in files]} if export else {}) | ({"lens": lens_body(read)} if read else {})
    lines = [*_case_lines(case, circuit), *(lens_lines(read) if read else ()), *(f"wrote     {file}" for file in files)]
    emit(case.plain()["body"] | {"id": case.id} | said, as_json=as_json, lines=lines)
    return 0


def _laid_out(target: Any, asked: Asked) -> tuple[Any, Any]:
    """The decision in its context, and in the others."""
    from truing.trace import Beside, between, written

    def laid(messages: tuple[Message, ...]) -> Any:
        if asked.instead is None:
            return written(target, messages, asked.actions)
        return between(target, messages, asked.actions, asked.instead)

    twin = None if asked.against is None else laid(asked.against)
    return laid(asked.messages), Beside(twin, tuple(map(laid, asked.paraphrases)))


def _exported(case: CaseGraph, card: Target, data: bytes, files: Files) -> tuple[Path, ...]:
    """Write a graph, and give the files."""
    from truing.records import circuit_of
    from truing.share.graphs import write_case, write_neuronpedia

    if files.what == "truing":
        return write_case(files.out, case, card, data)
    write_neuronpedia(files.out, case, circuit_of(case, data), scan=files.scan)
    return (files.out,)


def _check_out(what: str, out: Path) -> None:
    """What would keep a graph from being written, before anything is traced."""
    if what == "truing":
        from truing.share.graphs import beside

        beside(out)
    check_folder(out.absolute().parent)


def _check_one(said: dict[str, object]) -> str:
    given = [what for what, one in said.items() if one]
    if len(given) != 1:
        raise UsageError(
            f"give one of {', '.join(said)}; given: {', '.join(given) or 'none'}."
            " `truing store ls --kind claim` lists claims."
        )
    return given[0]


def _check_together(claim: str | None, *, diff: bool, probe: bool) -> None:
    if diff and not claim:
        raise UsageError("--diff compares over the cases of a claim; give one")
    if probe and (diff or not claim):
        raise UsageError("--probe tells the two cells of a claim apart; give a claim, and no --diff")


def _check_decided(mode: str, actions: Sequence[str], instead: Sequence[str], spans: Sequence[str]) -> None:
    if spans and (actions or instead):
        raise UsageError("give --span, for words that were written, or --action and --instead, for what comes next")
    if mode == "--transcript" and not (spans or actions or instead):
        raise UsageError("--transcript needs --span, the words to explain, or --action and --instead")
    if not spans and not (actions and instead):
        raise UsageError(f"{mode} needs --action and --instead: the replies that are decided between")


def _asked(system: str, prompt: str) -> tuple[Message, ...]:
    from truing.records import Message

    first = [Message(role="system", content=system)] if system else []
    return (*first, Message(role="user", content=prompt))


def _turns(file: str) -> tuple[Message, ...]:
    """The turns of a file from anywhere."""
    from pydantic import TypeAdapter, ValidationError

    from truing.records import Message

    path = Path(file)
    try:
        if path.stat().st_size > MOST_TURNS:
            raise UsageError(f"{path} is larger than {MOST_TURNS / 1e6:.0f} MB; give the transcript alone")
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        turns = TypeAdapter(tuple[Message, ...]).validate_python(said)
        for call in (call for turn in turns for call in turn.calls):
            _check_object(call.name, call.arguments)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"turn {'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error).splitlines()[0]
        raise UsageError(
            f"cannot read a transcript from {path}: {why[:200]}. It is a JSON list of turns,"
            ' each {"role": "system" | "user" | "assistant" | "tool", "content": "..."}; of a call also'
            ' "calls": [{"name": "...", "arguments": "{...}"}]'
        ) from error
    if not turns:
        raise UsageError(f"the transcript {path} has no turns")
    return turns


def _check_object(name: str, arguments: str) -> None:
    if not isinstance(json.loads(arguments), dict):
        raise TypeError(f"the arguments of the call of {name!r} are no JSON object")


def _lines(graph: Graph) -> list[str]:
    body = graph.plain()["body"]
    return [
        f"{graph.verdict}: {graph.why}",
        f"effect   {number(body['effect'])}",
        f"closure  {graph.closure_error:.1e}",
        *(
            f"patched  {row['k']:5} {row['kind']}s by {_chosen(row):14} {number(row['share'])}{_back(row)}"
            for row in body["mediated"]
        ),
        f"graph    {graph.id}",
    ]


def _chosen(row: dict[str, Any]) -> str:
    return f"{row['choice']} ({row['of']})" if row.get("of") else str(row["choice"])


def _back(row: dict[str, Any]) -> str:
    return f"; put back {number(row['restored'])}" if row.get("restored") else ""


def _difference_lines(body: dict[str, Any], record: str) -> list[str]:
    """All of it but what is given by layer and neuron, and of these the largest."""
    wholes = [row for row in body["quantities"] if not re.search(r" (layer|neuron) ", row["name"])]
    parts = [row for row in body["quantities"] if row not in wholes and "value" in row["quantity"]]
    largest = sorted(parts, key=lambda row: -abs(row["quantity"]["value"]))[:SHOWN]
    return [
        body["note"],
        *(f"{row['name']:34} {number(row['quantity'])}" for row in [*wholes, *largest]),
        f"measurement {record}",
    ]


def _case_lines(case: CaseGraph, circuit: Circuit) -> list[str]:
    decision = f"{' | '.join(case.actions)} against {' | '.join(case.alternatives)}" if case.alternatives else (
        f"what was written: {' | '.join(case.actions)}"
    )  # fmt: skip
    lines = [
        "illustration: one case, no interval. For evidence, trace a claim.",
        f"{case.verdict}: {case.why}",
        f"decision  {case.value:+.4f} nats/token, {decision}",
        f"accounts  close to {case.closure_error:.1e} of what is added (that is accounting, not faithfulness)",
        *(
            f"check     {row.name}: {number(row.quantity.model_dump())}"
            for row in case.checks
            if row.name.startswith(HEADLINES)
        ),
        f"listed    {case.selected:,} of {case.candidates:,} {case.unit}s; replacement {case.replacement:.2f},"
        f" completeness {case.completeness:.2f}",
    ]  # fmt: skip
    lines += [f"adds      {total:+.4f} nats/token: {segment}" for segment, total in case.by_turn()]
    lines += [f"carries   {said}" for said in _strongest(case, circuit)]
    lines += [*_labels(case), *map(_named, case.names)]
    lines += [
        f"supernode {one.name}: {len(one.nodes)} {case.unit}{'s' * (len(one.nodes) > 1)}"
        for one in case.supernodes[:SHOWN]
    ]
    return [*lines, f"graph     {case.id}"]


def _written(case: CaseGraph, circuit: Circuit, node: int) -> str:
    name = f"{circuit.layer_N[node]}.{circuit.index_N[node]}"
    more, less = next(((more, less) for unit, more, less in case.writes if unit == name), ((), ()))
    some = more if circuit.value_N[node] > 0 else less
    return f", writes {' '.join(map(repr, some))}" if some else ""


def _label(case: CaseGraph, circuit: Circuit, node: int) -> str:
    """Where a neuron is strongest, on the side that it is on here, and how well its label predicts it."""
    from truing.records import Estimate

    name = f"{circuit.layer_N[node]}.{circuit.index_N[node]}"
    one = next((one for one in case.labels if one.unit == name), None)
    if one is None:
        return ""
    what, places = ("strongest", one.strongest) if circuit.value_N[node] > 0 else ("lowest", one.weakest)
    tokens = " ".join(dict.fromkeys(repr(place.token) for place in places))
    scores = [f"{q.value:.2f}" if isinstance(q, Estimate) else "not measured" for q in (one.score, one.shuffled)]
    return f", {what} at {tokens} (label's score {scores[0]}, another's {scores[1]})"


def _labels(case: CaseGraph) -> list[str]:
    """How good the labels are, all of them together."""
    from statistics import quantiles

    from truing.records import Estimate

    scores = [one.score for one in case.labels if isinstance(one.score, Estimate)]
    others = [one.shuffled.value for one in case.labels if isinstance(one.shuffled, Estimate)]
    if len(scores) < 2 or len(others) < 2:
        return []
    low, middle, high = quantiles([one.value for one in scores], method="inclusive")
    return [
        f"labels    of {len(case.labels)} neurons, {len(scores)} with a score: median {middle:+.2f} (middle half"
        f" {low:+.2f} to {high:+.2f}), {sum(one.low > 0 for one in scores)} clearly above 0; of another neuron's label"
        f" {quantiles(others, method='inclusive')[1]:+.2f}"
    ]


def _named(one: Called) -> str:
    said = f"{one.name!r}, which sorts held-out places: {number(one.score.model_dump())}" if one.name else "none"
    return f"name      {one.unit}: {said}"


def _strongest(case: CaseGraph, circuit: Circuit) -> Sequence[str]:
    some = sorted(circuit.of("neuron").nonzero()[0].tolist(), key=lambda n: (-float(circuit.influence_N[n]), n))
    lines = []
    for n in some[:SHOWN]:
        at = int(circuit.position_N[n])
        lines.append(
            f"{float(circuit.influence_N[n]):6.2%} of the influence:"
            f" {case.unit} {circuit.layer_N[n]}.{circuit.index_N[n]}"
            f" at token {at} {case.tokens[at]!r} ({case.segments[at]}){_written(case, circuit, n)}"
            f"{_label(case, circuit, n)}"
        )
    return lines
