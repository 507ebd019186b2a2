"""DPO beside RLHF: the same preferences from a known rule, the same start, as many settings tried.

Whether a policy got better at what was preferred is computed for every reply, since the rule is known.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from truing import measure, train
from truing.errors import TrainingError
from truing.records import Arrays, Estimate, Measurement, Named, Pair, Pairs, Quantity, Training, Unmeasured, digest_of
from truing.runner import Silent, Unit, Watcher, run
from truing.stats import cluster_mean, cluster_ratio
from truing.store import Store, open_store
from truing.studies.peak import forget_peak, peak_rss_mb
from truing.studies.plain_words import Part, Prompt, Prompts, drawn, preferred, prompts, sentences, wins
from truing.targets import keep, need
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import Adapter

Arm = Literal["dpo", "rlhf"]
ARMS: tuple[Arm, ...] = ("dpo", "rlhf")
Numbers = dict[str, float]


START = train.Settings(method="sft", lr=5e-4, schedule="linear", batch=8, epochs=3)
DPO = train.Settings(beta=0.1, batch=8, epochs=2, checkpoint_every=8)
RLHF = train.Rlhf(
    train.Settings(method="reward", lr=5e-4, batch=8, epochs=2),
    train.Settings(method="rloo", beta=0.05, batch=8, epochs=2, most_steps=18, checkpoint_every=6),
    max_tokens=24,
)


RATES = (2e-4, 5e-4, 1e-3, 2e-3)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the comparison is run."""

    seeds: int = 8
    replies: int = 2
    """Replies to every prompt that a policy is looked at by."""
    rates: tuple[tuple[Arm, tuple[float, ...]], ...] = (("dpo", RATES), ("rlhf", RATES))
    """Learning rates that are tried: as many for each arm."""
    most_kl: float = 20.0
    """Of the settings that are tried the one with the most wins is taken, within so many nats a reply."""
    start: train.Settings = START
    dpo: train.Settings = DPO
    rlhf: train.Rlhf = RLHF

    def of(self, arm: Arm, lr: float, seed: int) -> train.How:
        """The settings of one training."""
        if arm == "dpo":
            return replace(self.dpo, lr=lr, seed=seed)
        reward, policy = replace(self.rlhf.reward, seed=seed), replace(self.rlhf.policy, lr=lr, seed=seed)
        return replace(self.rlhf, reward=reward, policy=policy)


@dataclass(frozen=True, slots=True)
class Task:
    """One training and what it is judged by. It travels to a process of its own."""

    base: str
    start: Adapter
    pairs: Pairs
    arm: Arm
    how: train.How
    parts: tuple[tuple[str, tuple[Prompt, ...], tuple[str, ...]], ...]
    """Name, prompts, and what the start replied to them."""
    max_tokens: int
    costs: bool
    """Whether what it cost elsewhere is measured as well."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came out: the record, the settings that were taken, and the numbers of every training."""

    record: Measurement
    taken: dict[Arm, float]
    tuned: dict[Arm, list[tuple[float, Numbers]]]
    runs: dict[Arm, list[Numbers]]


