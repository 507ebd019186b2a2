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
from truing.targets.local.adapter import CONFIG, MODULES, WEIGHTS, Adapter


def adapter(training: Training, store: Store) -> Adapter:
    """The adapter of a training; of a checkpoint, the one that there was by then. TrainingError for a reward model."""
    weights = store.blob_path(training.state).read_bytes()
    if training.method == "reward":
        raise TrainingError(f"training {training.id[:12]} is a reward model, which writes no replies")
    if not training.finished:
        begun = "weight."
        some = {name: one for name, one in unpack_tensors(weights).items() if name.startswith(begun)}
        weights = pack_tensors({name.removeprefix(begun).replace(".default", ""): one for name, one in some.items()})
    return Adapter.of(weights, _config(training), f"training {training.id[:12]}")


def export(training: Training, store: Store, folder: Path) -> Path:
    """Write it (adapter_config.json, adapter_model.safetensors). TrainingError where training is not finished."""
    if not training.finished:
        raise TrainingError(
            f"training {training.id[:12]} is not finished ({len(training.steps)} steps); run it to its end"
        )
    weights = adapter(training, store).weights
    # Not by PEFT's save_pretrained, which writes in place.
    write_whole(folder / CONFIG, json.dumps(_config(training), indent=2, sort_keys=True).encode())
    write_whole(folder / WEIGHTS, weights)
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
