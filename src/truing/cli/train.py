"""`truing train`: FIX."""

from __future__ import annotations

from pathlib import Path

import click

from truing.cli.common import Progress, emit, existing, json_option, seed_option, store_option


@click.command("train", epilog="Example:  truing train 3fa9 --out fixed-adapter", short_help="FIX.")
@click.argument("claim")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the PEFT adapter."
)
@seed_option
@store_option
@json_option
def command(claim: str, out: Path, seed: int, store_path: Path, as_json: bool) -> int:
    """Train the behaviour of CLAIM out with DPO and LoRA, on the develop half; write a PEFT adapter.

    Checkpoints are kept in the store: killed and rerun, training goes on and ends with the same adapter.
    """
    from truing.files import check_folder
    from truing.studies.one import wheel_of

    check_folder(out)  # before minutes of training
    progress = Progress()
    with existing(store_path) as store, progress.running():
        training = wheel_of(claim, store, seed=seed, watcher=progress).fix()
        from truing.train import export  # torch is loaded by now, and only where it is needed

        export(training, store, out)
    body = training.plain()["body"] | {"id": training.id, "adapter": str(out)}
    first, last = training.steps[0], training.steps[-1]
    lines = [
        f"{len(training.steps)} steps, loss {first.loss:.4f} -> {last.loss:.4f}, margin {last.margin:+.3f}",
        f"adapter  {out}",
        f"use it   truing measure {claim} --after {out} --store {store_path}",
    ]
    emit(body, as_json=as_json, lines=lines)
    return 0
