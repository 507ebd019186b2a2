"""Fit an adapter to preferences. Small, deterministic by seed, checkpointed in units of a few steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from truing.errors import TrainingError
from truing.records import Blob, Pair, Pairs, Step, Training
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.train.batches import Batch, batches, lay_out, mismatched
from truing.train.losses import (
    Sides,
    dpo,
    ipo,
    ipo_per_token,
    kto,
    margin,
    mismatch,
    nll,
    robust,
    sft,
    simpo,
)
from truing.train.policy import Policy
from truing.train.reference import reference
from truing.train.settings import FREE, Settings

LAST = 5
"""Steps at the end by which it is judged whether what was chosen became less likely."""
FALL = 1.0
"""Nats that a chosen reply may lose before it is said."""
SAME = 1e-4
"""Nats per token by which the reference may be off the policy before the first step: rounding."""


def fit(
    target: LocalTarget,
    pairs: Pairs,
    store: Store,
    *,
    settings: Settings | None = None,
    begin: Training | None = None,
    watcher: Watcher | None = None,
) -> Training:
    """Train an adapter on the pairs; the record's blob is the adapter in PEFT's layout.

    `begin`: a finished training of this target whose adapter is trained on, by a method without a reference.

    TrainingError where there are no pairs, the step-0 loss is not ln 2 (DPO) or a loss is not finite. Killed and
    rerun, training goes on from its last checkpoint and ends with the same bytes.
    """
    need(target, "Trainable")
    settings = settings or Settings()
    if not pairs.pairs:
        raise TrainingError("there are no pairs to train on: no surface of the claim could be used")
    work = _laid(target, pairs.pairs, settings)
    start = None if settings.method in FREE else reference(target, pairs.pairs, store, watcher=watcher)
    loop = Loop(target, pairs, work, settings, store, start, begin)
    inputs = {"target": target.card.id, "pairs": pairs.id, "settings": settings.plain}
    inputs |= {"begin": begin.id} if begin else {}
    if watcher:
        watcher.start(f"train: {settings.method}", len(work.steps))
    for first in range(0, len(work.steps), settings.checkpoint_every):
        item = (first, min(first + settings.checkpoint_every, len(work.steps)))
        (records,) = run([Unit(item=item, stage="fit", inputs={**inputs, "from": first})], loop.chunk, ledger=store)
        (record,) = (r for r in records if isinstance(r, Training))
        loop.done.append(record)
        if watcher:
            watcher.step(item[1] - item[0])
        if record.finished:
            break
    if watcher and len(record.steps) < len(work.steps):
        watcher.say(
            f"stopped after {len(record.steps)} of {len(work.steps)} steps: the loss on held-out pairs was lowest"
            f" after {_best(record.steps) + 1}, whose adapter is kept"
        )
    if watcher and (lost := fallen(record.steps)):
        watcher.say(
            f"chosen replies became less likely by {lost:.1f} nats each (mean of the last {LAST} steps):"
            " both sides were pushed down; a term of their own (nll) holds them up"
        )
    return record


@dataclass(frozen=True, slots=True)
class Work:
    """Steps, each in parts that go through the model one after the other, and what is held out."""

    steps: list[list[Batch]]
    held: list[Batch]


def _laid(target: LocalTarget, pairs: Sequence[Pair], settings: Settings) -> Work:
    """All batches, before hours of training. TrainingError where they cannot be trained on."""
    plots = sorted({pair.plot for pair in pairs})
    aside = set(random.Random(settings.seed).sample(plots, math.ceil(settings.held_out * len(plots))))
    kept = [place for place, pair in enumerate(pairs) if pair.plot not in aside]
    held = [place for place, pair in enumerate(pairs) if pair.plot in aside]
    if not kept:
        raise TrainingError(f"all of {len(plots)} plots are held out; hold out a smaller share ({settings.held_out})")
    order = batches(kept, size=settings.batch, epochs=settings.epochs, seed=settings.seed)
    order = order[: settings.most_steps] if settings.most_steps else order
    steps = [_parts(step, settings.accumulate) for step in order]
    looks = [held[start : start + settings.batch] for start in range(0, len(held), settings.batch)]
    if settings.method == "kto" and any(len(part) < 2 for step in [*steps, looks] for part in step):
        raise TrainingError(
            f"KTO compares replies with those to other prompts, and of {len(pairs)} pairs in batches of"
            f" {settings.batch} one is alone; choose another batch size"
        )
    both = settings.method != "sft"
    laid = {tuple(part): lay_out(target, pairs, part, rejected=both) for step in [*steps, looks] for part in step}
    return Work([[laid[tuple(part)] for part in step] for step in steps], [laid[tuple(look)] for look in looks])


def _parts(step: list[int], count: int) -> list[list[int]]:
    size = -(-len(step) // count)
    return [step[start : start + size] for start in range(0, len(step), size)]


def _best(steps: Sequence[Step]) -> int:
    """The number of the step after which the loss on what is held out was lowest."""
    looks = {step.step: step.held for step in steps if step.held is not None}
    return min(looks, key=looks.__getitem__)


def fallen(steps: Sequence[Step]) -> float:
    """Nats by which the chosen replies' mean log-probability fell at the end of training; 0 where it is too little."""
    drifts = [step.drift for step in steps[-LAST:] if step.drift is not None]
    lost = -fmean(drifts) if drifts else 0.0
    return lost if lost > FALL else 0.0


