"""How a policy is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from truing.errors import UsageError
from truing.targets.local.adapter import MODULES

Pairwise = Literal["dpo", "robust", "ipo", "ipo-per-token", "kto", "simpo", "sft"]
"""Losses of pairs."""
METHODS: tuple[Pairwise, ...] = get_args(Pairwise)
Method = Pairwise | Literal["reward", "rloo"]
"""Those, and the two halves of RLHF."""
FREE = ("simpo", "sft")
"""Methods without a reference."""
Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
EVERY_LAYER = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
"""All linear layers of a Llama-shaped block."""
EVERY_WEIGHT = "all-weights"
"""In place of layers: no adapter, the model's own weights are trained, embeddings and all."""


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
    """Learning rate after the warm-up."""
    schedule: Schedule = "constant"
    """How the learning rate goes on from there: it stays, or falls to 0 along a line or half a cosine."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises along a line."""
    rank: int = 8
    alpha: int = 16
    modules: str = ",".join(MODULES)
    """The layers that get an adapter, by the last part of their names; or `EVERY_WEIGHT`."""
    batch: int = 8
    """Pairs of a step."""
    accumulate: int = 1
    """Parts that a step's pairs go through the model in; more take less memory and share fewer prompts."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them."""
    max_length: int = 0
    """Tokens that a prompt and a reply may have together: of a longer prompt the beginning is cut off.

    0: none is cut off, and what is longer than the context is an error.
    """
    epochs: int = 1
    most_steps: int = 0
    """0: as many as the epochs give."""
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 7
    """Steps of a unit of work, after which everything is kept; also those between two looks at what is held out."""
    held_out: float = 0.0
    """Share of the plots whose pairs are not trained on, but looked at."""
    patience: int = 2
    """Looks without a lower loss on what is held out after which training stops; the adapter is that of the lowest."""

    def __post_init__(self) -> None:
        above = {"beta": self.beta, "lr": self.lr, "rank": self.rank, "alpha": self.alpha, "batch": self.batch,
                 "accumulate": self.accumulate, "epochs": self.epochs, "clip": self.clip,
                 "checkpoint_every": self.checkpoint_every, "patience": self.patience}  # fmt: skip
        for name, value in above.items():
            if not value > 0 or not math.isfinite(value):
                raise UsageError(f"{name} is {value}; give a number above 0")
        for name, value in {"gamma": self.gamma, "nll": self.nll, "most_steps": self.most_steps,
                            "max_length": self.max_length}.items():  # fmt: skip
            if not value >= 0 or not math.isfinite(value):
                raise UsageError(f"{name} is {value}; give 0 or a number above it")
        if not 0 <= self.flipped < 0.5:
            raise UsageError(f"flipped is {self.flipped}; give the share of wrong pairs, at least 0 and under 0.5")
        for name, value in {"warmup": self.warmup, "held_out": self.held_out}.items():
            if not 0 <= value < 1:
                raise UsageError(f"{name} is {value}; give a share, at least 0 and under 1")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}")
        if not all(self.layers):
            raise UsageError(f"modules is {self.modules!r}; name layers, with commas between them")

    @classmethod
    def of(cls, method: Method = "dpo", **said: Any) -> Self:
        """The settings that are usual for a method, but for what is said. UsageError for values that make no sense.

        `modules="all-linear"`, as PEFT has it: every linear layer of a block. `"all-weights"`: the model itself.
        """
        usual: dict[str, Any] = {"beta": 2.0} if method == "simpo" else {}
        if said.get("modules") == "all-linear":
            said["modules"] = EVERY_LAYER
        return cls(method=method, **(usual | said))

    @property
    def whole(self) -> bool:
        """Whether all weights are trained."""
        return self.modules == EVERY_WEIGHT

    @property
    def layers(self) -> list[str]:
        """The layers that get an adapter."""
        return self.modules.split(",")

    @property
    def plain(self) -> dict[str, float | int | str]:
        """As they are recorded: with a limit of lengths where there is one."""
        said = {name: int(value) if isinstance(value, bool) else value for name, value in asdict(self).items()}
        return {name: value for name, value in said.items() if value or name != "max_length"}

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step, counted from 0, of so many. The first is above 0, and so is the last."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        left = (steps - step) / (steps - warm)  # 1 after the warm-up
        share = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return self.lr * share[self.schedule]
