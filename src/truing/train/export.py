"""A finished adapter as a folder that PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path

from truing.errors import TrainingError
from truing.files import write_whole
from truing.records import Training
from truing.store import Store
from truing.targets.local.adapter import MODULES


def export(training: Training, store: Store, folder: Path) -> Path:
    """Write it (adapter_config.json, adapter_model.safetensors). TrainingError where training is not finished."""
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
        target_modules=str(said.get("modules", ",".join(MODULES))).split(","),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    # Not by its save_pretrained, which writes in place, and sets in an order that changes from run to run.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_whole(folder / "adapter_config.json", json.dumps(plain, indent=2, sort_keys=True).encode())
    write_whole(folder / "adapter_model.safetensors", store.blob_path(training.state).read_bytes())
    return folder