class Loop:
    """Steps in chunks; a model is built only when a chunk has to be computed."""

    def __init__(
        self,
        target: LocalTarget,
        pairs: Pairs,
        work: Work,
        settings: Settings,
        store: Store,
        reference: Sides | None,
        begin: Training | None = None,
    ) -> None:
        """`reference`: of all pairs, where the method has one."""
        self.begin = begin
        self.target, self.pairs, self.work, self.settings, self.store = target, pairs, work, settings, store
        self.reference = reference
        self.done: list[Training] = []
        """The chunks before, in order."""
        self._policy: Policy | None = None
        self._at = 0

    @property
    def policy(self) -> Policy:
        """The model as it is now."""
        if self._policy is None:
            begin = self.store.blob_path(self.begin.state).read_bytes() if self.begin else b""
            self._policy = Policy(self.target, self.settings, begin)
        return self._policy

    def chunk(self, item: tuple[int, int]) -> list[Training]:
        """Do steps start..stop and keep the state, or, at the end, the adapter."""
        start, stop = item
        if self._at != start:
            self._restore(self.done[-1].state)
        steps = list(self.done[-1].steps if self.done else ())
        for number in range(start, stop):
            try:
                steps.append(self.step(number))
            except TrainingError as error:
                raise self._kept(error, steps[:-1]) from error
        self._at = stop
        if self.work.held:
            steps[-1] = steps[-1].model_copy(update={"held": self._look()})
        finished = stop == len(self.work.steps) or self._worn_out(steps)
        if finished and self.work.held and (best := _best(steps)) + 1 < stop:
            self._restore(next(one.state for one in self.done if len(one.steps) == best + 1))
            self._at = -1
        return [self._record(steps, finished=finished)]

    def _record(self, steps: Sequence[Step], *, finished: bool) -> Training:
        file = self.policy.adapter() if finished else self.policy.state()
        return Training(
            method=self.settings.method,
            target=self.target.card.id,
            settings=tuple(self.settings.plain.items()),
            pairs=self.pairs.id,
            steps=tuple(steps),
            state=self.store.put_blob(file, "safetensors"),
            finished=finished,
            parents=(self.target.card.id, self.pairs.id, *([self.begin.id] if self.begin else [])),
        )

    def _kept(self, error: TrainingError, good: Sequence[Step]) -> TrainingError:
        """The error, after the adapter was kept as it was before the step that led to it."""
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
        return bool(looks) and len(looks) - looks.index(_best(steps)) > self.settings.patience

    def step(self, number: int) -> Step:
        """One step of the optimiser. TrainingError where going on would be wrong."""
        parts, settings, policy = self.work.steps[number], self.settings, self.policy
        count = sum(len(part.places) for part in parts)
        seen: list[tuple[Tensor, Sides, Sides]] = []
        for part in parts:
            losses, sides, reference = self._losses(part)
            if number == 0 and self.reference is not None:
                self._check_start(part, sides, reference)
            (losses.sum() / count).backward()
            seen.append((losses.detach(), sides, reference))
        loss, chosen, rejected, before, other = (
            torch.cat(list(of)) for of in zip(*((a, *b, *c) for a, b, c in seen), strict=True)
        )
        self._check("loss", float(loss.mean()), number)
        norm = policy.norm()
        # Weights that are far too large give the same output for everything: a finite loss, and no gradient.
        self._check("gradient norm", norm, number, above=0)
        policy.step(settings.rate(number, len(self.work.steps)))
        gap = margin(Sides(chosen, rejected), Sides(before, other), beta=settings.beta)
        measured = self.reference is not None
        return Step(
            step=number,
            loss=float(loss.mean()),
            margin=float(gap.mean()) if measured else None,
            chosen=float(chosen.mean()),
            rejected=None if settings.method == "sft" else float(rejected.mean()),
            grad_norm=norm,
            drift=float((chosen - before).mean()) if measured else None,
        )

    def _losses(self, batch: Batch) -> tuple[Tensor, Sides, Sides]:
        """The loss of every pair, with its gradient; the log-probabilities of policy and reference, without."""
        policy = batch.log_probs(self.policy.model)
        plain = Sides(policy.chosen.detach(), policy.rejected.detach())
        reference = self._reference(batch) if self.reference is not None else plain
        return losses_of(self.settings, policy, reference, batch.tokens, self._mismatch(batch)), plain, reference

    @torch.no_grad()
    def _look(self) -> float:
        """The mean loss of the pairs that are held out."""
        return float(torch.cat([self._losses(batch)[0] for batch in self.work.held]).mean())

    def _reference(self, batch: Batch) -> Sides:
        """The untrained model's log-probabilities."""
        assert self.reference is not None
        places = list(batch.places)
        return Sides(self.reference.chosen[places], self.reference.rejected[places])

    @torch.no_grad()
    def _mismatch(self, batch: Batch) -> Tensor:
        """KTO's reference point."""
        if self.settings.method != "kto":
            return torch.tensor(0.0)
        others = mismatched(self.target, self.pairs.pairs, batch.places)
        policy, reference = (torch.cat(others.log_probs(model)) for model in (self.policy.model, self.target.model))
        return mismatch(policy, reference)

    def _check(self, what: str, value: float, number: int, *, above: float = -math.inf) -> None:
        if not (math.isfinite(value) and value > above):
            raise TrainingError(f"the {what} at step {number} is {value}; lower the learning rate ({self.settings.lr})")

    def _check_start(self, batch: Batch, policy: Sides, reference: Sides) -> None:
        """Before the first step policy and reference are one, and the loss of DPO is ln 2."""
        off = max(
            float(((a - b).abs() / count).max()) for a, b, count in zip(policy, reference, batch.tokens, strict=True)
        )
        if off > SAME:
            raise TrainingError(
                f"before the first step policy and reference differ by {off:.6f} nats per token, so that the loss of"
                f" DPO would not be ln 2 = {math.log(2):.6f} (an adapter that is not fresh, a stale reference, or text"
                " that tokenises differently)"
            )


def losses_of(how: Settings, policy: Sides, reference: Sides, tokens: Sides, kl: Tensor) -> Tensor:
    """The loss of every pair, shape (B,), by the method."""
    match how.method:
        case "dpo":
            found = dpo(policy, reference, beta=how.beta)
        case "robust":
            found = robust(policy, reference, beta=how.beta, flipped=how.flipped)
        case "ipo":
            found = ipo(policy, reference, beta=how.beta)
        case "ipo-per-token":
            found = ipo_per_token(policy, reference, tokens, beta=how.beta)
        case "kto":
            found = kto(policy, reference, kl, beta=how.beta)
        case "simpo":
            found = simpo(policy, tokens, beta=how.beta, gamma=how.gamma)
        case "sft":
            found = sft(policy)
    return found + how.nll * nll(policy, tokens) if how.nll else found
