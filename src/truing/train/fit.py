"""Fit a LoRA adapter. Small, deterministic by seed, checkpointed in units of a few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, get_args

import torch
from safetensors.torch import load_file
from safetensors.torch import save as pack_tensors
from torch import Tensor

from truing.errors import TrainingError, UsageError
from truing.files import write_whole
from truing.records import Blob, Pairs, Step, Training
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import BASE, MODULES, mark, peft_quiet
from truing.train.batches import Batch, batches, mismatched
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
from truing.train.reference import reference

Method = Literal["dpo", "robust", "ipo", "ipo-per-token", "kto", "simpo", "sft"]
METHODS: tuple[Method, ...] = get_args(Method)
FREE = ("simpo", "sft")
"""Methods without a reference."""
LAST = 5
"""Steps at the end by which it is judged whether what was chosen became less likely."""
FALL = 1.0
"""Nats that a chosen reply may lose before it is said."""
SAME = 1e-4
"""Nats per token by which the reference may be off the policy before the first step: rounding."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an adapter is fitted."""

    method: Method = "dpo"
    beta: float = 0.1
    """How strongly the reference holds on; simpo's scale of rewards (usually 2 and more)."""
    gamma: float = 0.5
    """simpo: by how much the chosen reward should be ahead."""
    flipped: float = 0.1
    """robust: the share of pairs that are the wrong way round."""
    nll: float = 0.0
    """Weight of the chosen continuation's negative log-probability per token, on top."""
    lr: float = 2e-4
    rank: int = 8
    alpha: int = 16
    batch: int = 8
    epochs: int = 1
    most_steps: int = 0
    """0: as many as the epochs give."""
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 7

    def __post_init__(self) -> None:
        above = {"beta": self.beta, "lr": self.lr, "rank": self.rank, "alpha": self.alpha, "batch": self.batch,
                 "epochs": self.epochs, "clip": self.clip, "checkpoint_every": self.checkpoint_every}  # fmt: skip
        for name, value in above.items():
            if not value > 0 or not math.isfinite(value):
                raise UsageError(f"{name} is {value}; give a number above 0")
        for name, value in {"gamma": self.gamma, "nll": self.nll, "most_steps": self.most_steps}.items():
            if not value >= 0 or not math.isfinite(value):
                raise UsageError(f"{name} is {value}; give 0 or a number above it")
        if not 0 <= self.flipped < 0.5:
            raise UsageError(f"flipped is {self.flipped}; give the share of wrong pairs, at least 0 and under 0.5")

    @classmethod
    def of(cls, method: Method = "dpo", **said: float) -> Self:
        """The settings that are usual for a method, but for what is said. UsageError for values that make no sense."""
        usual: dict[str, Any] = {"beta": 2.0} if method == "simpo" else {}
        return cls(method=method, **(usual | said))


