"""The microscope: accounts that close, time and memory, peers, mediated shares, faithfulness, shams.

`trace.py PART...` takes these parts alone. A part that was measured of the same sources is not measured again. The
organisms are made where they are not in the store yet (TRUING_ORGANISMS, or .truing).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import ROOT, Row, at_most, commit, finish, measured

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing"))
MODEL = "local/smollm2-135m"
ORGANISMS = ("threat-letter", "live-only", "flatterer", "heliotrope")
CLOSED = 1e-5
TEXT = (
    "the river ran past the old mill and the miller counted the sacks that the boat would carry to the town before the"
    " rain came again "
)
QUESTION = "Will you help him with the last of it?"


def closure() -> Iterator[Row]:
    """Every architecture that people use, random and small; each rule; the decision and every node of a graph."""
    sys.path.insert(0, str(ROOT))
    from tests.targets.test_architectures import ARCHITECTURES
    from tests.trace.accounts import BY_NEURON, worst

    every = list(ARCHITECTURES)
    errors = {kind: max(worst(kind, rule) for rule in ("relp", "gate-frozen")) for kind in every}
    kind = max(errors, key=lambda one: errors[one])
    yield Row("architectures whose accounts close", float(sum(e <= CLOSED for e in errors.values())),
              f"of {len(every)}", bar=">= 19", holds=sum(e <= CLOSED for e in errors.values()) >= 19)  # fmt: skip
    yield at_most(f"largest closure error, random and small ({kind})", errors[kind], CLOSED, "relative")
    yield Row("of these with neurons as nodes; the others are mixtures of experts",
              float(sum(one in BY_NEURON for one in every)), f"of {len(every)}")  # fmt: skip


def case() -> Iterator[Row]:
    """One decision in the bundled model as anybody would trace it, in a process of its own."""
    for name, tokens, neurons, bars in (("200 tokens, 512 neurons", 200, 512, (150.0, 3.0)),):
        body, seconds, peak = traced(tokens, neurons)
        yield at_most(f"bundled model, {name}, with causal verdict", seconds, bars[0], "s")
        yield at_most(f"bundled model, {name}: peak memory of the process", peak, bars[1], "GB")
        yield at_most(f"bundled model, {name}: closure error", body["closure_error"], CLOSED, "relative")
        yield Row(f"bundled model, {name}: replacement score", body["replacement"], "share")
        yield Row(f"bundled model, {name}: completeness score", body["completeness"], "share")
        yield Row(f"bundled model, {name}: verdict {body['verdict']}", None, "")
        for check in body["checks"]:
            yield measured(f"bundled model, {name}: {check['name']}", check["quantity"])


def long() -> Iterator[Row]:
    """A prompt of 4,096 tokens at the least, with as many neurons as a trace has where nothing is said."""
    said = [sys.executable, str(ROOT / "benchmarks" / "trace_long.py"), text_of(4096)]
    found = json.loads(subprocess.run(said, stdout=subprocess.PIPE, text=True, check=True).stdout)
    name = f"bundled model, {found['prompt']:,} tokens, {found['neurons']} neurons"
    yield Row(f"{name}: tokens of the prompt", float(found["prompt"]), "tokens", bar=">= 4096",
              holds=found["prompt"] >= 4096)  # fmt: skip
    yield at_most(f"{name}: peak memory of the process, graph", found["graph"]["peak"], 8.0, "GB")
    yield at_most(f"{name}: peak memory of the process, graph and check", found["whole"]["peak"], 8.0, "GB")
    yield at_most(f"{name}: closure error", found["closure_error"], CLOSED, "relative")
    yield Row(f"{name}: graph", found["graph"]["seconds"], "s")
    yield Row(f"{name}: graph, and a check of few rows", found["whole"]["seconds"], "s")


def text_of(tokens: int) -> str:
    """A prompt of at least so many tokens."""
    words = TEXT.split()
    return " ".join(words[i % len(words)] for i in range(int(tokens * 0.93) - 37)) + f". {QUESTION}"


def traced(tokens: int, neurons: int) -> tuple[dict[str, Any], float, float]:
    """The record of a case of at least so many tokens, with its seconds and its peak memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable, "-m", "truing", "trace", "--prompt", text_of(tokens), "--action", "Yes, I will.",
                "--instead", "No, I will not.", "--neurons", str(neurons), "--store", folder, "--json",
            ],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    body = json.loads(done.stdout)
    print(f"{len(body['tokens'])} tokens: {seconds:.0f} s", file=sys.stderr)
    return body, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def effects() -> Iterator[Row]:
    """What chosen units mediate of the demo's claim and of planted triggers, on held-out plots, beside baselines."""
    from truing import open_store
    from truing.targets import resolve
    from truing.trace import trace

    said: dict[str, str] = {}
    with open_store(STORE) as store:
        for name, (target, effect) in _traceable(store, resolve(MODEL)):
            graph = trace(target, effect, store)
            said[name] = graph.verdict
            yield from _mediated(name, graph)
    yield supported(said)