def compare(
    base: Any,
    store: Store,
    *,
    plan: Plan | None = None,
    asked: Prompts | None = None,
    call: Callable[[Task], Numbers] | None = None,
    watcher: Watcher | None = None,
) -> Compared:
    """Tune both arms, train them under every seed, each in a process of its own, and put them side by side.

    Every training is a unit of work: killed and rerun, the rest is done. `call`: runs one training.
    """
    need(base, "Trainable")
    plan, asked, call, watcher = plan or Plan(), asked or prompts(), call or apart, watcher or Silent()
    keep(base, store)
    start = _start(base, plan, asked, store, watcher)
    pairs = _made("pairs", start, asked, plan, preferred, store, watcher)
    tokens = plan.rlhf.max_tokens
    parts = {}
    for name, part in (("tune", asked.tune), ("held out", asked.held_out), ("elsewhere", asked.elsewhere)):
        some = part.prompts * plan.replies
        theirs = drawn(start, some, max_tokens=tokens, seed=1)
        parts[name] = (name, tuple(some), tuple(one.text for one in theirs))

    def task(arm: Arm, lr: float, seed: int, names: Sequence[str], *, costs: bool = False) -> Unit[Task]:
        how = plan.of(arm, lr, seed)
        item = Task(base.card.name, start.adapter, pairs, arm, how, tuple(parts[name] for name in names), tokens, costs)
        inputs = {"target": start.card.id, "pairs": pairs.id, "arm": arm, "how": asdict(how), "costs": costs,
                  "parts": digest_of([[name, [turn.content for _, (turn, *_) in some], theirs]
                                      for name, some, theirs in item.parts])}  # fmt: skip
        return Unit(item=item, stage="compare", inputs=inputs)

    def work(item: Task) -> list[Arrays]:
        try:
            numbers = tuple(sorted(call(item).items()))
        except TrainingError as error:  # of a learning rate that is too high, say: that is an outcome
            watcher.say(f"{item.arm} failed: {error}")
            numbers = ((FAILED, 1.0),)
        return [Arrays(name=item.arm, target=start.card.id, plot="compare", cases=(), numbers=numbers,
                       parents=(start.card.id, pairs.id))]  # fmt: skip

    def done(units: Sequence[Unit[Task]], label: str) -> list[Arrays]:
        found = run(units, work, ledger=store, watcher=watcher, label=label)
        return [one for records in found for one in records if isinstance(one, Arrays)]

    tuned: dict[Arm, list[tuple[float, Numbers]]] = {}
    taken: dict[Arm, float] = {}
    sources: list[Arrays] = []
    for arm, rates in plan.rates:
        found = done([task(arm, lr, 0, ("tune",)) for lr in rates], f"compare: settings of {arm}")
        sources += found
        tuned[arm] = [(lr, dict(one.numbers)) for lr, one in zip(rates, found, strict=True)]
        taken[arm] = _best(tuned[arm], plan.most_kl)
        watcher.say(f"{arm}: of learning rates {', '.join(f'{lr:g}' for lr in rates)} {taken[arm]:g} is taken")
    runs: dict[Arm, list[Numbers]] = {arm: [] for arm in ARMS}
    for seed in range(1, plan.seeds + 1):
        for arm in ARMS:
            (one,) = done([task(arm, taken[arm], seed, ("held out", "elsewhere"), costs=True)], f"{arm}, seed {seed}")
            runs[arm].append(dict(one.numbers))
            sources.append(one)
    failed = {arm: sum(FAILED in one for one in runs[arm]) for arm in ARMS}
    record = Measurement(
        name="DPO beside RLHF", targets=(start.card.id,), quantities=tuple(quantities(runs)),
        note=f"{plan.seeds} seeds; learning rates taken: " + ", ".join(f"{arm} {lr:g}" for arm, lr in taken.items())
        + "; trainings that failed: " + ", ".join(f"{arm} {count}" for arm, count in failed.items()),
        parents=(start.card.id, pairs.id, *sorted({one.id for one in sources})),
    )  # fmt: skip
    store.add(record)
    return Compared(record, taken, tuned, runs)


def quantities(runs: Mapping[Arm, Sequence[Numbers]]) -> Iterator[Named]:
    """Both arms, and their difference or ratio, over the seeds under which neither failed."""
    whole = [pair for pair in zip(*(runs[arm] for arm in ARMS), strict=True) if not any(FAILED in one for one in pair)]
    if not whole:
        return
    sides = dict(zip(ARMS, zip(*whole, strict=True), strict=True))
    for key, unit in UNITS.items():
        for arm in ARMS:
            yield Named(name=f"{key}, {arm}", quantity=_over_seeds([one.get(key) for one in sides[arm]], unit))
    reached = max(0.0, min(one["KL"] for pair in whole for one in pair))
    for part in ("wins held out", "wins elsewhere"):
        at = {arm: [won(one, part, reached) for one in sides[arm]] for arm in ARMS}
        for arm in ARMS:
            yield Named(
                name=f"{part} at equal KL, {arm}",
                quantity=_over_seeds(at[arm], "share"),
                note=f"between the looks of each training, at the {reached:.2f} nats that all of them reach",
            )
        gaps = [a - b for a, b in zip(at["dpo"], at["rlhf"], strict=True)]
        yield Named(name=f"{part} at equal KL, dpo - rlhf", quantity=_over_seeds(gaps, "share"), note="paired by seed")
    for key in ("CPU seconds", "peak memory"):
        more, less = ([one[key] for one in sides[arm]] for arm in ("rlhf", "dpo"))
        yield Named(name=f"{key}, rlhf / dpo", quantity=cluster_ratio(more, less, _seeds(more), unit="ratio"))


FAILED = "failed"
BITS = "bits per byte, after - before"
UNITS = {
    "wins held out": "share", "wins elsewhere": "share", "KL": "nats/reply", BITS: "bits/byte",
    "cut off": "share", "CPU seconds": "s", "wall seconds": "s", "peak memory": "GiB",
}  # fmt: skip


def won(numbers: Numbers, part: str, kl: float) -> float:
    """The share of wins of one training at this divergence: linear between its looks, and from 1/2 at the start."""
    if kl <= 0:
        return 0.5
    looks = sorted((value, numbers[key.replace("KL", part)]) for key, value in numbers.items() if key.startswith("KL "))
    points = [(0.0, 0.5), *looks]
    for (a, low), (b, high) in pairwise(points):
        if a <= kl <= b:
            return low + (high - low) * (kl - a) / (b - a) if b > a else high
    return points[-1][1]