class _Run:
    """A model with a fresh adapter and its optimiser, at some step."""

    def __init__(self, target: LocalTarget, settings: Settings) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules=list(MODULES),
            task_type="CAUSAL_LM",
        )
        before = torch.get_rng_state()
        torch.manual_seed(settings.seed)
        # Modules of its own, which the adapter is put into; the weights, which stay as they are, are the target's.
        shared = {id(weight): weight for weight in target.model.parameters()}
        with peft_quiet():
            self.peft: Any = get_peft_model(deepcopy(target.model, shared), config)
        torch.set_rng_state(before)
        self.model: Any = self.peft.get_base_model()
        self.named = {name: p for name, p in self.peft.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(self.named.values(), lr=settings.lr, weight_decay=0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        tensors = {f"weight.{name}": p.detach() for name, p in self.named.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on exactly where a state was taken."""
        for name, parameter in self.named.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[parameter] = {key: tensors[f"{key}.{name}"].clone() for key in keys}


def fit(
    target: LocalTarget, pairs: Pairs, store: Store, *, settings: Settings | None = None, watcher: Watcher | None = None
) -> Training:
    """Train an adapter on the pairs; the record's blob is the adapter in PEFT's layout.

    TrainingError where there are no pairs, the step-0 loss is not ln 2 (DPO) or a loss is not finite. Killed and
    rerun, training goes on from its last checkpoint and ends with the same bytes.
    """
    need(target, "Trainable")
    settings = settings or Settings()
    if not pairs.pairs:
        raise TrainingError("there are no pairs to train on: no surface of the claim could be used")
    laid = batches(target, pairs.pairs, size=settings.batch, epochs=settings.epochs, seed=settings.seed)
    laid = laid[: settings.most_steps] if settings.most_steps else laid
    if settings.method == "kto" and any(len(batch.places) < 2 for batch in laid):  # before hours of training
        raise TrainingError(
            f"KTO compares replies with those to other prompts, and of {len(pairs.pairs)} pairs in batches of"
            f" {settings.batch} one is alone; choose another batch size"
        )
    start = None if settings.method in FREE else reference(target, pairs.pairs, store, watcher=watcher)
    loop = _Loop(target, pairs, laid, settings, store, start)
    inputs = {"target": target.card.id, "pairs": pairs.id, "settings": asdict(settings)}
    chunks = range(0, len(laid), settings.checkpoint_every)
    units = [
        Unit(
            item=(start, min(start + settings.checkpoint_every, len(laid))),
            stage="fit",
            inputs={**inputs, "from": start},
        )
        for start in chunks
    ]
    if watcher:
        watcher.start(f"train: {settings.method}", len(laid))
    done: list[Training] = []
    for unit in units:
        loop.previous = done[-1] if done else None
        (records,) = run([unit], loop.chunk, ledger=store)
        (record,) = (r for r in records if isinstance(r, Training))
        done.append(record)
        if watcher:
            watcher.step(unit.item[1] - unit.item[0])
    if watcher and (lost := fallen(done[-1].steps)):
        watcher.say(
            f"chosen replies became less likely by {lost:.1f} nats each (mean of the last {LAST} steps):"
            " both sides were pushed down; a term of their own (nll) holds them up"
        )
    return done[-1]


def fallen(steps: Sequence[Step]) -> float:
    """Nats by which the chosen replies' mean log-probability fell at the end of training; 0 where it is too little."""
    drifts = [step.drift for step in steps[-LAST:] if step.drift is not None]
    lost = -fmean(drifts) if drifts else 0.0
    return lost if lost > FALL else 0.0


class _Loop:
    """Steps in chunks; a model is built only when a chunk has to be computed."""

    def __init__(
        self,
        target: LocalTarget,
        pairs: Pairs,
        laid: Sequence[Batch],
        settings: Settings,
        store: Store,
        reference: Sides | None,
    ) -> None:
        """`reference`: of all pairs, where the method has one."""
        self.target, self.pairs, self.laid, self.settings, self.store = target, pairs, laid, settings, store
        self.reference = reference
        self.previous: Training | None = None
        self._run: _Run | None = None
        self._at = 0

    def chunk(self, item: tuple[int, int]) -> list[Training]:
        """Do steps start..stop and keep the state, or, at the end, the adapter."""
        start, stop = item
        if self._run is None:
            self._run = _Run(self.target, self.settings)
        if self._at != start:
            assert self.previous is not None  # chunks come in order
            self._run.restore(load_file(self.store.blob_path(self.previous.state)))
        steps = [
            *(self.previous.steps if self.previous else ()),
            *(self._step(number) for number in range(start, stop)),
        ]
        self._at = stop
        finished = stop == len(self.laid)
        state = adapter_blob(self._run.peft, self.target, self.store) if finished else self._checkpoint()
        record = Training(
            method=self.settings.method,
            target=self.target.card.id,
            settings=tuple(asdict(self.settings).items()),
            pairs=self.pairs.id,
            steps=tuple(steps),
            state=state,
            finished=finished,
            parents=(self.target.card.id, self.pairs.id),
        )
        return [record]

    def _checkpoint(self) -> Blob:
        assert self._run is not None
        return self.store.put_blob(pack_tensors(self._run.state()), "safetensors")

    def _step(self, number: int) -> Step:
        assert self._run is not None
        batch, settings, run_ = self.laid[number], self.settings, self._run
        policy = batch.log_probs(run_.model)
        reference = self._reference(batch, policy)
        losses = losses_of(settings, policy, reference, batch.tokens, self._mismatch(batch))
        loss = losses.mean()
        self._check(float(loss.detach()), number)
        if number == 0:
            self._check_start(batch, policy, reference)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(run_.named.values(), settings.clip))
        # Weights that are far too large give the same output for everything: a finite loss, and no gradient.
        if not math.isfinite(norm) or norm == 0:
            raise TrainingError(
                f"the gradient norm at step {number} is {norm}; lower the learning rate ({settings.lr})"
            )
        run_.optimiser.step()
        run_.optimiser.zero_grad()
        gap = margin(policy, reference, beta=settings.beta)
        return Step(
            step=number,
            loss=float(loss.detach()),
            margin=None if self.reference is None else float(gap.detach().mean()),
            chosen=float(policy.chosen.detach().mean()),
            rejected=float(policy.rejected.detach().mean()),
            grad_norm=norm,
            drift=None if self.reference is None else float((policy.chosen.detach() - reference.chosen).mean()),
        )

    def _reference(self, batch: Batch, policy: Sides) -> Sides:
        """The untrained model's log-probabilities."""
        if self.reference is None:
            return Sides(policy.chosen.detach(), policy.rejected.detach())
        places = list(batch.places)
        return Sides(self.reference.chosen[places], self.reference.rejected[places])

    @torch.no_grad()
    def _mismatch(self, batch: Batch) -> Tensor:
        """KTO's reference point."""
        if self.settings.method != "kto":
            return torch.tensor(0.0)
        assert self._run is not None
        others = mismatched(self.target, self.pairs.pairs, batch.places)
        policy, reference = (torch.cat(others.log_probs(model)) for model in (self._run.model, self.target.model))
        return mismatch(policy, reference)

    def _check(self, loss: float, number: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(f"the loss at step {number} is {loss}; lower the learning rate ({self.settings.lr})")

    def _check_start(self, batch: Batch, policy: Sides, reference: Sides) -> None:
        """Before the first step policy and reference are one, and the loss of DPO is ln 2."""
        off = max(
            float(((a.detach() - b).abs() / count).max())
            for a, b, count in zip(policy, reference, batch.tokens, strict=True)
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


def adapter_blob(peft: Any, target: LocalTarget, store: Store) -> Blob:
    """The adapter's weights, in PEFT's own names, and what they were trained on."""
    from peft import get_peft_model_state_dict

    tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(peft).items()}
    return store.put_blob(pack_tensors(tensors, metadata={BASE: mark(target.model)}), "safetensors")


def export(training: Training, store: Store, folder: Path) -> Path:
    """Write a finished adapter as a PEFT folder (adapter_config.json, adapter_model.safetensors)."""
    from peft import LoraConfig

    if not training.finished:
        raise TrainingError(
            f"training {training.id[:12]} is not finished ({len(training.steps)} steps); run it to its end"
        )
    said = dict(training.settings)
    config = LoraConfig(
        r=int(said["rank"]),
        lora_alpha=int(said["alpha"]),
        lora_dropout=0.0,
        target_modules=list(MODULES),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    # Not by its save_pretrained, which writes in place, and sets in an order that changes from run to run.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_whole(folder / "adapter_config.json", json.dumps(plain, indent=2, sort_keys=True).encode())
    write_whole(folder / "adapter_model.safetensors", store.blob_path(training.state).read_bytes())
    return folder