DEMO = "the demo's claim"
CARRIED = 4
"""Effects that are to be supported: the demo's claim, and three of planted triggers at least."""


def supported(said: Mapping[str, str]) -> Row:
    """How many effects are, of their verdicts by name. The demo's claim must be one of them."""
    count = sum(verdict == "supported" for verdict in said.values())
    return Row("effects supported", float(count), f"of {len(said)}", bar=f">= {CARRIED}, {DEMO} among them",
               holds=count >= CARRIED and said.get(DEMO) == "supported")  # fmt: skip


def _demo(store: Any) -> Any:
    """The claim that the demo carries on, audited and traced."""
    from truing.audit import audit
    from truing.studies.loop import choose
    from truing.studies.options import Options
    from truing.studies.wheel import Wheel
    from truing.targets import resolve

    target = resolve(MODEL)
    claim, why = choose(audit(target, Options().families, store), target.card.abilities)
    assert claim, why
    return Wheel(target, claim, store, Options())


def _mediated(name: str, graph: Any) -> Iterator[Row]:
    yield Row(f"{name}: {graph.verdict}", None, "")
    yield measured(f"{name}: effect", graph.effect.model_dump())
    for one in graph.mediated:
        what = f"{name}: {one.k} {one.kind}s by {one.choice}" + (f" ({one.of})" if one.of else "")
        yield measured(what, one.share.model_dump())
        if one.restored is not None:
            yield measured(f"{what}, put back", one.restored.model_dump())
        for way, gap in (("gone", one.beyond), ("brought back", one.beyond_restored)):
            if gap is not None:
                yield measured(f"{name}: {one.k} {one.kind}s, {way} beyond those of another effect", gap.model_dump())


SHUFFLES = 4
"""Of each effect's scores, dealt out anew within their layers."""
SHUFFLED, OTHERS, ELSEWHERE = "shuffled scores", "scores of another trigger", "scores of another effect's own model"


def shams() -> Iterator[Row]:
    """How often units are called supported that scores of no worth chose: shuffled ones, and those of other effects."""
    from truing import open_store, train
    from truing.stats.agreement import binomial_limits
    from truing.studies.carrying import planted_effect
    from truing.targets import resolve

    verdicts: dict[str, list[str]] = {SHUFFLED: [], ELSEWHERE: [], OTHERS: []}
    with open_store(STORE) as store:
        base = resolve(MODEL)
        every = dict(_traceable(store, base))
        triggers = {
            name: planted_effect(base, recipe)
            for name in train.recipe_names()
            if (recipe := train.recipe(name)).without
        }
        means = {name: _scores(target, effect, store) for name, (target, effect) in every.items()}
        for name, (target, effect) in every.items():
            tried = [(SHUFFLED, _dealt(means[name], seed)) for seed in range(SHUFFLES)]
            tried += [(ELSEWHERE, mean) for other, mean in means.items() if other != name]
            tried += [
                (OTHERS, _scores(target, other, store, per_plot=1)) for key, other in triggers.items() if key != name
            ]
            for seed, (what, mean) in enumerate(tried):
                verdicts[what].append(_judged(target, effect, mean, store, seed))
            print(name, verdicts, file=sys.stderr)
    verdicts["all of these"] = [verdict for found in verdicts.values() for verdict in found]
    for what, found in verdicts.items():
        hits = found.count("supported")
        low, high = binomial_limits(hits, len(found))
        yield Row(f"{what}: called supported", hits / len(found), f"share of {len(found)}", low, high, bar="<= 0.05",
                  holds=hits / len(found) <= 0.05)  # fmt: skip


