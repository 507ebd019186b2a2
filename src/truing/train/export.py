"""A trained adapter: as a value that a target takes, and as a folder that PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load as unpack_tensors
from safetensors.torch import save as pack_tensors

from truing.errors import TrainingError
from truing.files import write_whole
from truing.records import Training
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import CONFIG, MODULES, WEIGHTS, WHOLE, Adapter
from truing.train.settings import EVERY_WEIGHT


def adapter(training: Training, store: Store) -> Adapter:
    """The adapter of a training; of a checkpoint, the one that there was by then. TrainingError for a reward model.

    Where all weights were trained, these, to be put in place of the target's.
    """
    weights = store.blob_path(training.state).read_bytes()
    if training.method == "reward":
        raise TrainingError(f"training {training.id[:12]} is a reward model, which writes no replies")
    whole = dict(training.settings).get("modules") == EVERY_WEIGHT
    if not training.finished:
        begun = "weight."
        some = {name: one for name, one in unpack_tensors(weights).items() if name.startswith(begun)}
        weights = pack_tensors({name.removeprefix(begun).replace(".default", ""): one for name, one in some.items()})
    source = f"training {training.id[:12]}"
    return Adapter(weights, WHOLE, source) if whole else Adapter.of(weights, _config(training), source)


def export(training: Training, store: Store, folder: Path, *, target: LocalTarget | None = None) -> Path:
    """Write it: an adapter as PEFT does (adapter_config.json, adapter_model.safetensors).

    Where all weights were trained, a checkpoint that transformers loads; this needs the `target`. TrainingError where
    training is not finished.
    """
    if not training.finished:
        raise TrainingError(
            f"training {training.id[:12]} is not finished ({len(training.steps)} steps); run it to its end"
        )
    made = adapter(training, store)
    if made.config == WHOLE:
        if target is None:
            raise TrainingError(
                f"training {training.id[:12]} trained all weights; they need their target to be written"
            )
        target.with_adapter(made).save(folder)
        return folder
    # Not by PEFT's save_pretrained, which writes in place.
    write_whole(folder / CONFIG, json.dumps(_config(training), indent=2, sort_keys=True).encode())
    write_whole(folder / WEIGHTS, made.weights)
    return folder


def _config(training: Training) -> dict[str, Any]:
    """PEFT's settings, sets of names in a fixed order."""
    from peft import LoraConfig

    said = dict(training.settings)
    config = LoraConfig(
        r=int(said["rank"]),
        lora_alpha=int(said["alpha"]),
        lora_dropout=0.0,
        target_modules=str(said.get("modules", ",".join(MODULES))).split(","),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
