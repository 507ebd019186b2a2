"""Fit an adapter to preferences. Small, deterministic by seed, checkpointed in units of a few steps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from truing.errors import TrainingError
from truing.records import Pair, Pairs, Step, Training
from truing.runner import Watcher
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.lift import short_format
from truing.train.batches import Batch, batches, lay_out, mismatched, planted, tokens_of, truncated
from truing.train.loop import Job, follow, go
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
from truing.train.reference import AT_ONCE, reference, scored
from truing.train.settings import FREE, Settings

LAST = 5
"""Steps at the end by which it is judged whether what was chosen became less likely."""
FALL = 1.0
"""Nats that a chosen reply may lose before it is said."""
FOLLOWED = 4
"""Chosen replies on which the divergence is followed."""
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
    start = check = None
    if settings.method not in FREE:
        start, check = _start(target, pairs.pairs, store, settings, watcher)

    def build() -> Policy:
        return Policy(target, settings, store.blob_path(begin.state).read_bytes() if begin else b"")

    task = Preferences(target, pairs.pairs, work, settings, start, check)
    inputs: dict[str, Any] = {"begin": begin.id} if begin else {}
    inputs |= {"followed": FOLLOWED} if start is not None else {}
    shortened = truncated(target, pairs.pairs, settings.max_length, watcher, rejected=settings.method != "sft")
    job = Job(
        settings.method, target.card.id, settings.plain, pairs.id, build, inputs=inputs,
        parents=(begin.id,) if begin else (), every=settings.checkpoint_every, patience=settings.patience,
        look=task.look, truncated=shortened, alarm=alarm,
    )  # fmt: skip
    return go(job, task, store, watcher=watcher)


Reference = Callable[[Batch], Sides]
"""Log-probabilities of the untrained model for a batch, without gradient."""
Check = Callable[[], None]


def _start(
    target: LocalTarget, pairs: Sequence[Pair], store: Store, settings: Settings, watcher: Watcher | None
) -> tuple[Reference, Check | None]:
    """The reference, and where it was kept, what makes sure before the first step that it is still the target's."""
    if short_format(target.model):
        # A token is off by some 0.03 nats in a batch of another shape. In the same one both sides are off alike.
        return computed(target), None
    most = settings.max_length
    kept = reference(target, pairs, store, most=most, watcher=watcher)

    def check() -> None:
        rng = random.Random(f"check of the reference {settings.seed}")
        places = [rng.choice(range(len(pairs))[start : start + AT_ONCE]) for start in range(0, len(pairs), AT_ONCE)]
        some = [pairs[place] for place in places]
        both = zip(scored(target, some, most=most), Sides(kept.chosen[places], kept.rejected[places]), strict=True)
        counts = zip(
            *(map(len, (a[1], b[1])) for a, b in (tokens_of(target, one, most=most) for one in some)), strict=True
        )
        off = max(
            float(((a - b).abs() / torch.tensor(count)).max()) for (a, b), count in zip(both, counts, strict=True)
        )
        if off > SAME:
            raise TrainingError(
                f"the reference that was kept and what {target.card.name} gives now differ by {off:.6f} nats per token:"
                " the store is stale; give another"
            )

    return known(kept), check


def alarm(steps: Sequence[Step]) -> str:
    """What is said while training goes on where both sides are pushed down; "" where they are not."""
    if (lost := fall(steps)) is None or lost <= FALL:
        return ""
    return (
        f"chosen replies became less likely by {lost:.1f} nats each (mean of the last {min(LAST, len(steps))} steps):"
        " both sides were pushed down; a term of their own (nll) holds them up"
    )


def known(sums: Sides) -> Reference:
    """What was computed before, of every pair."""
    return lambda batch: Sides(sums.chosen[list(batch.places)], sums.rejected[list(batch.places)])


def computed(target: LocalTarget) -> Reference:
    """What the target gives for the batch as it stands, by the same kernels as with gradients, of which it has none."""
    return lambda batch: batch.log_probs(target.lifted.model)


@dataclass(frozen=True, slots=True)
class Work:
    """Steps, each in parts that go through the model one after the other, and what is held out."""

    steps: list[list[Batch]]
    held: list[Batch]
    some: Batch
    """A few chosen replies, on which the divergence from the reference is followed."""
    others: dict[tuple[int, ...], Batch]
    """KTO: each batch with the replies to other prompts, by its places."""