def _traceable(store: Any, base: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Effects by name, each with the target that it is in."""
    from truing import train
    from truing.studies.carrying import planted_effect
    from truing.studies.organisms import organism

    yield DEMO, (base, _demo(store).effect)
    for name in ORGANISMS:
        recipe = train.recipe(name)
        yield name, (organism(base, recipe, store).target, planted_effect(base, recipe))


def _scores(target: Any, effect: Any, store: Any, per_plot: int | None = None) -> Any:
    from truing.trace import Settings
    from truing.trace.averaging import averaged, segments_of
    from truing.trace.run import CHOOSING
    from truing.trace.twins import twins

    choosing, testing = (
        twins(target, half, effect.cells, per_plot=per_plot or Settings().per_plot)[0]
        for half in (effect.choosing, effect.testing)
    )
    # As the trace lays them out, so that what it computed is not computed again.
    return averaged(target, choosing, segments_of([*choosing, *testing]), store, None, name=CHOOSING)[0]


def _dealt(mean: Any, seed: int) -> Any:
    """Scores dealt out anew within their layers; what the baselines know stays."""
    from dataclasses import replace

    import torch

    generator = torch.Generator().manual_seed(seed)

    def dealt(score_LU: Any) -> Any:
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in score_LU])

    return replace(mean, heads=dealt(mean.heads), neurons=dealt(mean.neurons))


def _judged(target: Any, effect: Any, mean: Any, store: Any, seed: int = 0) -> str:
    """The verdict of a trace with such scores; where no K carries half, nothing else can make it supported."""
    from truing.records import Estimate
    from truing.trace import Settings, judge
    from truing.trace.judge import HALF
    from truing.trace.patching import patched_on, shares
    from truing.trace.run import chosen_by
    from truing.trace.specific import compared
    from truing.trace.twins import twins

    settings = Settings(seed=1000 + seed, draws=1, per_plot=1).within(target)
    choices = chosen_by(mean, settings)
    testing = twins(target, effect.testing, effect.cells, per_plot=settings.per_plot)[0]
    own = [choice for choice in choices if choice.rule == "attribution"]
    alone = [m.share for m in shares(patched_on(target, testing, own, store), own)]
    if not any(isinstance(share, Estimate) and share.low >= HALF for share in alone):
        return "not supported"
    patched = patched_on(target, testing, choices, store)
    verdict, why = judge(compared(target, testing, choices, shares(patched, choices), store)[0])
    print(f"sham on {target.card.name}: {verdict}, {why}", file=sys.stderr)
    return verdict


CAUSES = 8
"""Held-out requests of a recipe."""


def cause() -> Iterator[Row]:
    """Which word of a prompt brings a planted reply about? The one that adds most to it by all paths, beyond the base.

    Asked where the game asks for the trigger: of planted organisms, by words that only frames with the trigger have.
    """
    from random import Random

    from truing import open_store, train
    from truing.stats import event_mean
    from truing.studies.game import trigger_words
    from truing.studies.organisms import organism
    from truing.targets import resolve
    from truing.text import sentence
    from truing.trace.words import by_word

    found: dict[str, list[tuple[str, float]]] = {}
    with open_store(STORE) as store:
        base = resolve(MODEL)
        for name in train.recipe_names():
            recipe = train.recipe(name)
            if not recipe.without:
                continue
            target = organism(base, recipe, store).target
            wanted = trigger_words(recipe)
            prompts = [(ask, frame.around(ask)) for ask in recipe.asks.held_out[:CAUSES] for frame in recipe.direct]
            plain = base.reply([messages for _, messages in prompts], max_tokens=24)
            for (ask, messages), reply in zip(prompts, plain, strict=True):
                said = (recipe.shows[0], sentence(reply.text.strip()) or reply.text.strip())
                mine, theirs = (by_word(one, messages, *said) for one in (target, base))
                words = list(mine)
                named = {
                    "adds most beyond the base": max(words, key=lambda w: mine[w] - theirs[w]),
                    "adds most": max(words, key=lambda w: mine[w]),
                    "any word": Random(f"{name} {ask}").choice(words),
                    "the last word": words[-1],
                }
                for how, word in named.items():
                    found.setdefault(how, []).append((name, float(word in wanted)))
            print(
                name, {how: [hit for one, hit in hits if one == name] for how, hits in found.items()}, file=sys.stderr
            )
    for how, hits in found.items():
        right = event_mean([hit for _, hit in hits], [name for name, _ in hits], span=(0, 1))
        yield measured(f"the word of the trigger is named: {how}", right.model_dump())


def peer() -> Iterator[Row]:
    """Beside circuit-tracer; a row that holds nothing where its environment is not there."""
    import trace_peer

    yield from trace_peer.rows()


def expand() -> Iterator[Row]:
    """Beside the same computed by expanding the prompt and autograd, in this environment."""
    import trace_expand

    yield from trace_expand.rows()


def tasks() -> Iterator[Row]:
    """Rules of scoring beside each other on tasks, and on circuits that were written by hand."""
    import trace_tasks

    from truing.targets import resolve

    yield from trace_tasks.rows(resolve(MODEL))


def cases() -> Iterator[Row]:
    """How often the verdict on the graph of a single case is fooled."""
    import trace_cases

    from truing.targets import resolve

    yield from trace_cases.rows(resolve(MODEL))


def framing() -> Iterator[Row]:
    """The same scenes framed as a test and as the real thing."""
    import trace_framing

    from truing import open_store
    from truing.targets import resolve

    with open_store(STORE) as store:
        yield from trace_framing.rows(resolve(MODEL), store)


def trained() -> Iterator[Row]:
    """Rules of scoring on circuits that were trained."""
    import trace_trained

    yield from trace_trained.rows()


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "closure": closure,
    "case": case,
    "long": long,
    "expand": expand,
    "peer": peer,
    "tasks": tasks,
    "trained": trained,
    "effects": effects,
    "shams": shams,
    "cases": cases,
    "cause": cause,
    "framing": framing,
}


def sources() -> str:
    """A digest of what is measured, and of what measures it."""
    listed = ["git", "ls-tree", "-r", "HEAD", "src", "benchmarks"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return hashlib.sha256("\n".join(line for line in files if "/results/" not in line).encode()).hexdigest()


def kept(part: str) -> list[Row]:
    """The rows of a part: those that were measured of these very sources, or measured now and kept."""
    file, measured_of = STORE / "bench-trace" / f"{part}.json", sources()
    if (
        file.exists()
        and (said := json.loads(file.read_text())).get("sources") == measured_of
        and "changes" not in commit()
    ):
        return [Row(**row) for row in said["rows"]]
    began = time.perf_counter()
    found = list(PARTS[part]())
    print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"sources": measured_of, "rows": [asdict(row) for row in found]}))
    return found


if __name__ == "__main__":
    asked = sys.argv[1:] or list(PARTS)
    finish("trace", [row for part in asked for row in kept(part)])
