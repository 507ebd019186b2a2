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
from itertools import count, pairwise, takewhile
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
                  "looks": LOOKS, "parts": digest_of([[name, [turn.content for _, (turn, *_) in some], theirs]
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
    for part, unit, begin in ((WINS, "share", EVEN), ("wins elsewhere", "share", EVEN), (BITS, "bits/byte", 0.0)):
        at: dict[Arm, list[float | None]] = {
            arm: [won(one, part, reached, begin) if f"{part} 1" in one else None for one in sides[arm]] for arm in ARMS
        }
        for arm in ARMS:
            yield Named(
                name=f"{part} at equal KL, {arm}",
                quantity=_over_seeds(at[arm], unit),
                note=f"between the looks of each training, at the {reached:.2f} nats that all of them reach",
            )
        both = zip(at["dpo"], at["rlhf"], strict=True)
        gaps = [None if a is None or b is None else a - b for a, b in both]
        yield Named(name=f"{part} at equal KL, dpo - rlhf", quantity=_over_seeds(gaps, unit), note="paired by seed")
    yield from _to_equal_wins(sides)
    for key in ("CPU seconds", "peak memory"):
        more, less = ([one[key] for one in sides[arm]] for arm in ("rlhf", "dpo"))
        yield Named(name=f"{key}, rlhf / dpo", quantity=cluster_ratio(more, less, _seeds(more), unit="ratio"))


def _to_equal_wins(sides: Mapping[Arm, Sequence[Numbers]]) -> Iterator[Named]:
    """What each arm takes to the highest win rate on held-out prompts that every training of both arms reaches."""
    key, unit = "CPU seconds to equal wins held out", UNITS["CPU seconds"]
    level = min(max(_looks(one, WINS)) for arm in ARMS for one in sides[arm])
    if level <= EVEN:
        why = f"some training never won more than the start does ({level:.2f})"
        yield from (Named(name=f"{key}, {arm}", quantity=Unmeasured(reason=why)) for arm in ARMS)
        return
    took = {arm: [cost(one, level) for one in sides[arm]] for arm in ARMS}
    for arm in ARMS:
        yield Named(
            name=f"{key}, {arm}", quantity=_over_seeds(took[arm], unit),
            note=f"to a share of {level:.3f}, which all of them reach; between the looks of each training",
        )  # fmt: skip
    ratio = cluster_ratio(took["rlhf"], took["dpo"], _seeds(took["dpo"]), unit="ratio")
    yield Named(name=f"{key}, rlhf / dpo", quantity=ratio, note="paired by seed")


LOOKS = 2
"""Of what is noted at a look: raised when that changes."""
WINS = "wins held out"
EVEN = 0.5
"""The share of wins of the start against itself."""
FAILED = "failed"
BITS = "bits per byte, after - before"
BEGUN = "CPU seconds before the first step of the policy"
UNITS = {
    "wins held out": "share", "wins elsewhere": "share", "KL": "nats/reply", BITS: "bits/byte",
    "cut off": "share", "CPU seconds": "s", "wall seconds": "s", "peak memory": "GiB",
}  # fmt: skip


def _looks(numbers: Numbers, what: str) -> list[float]:
    """What was seen at each look on the way, in turn."""
    keys = takewhile(numbers.__contains__, (f"{what} {look}" for look in count(1)))
    return [numbers[key] for key in keys]


def cost(numbers: Numbers, level: float) -> float:
    """CPU seconds until one training wins so often on held-out prompts, which it does: linear between its looks.

    At the first step of the policy it wins as the start does; what was computed before that is counted in.
    """
    points = [(numbers[BEGUN], EVEN), *zip(_looks(numbers, "CPU seconds"), _looks(numbers, WINS), strict=True)]
    for (a, low), (b, high) in pairwise(points):
        if high >= level:
            return a + (b - a) * (level - low) / (high - low) if high > low else a
    raise ValueError(f"never wins {level:g} of the time")


def won(numbers: Numbers, part: str, kl: float, start: float = EVEN) -> float:
    """What one training shows at this divergence: linear between its looks, from what the start shows at 0."""
    if kl <= 0:
        return start
    points = [(0.0, start), *sorted(zip(_looks(numbers, "KL"), _looks(numbers, part), strict=True))]
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
        clock = Clock(before[0])
        made = train.train(start, task.pairs, store, task.how, watcher=clock)
        took = time.process_time() - before[0], time.perf_counter() - before[1]
        numbers = {"CPU seconds": took[0], "wall seconds": took[1], "peak memory": peak_rss_mb() / 1024}
        numbers |= {BEGUN: clock.marks[0]} | {
            f"CPU seconds {look}": mark for look, mark in enumerate(clock.marks[1:], 1)
        }
        looks = [one for one in store.of_kind("training") if isinstance(one, Training) and one.method == made.method]
        for look, training in enumerate(sorted(looks, key=lambda one: len(one.steps)), start=1):
            policy = start.with_adapter(train.adapter(training, store)).checked()
            seen = _seen(start, policy, task)
            if task.costs:
                retained = measure.retention(start, policy, store)
                (bits,) = (one.quantity for one in retained.quantities if one.name == BITS)
                seen |= {BITS: bits.value} if isinstance(bits, Estimate) else {}
            numbers |= {f"{name} {look}": value for name, value in seen.items()} | seen
    return numbers


class Clock(Silent):
    """CPU seconds when the steps of the policy begin, and after every chunk of them."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.marks: list[float] = []

    def start(self, label: str, total: int) -> None:
        """A stage begins; the last one that does is the policy's."""
        del label, total
        self.marks = [time.process_time() - self._began]

    def step(self, count: int = 1) -> None:
        """A chunk is done."""
        del count
        self.marks.append(time.process_time() - self._began)


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
