"""What is put on a model, as a value: a PEFT adapter, or weights in place of all of its own."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as unpack_tensors
from torch import Tensor

from truing.errors import TargetError
from truing.records import Blob, Id, canonical, digest, digest_of
from truing.targets.local.lift import lift_weights, lifted, short_format
from truing.text import short

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINT = "model.safetensors"
MEDIA = "safetensors"
BASE = "truing_base"
"""Entry of the weights' metadata with the mark of what they were trained on."""
WHOLE = canonical({"whole": True}).decode()
"""In place of an adapter's settings: the file has weights for all of the model."""
MARKED = 64
"""Weights of each layer that go into a mark."""
MODULES = ("q_proj", "v_proj", "up_proj", "down_proj")
"""Layers that training puts an adapter on."""
NEUTRAL = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
"""Settings that say where an adapter came from and what it is for, not what it does."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is loaded is what is hashed: PEFT sees these two values and nothing else of the folder they came from."""

    weights: bytes
    """A safetensors file in PEFT's own names; of a whole model's weights, in the model's."""
    config: str
    """Canonical JSON of the settings that differ from PEFT's defaults, or `WHOLE`."""
    source: str = field(compare=False)
    """Where it came from, for messages."""
    named: str = field(default="", compare=False)
    """What its configuration calls the model that it was trained on; "" where that says nothing."""

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter in a folder that `truing train` or PEFT wrote, or the weights of a whole checkpoint.

        TargetError where there is neither.
        """
        if not (folder / CONFIG).is_file() and (folder / CHECKPOINT).is_file():
            return cls((folder / CHECKPOINT).read_bytes(), WHOLE, str(folder))
        for part in (CONFIG, WEIGHTS):
            if not (folder / part).is_file():
                raise TargetError(
                    f"no adapter at {folder} ({part} is missing)."
                    " Give a folder that `truing train --out` or PEFT wrote."
                )
        try:
            said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            return cls.of((folder / WEIGHTS).read_bytes(), said, str(folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(f"cannot read the adapter {folder}: {error!r}. Is it a whole PEFT adapter?") from error

    @classmethod
    def of(cls, weights: bytes, said: Mapping[str, Any], source: str) -> Adapter:
        """A file of weights with the settings that PEFT writes beside it."""
        named = str(said.get("base_model_name_or_path") or "")
        return cls(weights, canonical(_settled(said)).decode(), source, named)

    @property
    def base(self) -> str:
        """The mark of the weights that it was trained on, where `truing train` made it; "" where it is not known."""
        size = int.from_bytes(self.weights[:8], "little")
        try:
            return str(json.loads(self.weights[8 : 8 + size])["__metadata__"][BASE])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def blob(self) -> Blob:
        """The name of the weights."""
        return Blob(digest=digest(self.weights), size=len(self.weights), media=MEDIA)

    @property
    def id(self) -> Id:
        """Digest of weights and settings."""
        return digest_of({"weights": self.blob.digest, "config": self.config})

    def onto(self, model: Any) -> Any:
        """A copy of a model with the adapter merged in. TargetError where not all of it, and of what it needs, fits.

        In bf16 the adapted layers become fp32, and what passes between layers: else much of it would be rounded away.
        """
        if self.config == WHOLE:
            return self._instead(model)
        from peft import PeftModel, get_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        with tempfile.TemporaryDirectory() as place:
            (Path(place) / CONFIG).write_text(self.config, encoding="utf-8")
            (Path(place) / WEIGHTS).write_bytes(self.weights)
            try:
                with peft_quiet():
                    made = PeftModel.from_pretrained(self._ready(model), place)
                    wanted = set(get_peft_model_state_dict(made, save_embedding_layers=False))
                with safe_open(Path(place) / WEIGHTS, framework="pt") as file:
                    _whole(wanted, set(file.keys()))
                if short_format(model):
                    lift_weights([layer.base_layer for layer in made.modules() if isinstance(layer, BaseTunerLayer)])
                return made.merge_and_unload()
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
                raise TargetError(
                    f"cannot put the adapter {self.source} on {type(model).__name__}: {short(error)}."
                    " Is it for this model, and is it whole?"
                ) from error

    def _ready(self, model: Any) -> Any:
        """A copy to put it on; layers of which it brings new weights are in fp32."""
        made = deepcopy(lifted(model))
        if short_format(model):
            new = json.loads(self.config).get("modules_to_save") or ()
            lift_weights([module for name, module in made.named_modules() if name.rpartition(".")[2] in new])
        return made

    def _instead(self, model: Any) -> Any:
        made = deepcopy(model)
        try:
            replaced(unpack_tensors(self.weights), made)
        except (ValueError, SafetensorError) as error:
            raise TargetError(
                f"cannot put the weights {self.source} in place of those of {type(model).__name__}: {short(error)}"
            ) from error
        return made


def replaced(weights: Mapping[str, Tensor], model: Any) -> None:
    """Put weights into a model's own, in place. ValueError unless they are all of them, in their shapes."""
    own = dict(model.named_parameters())
    _whole(set(own), set(weights))
    with torch.no_grad():
        for name, weight in own.items():
            if weight.shape != weights[name].shape:
                raise ValueError(f"{name} has the shape {tuple(weights[name].shape)}, not {tuple(weight.shape)}")
            weight.copy_(weights[name])


def mark(model: Any) -> str:
    """A digest of some weights of every layer that training puts an adapter on.

    In bf16, so that it is the same for the same weights in either number format, under whatever name they were loaded.
    """
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in MODULES]
    some = [w[:: max(1, len(w) // MARKED)] for w in (layer.weight.detach().flatten() for layer in layers)]
    return digest_of([[float(value) for value in w.bfloat16().tolist()] for w in some])


def _whole(wanted: set[str], given: set[str]) -> None:
    """ValueError unless they are the same: PEFT leaves out what finds no place, and makes up what is not given."""
    if strange := sorted(wanted ^ given):
        what = "has weights for" if strange[0] in given else "has no weights for"
        raise ValueError(f"it {what} {strange[0]}, the first of {len(strange)} that differ")


@contextmanager
def peft_quiet() -> Iterator[None]:
    """Around calls of PEFT that read a property of transformers which is on its way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # of which `onto` makes an error
        yield


def _settled(said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter. PEFT writes sets of names in no fixed order, and its own version beside them."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[said["peft_type"]]
    usual: dict[str, Any] = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    usual |= {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    kept = {key: _sorted(value) for key, value in said.items() if key not in NEUTRAL}
    return {key: value for key, value in kept.items() if key == "peft_type" or key not in usual or usual[key] != value}


def _sorted(value: Any) -> Any:
    names = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return sorted(value) if names else value
