"""The model that is trained: a target with a fresh adapter, and its optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from safetensors.torch import load as unpack_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from truing.errors import UsageError
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import BASE, mark, peft_quiet, replaced
from truing.targets.local.attention import kept
from truing.targets.local.lift import sharing, short_format
from truing.train.settings import Settings

SCORE = "score.weight"
"""Name of the head that makes a reward out of a hidden state."""


MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of every weight."""


class Policy:
    """A copy of a target's modules with an adapter put in, or with all weights free.

    Weights that stay as they are, are the target's own.
    """

    def __init__(self, target: LocalTarget, settings: Settings, begin: bytes = b"", *, scores: bool = False) -> None:
        """`begin`: the file of an adapter of the same shape, which is trained on. `scores`: with a head for rewards.

        UsageError where the model has no such layers, or the file is of others.
        """
        self._target, self._clip, self._whole = target, settings.clip, settings.whole
        tensors = unpack_tensors(begin) if begin else {}
        score = tensors.pop(SCORE, None)
        self.peft: Any = None
        if settings.whole:
            self.model: Any = _free(target, tensors)
            self.named = dict(self.model.named_parameters())
        else:
            self.peft = _adapted(target, settings, tensors)
            self.model = self.peft.get_base_model()
            self.named = {name: p for name, p in self.peft.named_parameters() if p.requires_grad}
        if scores:
            width = self.model.get_input_embeddings().weight.shape[1]
            fresh = torch.zeros(width, device=target.model.device)
            self.score_D = torch.nn.Parameter(fresh if score is None else score.to(fresh.device))
            self.named[SCORE] = self.score_D
        self.optimiser = torch.optim.AdamW(self.named.values(), lr=settings.lr, weight_decay=0.0)
        if settings.gradient_checkpointing:
            _recompute(self.model)
        self._before: list[Tensor] = []

    def norm(self) -> float:
        """Clip the gradient that was accumulated; its norm before that."""
        return float(torch.nn.utils.clip_grad_norm_(self.named.values(), self._clip))

    def step(self, lr: float) -> None:
        """Follow the gradient."""
        self._before = [weight.detach().clone() for weight in self.named.values()]
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def back(self) -> bool:
        """Put the weights back to what they were before the last step; whether there was one here."""
        for weight, before in zip(self.named.values(), self._before, strict=False):
            weight.copy_(before)
        return bool(self._before)

    def state(self) -> bytes:
        """Everything that the next step depends on, as a safetensors file."""
        tensors = {f"weight.{name}": p.detach() for name, p in self.named.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return pack_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})

    def restore(self, state: bytes) -> None:
        """Go on exactly where a state was taken."""
        tensors: dict[str, Tensor] = unpack_tensors(state)
        for name, parameter in self.named.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            # What has had no gradient yet has no state either.
            held = {key: tensors[place] for key in MOMENTS if (place := f"{key}.{name}") in tensors}
            if held:
                # AdamW counts its steps on the cpu.
                self.optimiser.state[parameter] = {
                    key: tensor.clone() if key == "step" else tensor.clone().to(parameter.device)
                    for key, tensor in held.items()
                }

    def weights(self) -> bytes:
        """What was trained, in PEFT's own names or the model's, and a mark of the base, as a safetensors file."""
        from peft import get_peft_model_state_dict

        found = dict(self.named) if self._whole else get_peft_model_state_dict(self.peft)
        tensors = {name: tensor.detach().contiguous() for name, tensor in found.items()}
        if SCORE in self.named:
            tensors[SCORE] = self.score_D.detach()
        return pack_tensors(tensors, metadata={BASE: mark(self._target.model)})


def _adapted(target: LocalTarget, settings: Settings, begin: Mapping[str, Tensor]) -> Any:
    """The model with a fresh adapter, or with one to go on from."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    _has_layers(target, settings.layers)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=settings.layers,
        task_type="CAUSAL_LM",
    )
    before = torch.get_rng_state()
    torch.manual_seed(settings.seed)
    with peft_quiet():
        made = get_peft_model(sharing(target.lifted.model), config)
        if begin and set_peft_model_state_dict(made, dict(begin)).unexpected_keys:
            raise UsageError(f"the adapter to go on from is not one of {', '.join(settings.layers)} alone")
    torch.set_rng_state(before)
    return made


def _free(target: LocalTarget, begin: Mapping[str, Tensor]) -> Any:
    """A copy of the model whose weights are trained, or that goes on from others."""
    if short_format(target.model):
        raise UsageError(
            f"all weights of {target.card.name} cannot be trained in {target.card.dtype}: small steps would be rounded"
            " away. Load it in fp32 (TRUING_DTYPE=fp32), or train an adapter"
        )
    made = deepcopy(target.model)
    if begin:
        try:
            replaced(begin, made)
        except ValueError as error:
            raise UsageError(f"the weights to go on from are not those of {target.card.name}: {error}") from error
    for weight in made.parameters():
        weight.requires_grad_(True)
    return made


def _has_layers(target: LocalTarget, layers: list[str]) -> None:
    known = {
        name.rpartition(".")[2] for name, module in target.model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    if unknown := [name for name in layers if name not in known]:
        raise UsageError(
            f"{target.card.name} has no linear layers named {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )


def _recompute(model: Any) -> None:
    """Let blocks keep what enters them alone, and compute the rest again on the way back."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": kept(model)})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the block alone, not what is in it: nothing is to be dropped out