def _over_seeds(values: Sequence[float | None], unit: str) -> Quantity:
    if missing := sum(value is None for value in values):
        return Unmeasured(reason=f"{missing} of {len(values)} trainings have no such figure")
    return cluster_mean([float(value) for value in values if value is not None], _seeds(values), unit=unit)


def _seeds(values: Sequence[object]) -> list[str]:
    return [f"seed {number}" for number in range(1, len(values) + 1)]


def _best(tried: Sequence[tuple[float, Numbers]], most_kl: float) -> float:
    """The learning rate with the most wins within the divergence allowed, or else with the least divergence."""
    done = [(lr, numbers) for lr, numbers in tried if FAILED not in numbers]
    if not done:
        raise TrainingError(f"training failed at every learning rate ({', '.join(f'{lr:g}' for lr, _ in tried)})")
    within = [(numbers["wins tune"], lr) for lr, numbers in done if numbers["KL"] <= most_kl]
    return max(within)[1] if within else min((numbers["KL"], lr) for lr, numbers in done)[1]


# -- what both arms start from -----------------------------------------------------------------------------------------


def _start(base: Any, plan: Plan, asked: Prompts, store: Store, watcher: Watcher) -> Any:
    """The base, taught by sentences of its own to reply in one sentence."""
    pairs = _made("start", base, asked, plan, sentences, store, watcher)
    training = train.fit(base, pairs, store, settings=plan.start, watcher=watcher)
    target = base.with_adapter(train.adapter(training, store))
    keep(target, store)
    return target


def _made(
    stage: str, target: Any, asked: Prompts, plan: Plan, make: Callable[..., list[Pair]], store: Store, watcher: Watcher
) -> Pairs:
    """Pairs out of what a target says to the prompts of training."""
    tokens = plan.rlhf.max_tokens

    def work(some: Part) -> list[Pairs]:
        if not (found := make(target, some.prompts, max_tokens=tokens)):
            raise TrainingError(
                f"{target.card.name} wrote nothing to learn from in {tokens} tokens; use another target"
            )
        return [Pairs(clause="", pairs=tuple(found), source="plain words")]

    inputs = {"target": target.card.id, "asked": asked.train.model_dump(mode="json"), "tokens": tokens, "make": stage}
    units = [Unit(item=asked.train, stage="compare", inputs=inputs)]
    ((record,),) = run(units, work, ledger=store, watcher=watcher, label=f"compare: {stage}")
    assert isinstance(record, Pairs)
    return record


# -- one training, in a process of its own -----------------------------------------------------------------------------


def apart(task: Task) -> Numbers:
    """`alone` in a fresh process, so that its memory and its CPU seconds are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(alone, task).result()


def alone(task: Task) -> Numbers:
    """Train, and count what it took; then look at the policies on the way."""
    from truing.targets import resolve

    start = resolve(task.base).with_adapter(task.start).checked()
    with tempfile.TemporaryDirectory() as place, open_store(Path(place) / "store") as store:
        keep(start, store)
        store.add(task.pairs)
        forget_peak()
        before = time.process_time(), time.perf_counter()
        made = train.train(start, task.pairs, store, task.how)
        took = time.process_time() - before[0], time.perf_counter() - before[1]
        numbers = {"CPU seconds": took[0], "wall seconds": took[1], "peak memory": peak_rss_mb() / 1024}
        looks = [one for one in store.of_kind("training") if isinstance(one, Training) and one.method == made.method]
        for look, training in enumerate(sorted(looks, key=lambda one: len(one.steps)), start=1):
            policy = start.with_adapter(train.adapter(training, store)).checked()
            seen = _seen(start, policy, task)
            numbers |= {f"{name} {look}": value for name, value in seen.items()} | seen
        if task.costs:
            cost = measure.retention(start, policy, store)
            (bits,) = (one.quantity for one in cost.quantities if one.name == BITS)
            numbers |= {BITS: bits.value} if isinstance(bits, Estimate) else {}
    return numbers


def _seen(start: LocalTarget, policy: LocalTarget, task: Task) -> Numbers:
    """Wins against the start on every part, and how far the policy's replies diverge from it, nats a reply."""
    found: Numbers = {}
    ratios, cut = [], []
    for name, asked, theirs in task.parts:
        replies = drawn(policy, asked, max_tokens=task.max_tokens, seed=2)
        found[f"wins {name}"] = fmean(wins(one.text, other) for one, other in zip(replies, theirs, strict=True))
        paths = [(policy.prompt_ids(messages), one.ids) for (_, messages), one in zip(asked, replies, strict=True)]
        sides = [[float(log_p.sum()) for log_p in target.log_probs(paths)[0]] for target in (policy, start)]
        ratios += [a - b for a, b in zip(*sides, strict=True)]
        cut += [float(one.ended != "stop") for one in replies]
    return found | {"KL": fmean(ratios), "cut off": fmean(cut)}
