"""Whether units that are scored by a rule carry an effect: tasks on the bundled model, and a circuit known by hand.

Functions that return rows; alone, `python benchmarks/trace_tasks.py [--json] [--pairs N] [TASK ...]`.

Units are chosen on one half of the pairs; on the other half all others take the values that they have in the
counterfactual text. CMD is the area between that and the whole decision (0 is best), n(F >= 0.8) the smallest circuit,
of the sizes tried, that has 80% of what the units carry.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import trace_claim
from common import Row
from trace_circuits import (
    AMONG,
    DERIVED,
    LEVELS,
    RULES,
    SAMPLED,
    Floats,
    Scores,
    Texts,
    beside_patching,
    curve,
    curve_rows,
    exact,
    interval,
    resamples,
    sample,
    scored,
    start_of,
)
from trace_planted import areas, build
from trace_planted import pairs as planted_pairs

from truing.trace.attribute import SCORINGS, Scoring
from truing.trace.twins import Twin, of_tokens

MODEL = "local/smollm2-135m"
PAIRS = 48
AREA = 0.95
SEEDS = (0, 1, 2)
PUBLISHED = (
    # Neurons, attention outputs or MLP outputs of other models: not the same measurement, but the same kinds of figure.
    ("CMD of single nodes by NAP-IG, IOI, GPT-2 small", 0.27, "MIB, arXiv:2504.13151"),
    ("CMD of single nodes by NAP-IG, IOI, Qwen2.5-0.5B", 0.20, "MIB, arXiv:2504.13151"),
    ("CMD of single nodes by NAP, IOI, GPT-2 small", 0.38, "MIB, arXiv:2504.13151"),
    ("CMD of single nodes by NAP, IOI, Qwen2.5-0.5B", 0.33, "MIB, arXiv:2504.13151"),
    ("CMD of random nodes, IOI, GPT-2 small", 0.75, "MIB, arXiv:2504.13151"),
    ("PCC of RelP and patching, MLP outputs, IOI, GPT-2 small", 0.992, "RelP, arXiv:2508.21258"),
    ("PCC of gradients and patching, MLP outputs, IOI, GPT-2 small", 0.195, "RelP, arXiv:2508.21258"),
    ("PCC of RelP and patching, attention outputs, IOI, GPT-2 small", 0.962, "RelP, arXiv:2508.21258"),
    ("PCC of gradients and patching, attention outputs, IOI, GPT-2 small", 0.979, "RelP, arXiv:2508.21258"),
)


# -- pairs -------------------------------------------------------------------------------------------------------------


@cache
def words() -> dict[str, list[Any]]:
    """Nouns in both numbers, names, places, things."""
    found: dict[str, list[Any]] = json.loads(Path(__file__).with_name("trace_words.json").read_text())
    return found


def single(target: Any, members: Sequence[Any]) -> list[Any]:
    """The words, or pairs of words, of one token each."""

    def fits(one: Any) -> bool:
        return all(len(target.encoded(f" {word}")) == 1 for word in ([one] if isinstance(one, str) else one))

    return [one for one in members if fits(one)]


def pair(target: Any, texts: tuple[str, str], answers: tuple[str, str], name: str) -> Twin:
    """Two texts, and what follows the first and what follows the second."""
    return of_tokens(*(target.encoded(text) for text in (*texts, *answers)), name=name)


def agreement(target: Any, count: int) -> list[Twin]:
    """Subject and verb: "The key near the cabinets" is, "The keys near the cabinets" are. Subjects occur once each."""
    drawn, nouns = random.Random(0), single(target, words()["nouns"])
    found = []
    for one, many in drawn.sample(nouns, count):
        rest = f"{drawn.choice(words()['prepositions'])} the {drawn.choice(drawn.choice(nouns))}"
        found.append(pair(target, (f"The {one} {rest}", f"The {many} {rest}"), (" is", " are"), f"{one} {rest}"))
    return found


def receivers(target: Any, count: int) -> list[Twin]:
    """Indirect objects: who gets the thing is not who is named again (Wang et al. 2023, arXiv:2211.00593)."""
    drawn = random.Random(1)
    names, places, things = (single(target, words()[kind]) for kind in ("names", "places", "things"))
    found = []
    for _ in range(count):
        a, b = drawn.sample(names, 2)
        place, thing = drawn.choice(places), drawn.choice(things)
        texts = (f"When {a} and {b} went to the {place}, {c} gave a {thing} to" for c in (b, a))
        found.append(pair(target, (next(texts), next(texts)), (f" {a}", f" {b}"), f"{a}, {b}, {place}, {thing}"))
    return found


def repeats(target: Any, count: int) -> list[Twin]:
    """Induction: random tokens, one of them a second time, and what stood behind it the first time."""
    drawn, found = random.Random(2), []
    pool = [tokens[0] for kind in ("names", "places", "things") for word in words()[kind]
            if len(tokens := target.encoded(f" {word}")) == 1]  # fmt: skip
    pool += [token for pair_of in words()["nouns"] for word in pair_of for token in target.encoded(f" {word}")[:1]]
    pool = sorted(set(pool))
    for number in range(count):
        *before, seen, one, two, c, d, e = drawn.sample(pool, 11)
        first, second = ([*before, seen, follows, c, d, e, seen] for follows in (one, two))
        found.append(of_tokens(first, second, [one], [two], name=f"repeat {number}"))
    return found


TASKS: dict[str, Callable[[Any, int], list[Twin]]] = {
    "agreement": agreement, "receivers": receivers, "repeats": repeats,
}  # fmt: skip


# -- rows of a task ----------------------------------------------------------------------------------------------------


def task_rows(target: Any, name: str, count: int = PAIRS) -> list[Row]:
    """Scores on one half of the pairs, circuits on the other, and scores beside exact patching."""
    began = time.perf_counter()
    pairs = TASKS[name](target, count)
    half, start, model = len(pairs) // 2, start_of(pairs), target.model
    scores = {rule: scored(model, pairs[:half], start, rule) for rule in RULES if rule != "random"}
    texts = Texts(model, pairs[half:])
    one, many = resamples(len(texts.full))
    apart = texts.full - texts.other
    low, high = interval(apart[many].mean(-1))
    rows = [
        Row(f"{name}: pairs, a half to choose and a half to test", float(len(pairs)), "pairs"),
        Row(f"{name}: effect on those tested", float(apart.mean()), "nats", low, high),
    ]
    for level in LEVELS:
        means = {rule: found.at(level).mean(0) for rule, found in scores.items()}
        means["random"] = torch.rand(len(means["relp"]), generator=torch.Generator().manual_seed(0))
        found = {
            rule: curve(lambda taken, level=level: texts.run(texts.masks(level, taken)), texts.full, mean)
            for rule, mean in means.items()
        }
        some = found[RULES[0]]
        low, high = interval((some.full - some.none)[many].mean(-1) / apart[many].mean(-1))
        part = float((some.full - some.none).mean() / apart.mean())
        rows.append(Row(f"{name}, {level} ({some.sizes[-1]}): share of the effect", part, "share", low, high))
        rows += curve_rows(f"{name}, {level}", found, one, many)
    rows += correlation_rows(target, name, pairs[:half], scores)
    return [*rows, Row(f"{name}: seconds", time.perf_counter() - began, "s")]


def correlation_rows(target: Any, name: str, pairs: Sequence[Twin], scores: dict[Scoring, Scores]) -> list[Row]:
    """Scores beside what patching every unit by itself takes away, in the same pairs."""
    texts, rows = Texts(target.model, pairs), [Row(f"{name}: pairs patched", float(len(pairs)), "pairs")]
    draws = resamples(len(pairs))
    for level, among in (("neurons by position", AMONG), ("neurons by position", 0), ("neurons", AMONG), ("heads", 0)):
        by = {rule: found.at(level) for rule, found in scores.items()}
        total = by["relp"].shape[1]
        by["random"] = torch.rand(total, generator=torch.Generator().manual_seed(0)).expand(len(pairs), -1)
        chosen = sample([by[rule] for rule in DERIVED], count=SAMPLED, among=among)
        patched = exact(texts, level, chosen, total)
        of = f"{len(chosen)} of {'the strongest' if among else 'all'} {level}"
        chosen_by: dict[Scoring, Floats] = {rule: mine[:, chosen].T.double().numpy() for rule, mine in by.items()}
        rows += beside_patching(f"{name}, {of}", chosen_by, patched, draws)
    return rows


# -- the circuit known by hand -----------------------------------------------------------------------------------------


def planted_rows(seeds: Sequence[int] = SEEDS, count: int = 40) -> list[Row]:
    """The area under the ROC curve of |score| for planted units, the least and the most over seeds."""
    began, rows = time.perf_counter(), []
    models = [build(seed) for seed in seeds]
    for rule in SCORINGS[:-1]:  # at random it is a half
        found = [areas(planted, planted_pairs(planted, count), rule) for planted in models]
        for kind in ("units", "neurons", "heads"):
            values = [one[kind] for one in found]
            value = sum(values) / len(values)
            bar = {"bar": f">= {AREA:g}", "holds": min(values) >= AREA} if (rule, kind) == ("relp", "units") else {}
            rows.append(
                Row(f"planted {kind}, {rule}: AUROC of |score|", value, f"{len(values)} seeds", min(values),
                    max(values), **bar)
            )  # fmt: skip
    return [*rows, Row("planted: seconds", time.perf_counter() - began, "s")]


def published_rows() -> list[Row]:
    """What others report of other models."""
    return [Row(f"published: {name}", value, "as reported", peer=source) for name, value, source in PUBLISHED]


def rows(target: Any, *, count: int = PAIRS, only: Sequence[str] = ()) -> list[Row]:
    """All tasks, or some."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "planted": planted_rows,
        **{name: lambda name=name: task_rows(target, name, count) for name in TASKS},
        "claim": lambda: trace_claim.claim_rows(target),
        "published": published_rows,
    }
    found = []
    for name in only or parts:
        began = time.perf_counter()
        found += parts[name]()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the rows."""
    from truing.targets import resolve

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args()
    found = rows(resolve(MODEL), count=given.pairs, only=given.tasks)
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in found]}, indent=1))
        return
    for row in found:
        ends = f"[{row.low:.4g}, {row.high:.4g}]" if row.low is not None and row.high is not None else ""
        print(f"{row.name:78} {row.value:>10.4g} {ends:22} {row.unit} {row.bar or ''}")


if __name__ == "__main__":
    main()