def _laid(target: LocalTarget, pairs: Sequence[Pair], settings: Settings) -> Work:
    """All batches, before hours of training. TrainingError where they cannot be trained on."""
    plots = sorted({pair.plot for pair in pairs})
    aside = set(random.Random(settings.seed).sample(plots, math.ceil(settings.held_out * len(plots))))
    kept = [place for place, pair in enumerate(pairs) if pair.plot not in aside]
    held = [place for place, pair in enumerate(pairs) if pair.plot in aside]
    if not kept:
        raise TrainingError(f"all of {len(plots)} plots are held out; hold out a smaller share ({settings.held_out})")
    steps = [_parts(step, settings.accumulate) for step in batches(kept, settings)]
    looks = [held[start : start + settings.batch] for start in range(0, len(held), settings.batch)]
    if settings.method == "kto" and any(len(part) < 2 for step in [*steps, looks] for part in step):
        raise TrainingError(
            f"KTO compares replies with those to other prompts, and of {len(pairs)} pairs in batches of"
            f" {settings.batch} one is alone; choose another batch size"
        )
    both, most = settings.method != "sft", settings.max_length
    laid = {
        tuple(part): lay_out(target, pairs, part, rejected=both, most=most) for step in [*steps, looks] for part in step
    }
    few = random.Random(settings.seed).sample(kept, min(FOLLOWED, len(kept)))
    paths = [tokens_of(target, pairs[place], rejected=both, most=most)[0] for place in few]
    some = planted([side for prompt, reply in paths for side in ((prompt, reply), (prompt, []))], few)
    kto = laid if settings.method == "kto" else ()
    others = {part: mismatched(target, pairs, part, most=most) for part in kto}
    return Work(
        [[laid[tuple(part)] for part in step] for step in steps], [laid[tuple(look)] for look in looks], some, others
    )


def _parts(step: list[int], count: int) -> list[list[int]]:
    size = -(-len(step) // count)
    return [step[start : start + size] for start in range(0, len(step), size)]


def fall(steps: Sequence[Step]) -> float | None:
    """Nats by which the chosen replies' log-probability is below the reference's, mean over the last steps.

    Below 0 where it rose; None where there is no reference.
    """
    drifts = [step.drift for step in steps[-LAST:] if step.drift is not None]
    return -fmean(drifts) if drifts else None


class Preferences:
    """Pairs that a policy learns to prefer, step by step."""

    def __init__(
        self, target: LocalTarget, pairs: Sequence[Pair], work: Work, settings: Settings, reference: Reference | None,
        check: Check | None = None,
    ) -> None:  # fmt: skip
        """`reference`: where the method has one. `check`: is called before the first step that is made here."""
        self.target, self.pairs, self.work, self.settings, self.reference = target, pairs, work, settings, reference
        self._check = check

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return len(self.work.steps)

    def step(self, policy: Policy, number: int) -> Step:
        """One step of the optimiser. TrainingError where going on would be wrong."""
        check, self._check = self._check, None
        if check is not None:
            check()
        parts, settings = self.work.steps[number], self.settings
        count = sum(len(part.places) for part in parts)
        seen: list[tuple[Tensor, Sides, Sides]] = []
        for part in parts:
            losses, sides, reference = self._losses(policy, part)
            if number == 0 and self.reference is not None:
                self._check_start(part, sides, reference)
            (losses.sum() / count).backward()
            seen.append((losses.detach(), sides, reference))
        loss, chosen, rejected, before, other = (
            torch.cat(list(of)) for of in zip(*((a, *b, *c) for a, b, c in seen), strict=True)
        )
        norm = follow(policy, settings, number, self.steps, loss=float(loss.mean()))
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

    @torch.no_grad()
    def look(self, policy: Policy, last: Step) -> Step:
        """The step with the mean loss of the pairs that are held out, and the divergence on a few chosen replies."""
        more: dict[str, float] = {}
        if self.work.held:
            losses = torch.cat([self._losses(policy, batch)[0] for batch in self.work.held])
            more["held"] = float(losses.mean())
        if self.reference is not None:
            more["kl"] = float(self.work.some.divergence(policy.model, self.target.lifted.model).mean())
        return last.model_copy(update=more)

    def _losses(self, policy: Policy, batch: Batch) -> tuple[Tensor, Sides, Sides]:
        """The loss of every pair, with its gradient; the log-probabilities of policy and reference, without."""
        found = batch.log_probs(policy.model)
        plain = Sides(found.chosen.detach(), found.rejected.detach())
        reference = self.reference(batch) if self.reference is not None else plain
        kl = self._mismatch(policy, batch)
        return losses_of(self.settings, found, reference, batch.tokens, kl), plain, reference

    @torch.no_grad()
    def _mismatch(self, policy: Policy, batch: Batch) -> Tensor:
        """KTO's reference point."""
        if self.settings.method != "kto":
            return torch.tensor(0.0)
        others = self.work.others[batch.places]
        ours, before = (torch.cat(others.log_probs(model)) for model in (policy.model, self.target.lifted.model))
        return mismatch(ours, before)

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
        case _:
            raise ValueError(f"{how.method} is no loss of pairs")
    return found + how.nll * nll(policy, tokens) if how.nll else found
