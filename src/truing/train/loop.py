"""The loop that every kind of training goes through: steps in chunks, each kept, resumed exactly, ended early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from truing.errors import TrainingError
from truing.records import Blob, Step, Training
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.train.policy import Policy
from truing.train.settings import Settings


class Task(Protocol):
    """What a step is, and how many there are."""

    @property
    def steps(self) -> int:
        """Steps of the whole training."""

    def step(self, policy: Policy, number: int) -> Step:
        """One step of the optimiser. TrainingError where going on would be wrong."""


@dataclass(frozen=True, slots=True)
class Job:
    """A training: all that its records say, and how to build what it trains."""

    method: str
    target: str
    settings: dict[str, float | int | str]
    pairs: str
    build: Callable[[], Policy]
    inputs: dict[str, Any]
    """What determines it beyond target, settings and pairs."""
    parents: tuple[str, ...] = ()
    """Records that it rests on beside target and pairs."""
    every: int = 7
    """Steps of a chunk."""
    patience: int = 2
    """Looks without a lower loss on what is held out after which it ends."""
    truncated: int | None = None
    """Pairs whose prompts are cut off, where there are some."""
    alarm: Callable[[Sequence[Step]], str] | None = None
    """What is to be said of the steps so far, "" for nothing; it is said once."""
    look: Callable[[Policy, Step], Step] | None = None
    """Gives the last step of a chunk with what is measured only now and then."""


def go(job: Job, task: Task, store: Store, *, watcher: Watcher | None = None, label: str = "") -> Training:
    """All steps, or as many as there is use for. Killed and rerun, it goes on from its last chunk to the same bytes."""
    chunks = Chunks(job, task, store)
    inputs = {"target": job.target, "pairs": job.pairs, "settings": job.settings, **job.inputs}
    if watcher:
        watcher.start(label or f"train: {job.method}", task.steps)
    record: Training | None = None
    warned = False
    for first in range(0, task.steps, job.every):
        item = (first, min(first + job.every, task.steps))
        (records,) = run([Unit(item=item, stage="fit", inputs={**inputs, "from": first})], chunks.chunk, ledger=store)
        (record,) = (r for r in records if isinstance(r, Training))
        chunks.done.append(record)
        if watcher:
            watcher.step(item[1] - item[0])
            watcher.say(f"after step {len(record.steps)}: {told(record.steps[-1])}")
            if job.alarm and not warned and (line := job.alarm(record.steps)):
                watcher.say(line)
                warned = True
        if record.finished:
            break
    assert record is not None
    if watcher and len(record.steps) < task.steps:
        watcher.say(
            f"stopped after {len(record.steps)} of {task.steps} steps: the loss on held-out pairs was lowest"
            f" after {best(record.steps) + 1}, whose adapter is kept"
        )
    return record


def told(step: Step) -> str:
    """A step in a line, as it goes."""
    parts = {"loss": step.loss, "margin": step.margin, "chosen": step.chosen, "rejected": step.rejected,
             "held-out loss": step.held, "reward": step.reward, "KL": step.kl}  # fmt: skip
    return ", ".join(f"{name} {value:.3f}" for name, value in parts.items() if value is not None)


def best(steps: Sequence[Step]) -> int:
    """The number of the step after which the loss on what is held out was lowest."""
    looks = {step.step: step.held for step in steps if step.held is not None}
    return min(looks, key=looks.__getitem__)


class Chunks:
    """Steps in chunks; a model is built only when a chunk has to be computed."""

    def __init__(self, job: Job, task: Task, store: Store) -> None:
        self.job, self.task, self.store = job, task, store
        self.done: list[Training] = []
        """The chunks before, in order."""
        self._policy: Policy | None = None
        self._at = 0

    @property
    def policy(self) -> Policy:
        """The model as it is now."""
        if self._policy is None:
            self._policy = self.job.build()
        return self._policy

    def chunk(self, item: tuple[int, int]) -> list[Training]:
        """Do steps start..stop and keep the state, or, at the end, the weights."""
        start, stop = item
        if self._at != start:
            self._restore(self.done[-1].state)
        steps = list(self.done[-1].steps if self.done else ())
        for number in range(start, stop):
            try:
                steps.append(self.task.step(self.policy, number))
            except TrainingError as error:
                raise self._kept(error, steps[:-1]) from error
        self._at = stop
        if self.job.look:
            steps[-1] = self.job.look(self.policy, steps[-1])
        finished = stop == self.task.steps or self._worn_out(steps)
        if finished and steps[-1].held is not None and (lowest := best(steps)) + 1 < stop:
            self._restore(next(one.state for one in self.done if len(one.steps) == lowest + 1))
            self._at = -1
        return [self._record(steps, finished=finished)]

    def _record(self, steps: Sequence[Step], *, finished: bool) -> Training:
        file = self.policy.weights() if finished else self.policy.state()
        return Training(
            method=self.job.method,
            target=self.job.target,
            settings=tuple(self.job.settings.items()),
            pairs=self.job.pairs,
            steps=tuple(steps),
            state=self.store.put_blob(file, "safetensors"),
            finished=finished,
            truncated=self.job.truncated,
            parents=(self.job.target, self.job.pairs, *self.job.parents),
        )

    def _kept(self, error: TrainingError, good: Sequence[Step]) -> TrainingError:
        """The error, after the weights were kept as they were before the step that led to it."""
        if not good or not self.policy.back():
            return error
        record = self._record(good, finished=True)
        self.store.add(record)
        return TrainingError(
            f"{error}. The adapter as it was after {len(good)} steps is kept as training {record.id[:12]}"
        )

    def _restore(self, state: Blob) -> None:
        self.policy.restore(self.store.blob_path(state).read_bytes())

    def _worn_out(self, steps: Sequence[Step]) -> bool:
        """Whether looks at what is held out have gone on for long enough without a lower loss."""
        looks = [step.step for step in steps if step.held is not None]
        return bool(looks) and len(looks) - looks.index(best(steps)) > self.job.patience


def follow(policy: Policy, settings: Settings, number: int, steps: int, *, loss: float, still: bool = False) -> float:
    """Follow the gradient that was accumulated; its norm before clipping.

    TrainingError where loss or norm is not finite. A norm of 0 is an error as well, unless it may be `still`: weights
    that are far too large give the same output for everything, a finite loss, and no gradient.
    """
    _sound("loss", loss, number, settings.lr)
    norm = policy.norm()
    _sound("gradient norm", norm, number, settings.lr, above=-1 if still else 0)
    policy.step(settings.rate(number, steps))
    return norm


def _sound(what: str, value: float, number: int, lr: float, *, above: float = -math.inf) -> None:
    if not (math.isfinite(value) and value > above):
        raise TrainingError(f"the {what} at step {number} is {value}; lower the learning rate ({lr})")
