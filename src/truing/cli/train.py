"""`truing train`: FIX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from truing.cli.common import Progress, emit, existing, json_option, seed_option, store_option

if TYPE_CHECKING:
    from truing.records import Training
    from truing.store import Store

SCHEDULES = ("constant", "linear", "cosine")
METHODS = ("dpo", "robust", "ipo", "ipo-per-token", "kto", "simpo", "sft")


@click.command("train", epilog="Example:  truing train 3fa9 --out fixed-adapter", short_help="FIX.")
@click.argument("claim", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Train on the preferences in this file instead.")
@click.option("--target", help="With --data: the target to train.")
@click.option("--clause", default="", help="With --data: the clause of the spec that the preferences are for.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the PEFT adapter."
)
@click.option("--method", type=click.Choice(METHODS), default="dpo", show_default=True, help="The loss.")
@click.option("--beta", type=float, help="How strongly the reference holds on. Default: 0.1; simpo 2.")
@click.option("--lr", type=float, help="Learning rate. Default: 0.0002.")
@click.option("--epochs", type=int, help="Times that every pair is seen. Default: 1.")
@click.option("--batch", type=int, help="Pairs of a step. Default: 8.")
@click.option("--rank", type=int, help="Rank of the adapter. Default: 8.")
@click.option(
    "--modules",
    help="Layers that get an adapter, with commas between, or all-linear. Default: q_proj,v_proj,up_proj,down_proj.",
)
@click.option("--schedule", type=click.Choice(SCHEDULES), help="How the learning rate goes on. Default: constant.")
@click.option("--warmup", type=float, help="Share of the steps in which it rises. Default: 0.")
@click.option("--accumulate", type=int, help="Parts that a step's pairs are computed in. Default: 1.")
@click.option(
    "--gradient-checkpointing", is_flag=True, default=None, help="Compute activations again instead of keeping them."
)
@click.option("--held-out", type=float, help="Share of the plots to look at instead of training on. Default: 0.")
@click.option("--patience", type=int, help="Looks without a lower loss on these before training stops. Default: 2.")
@click.option("--nll", type=float, help="Weight of the chosen reply's likelihood per token, on top. Default: 0.")
@seed_option
@store_option
@json_option
def command(
    claim: str | None,
    data: Path | None,
    target: str | None,
    clause: str,
    out: Path,
    method: str,
    seed: int,
    store_path: Path,
    as_json: bool,
    **settings: float | str | None,
) -> int:
    """Train the behaviour of CLAIM out with LoRA, on the develop half; write a PEFT adapter.

    Or train a target on preferences in a file of TRL's shape: prompt, chosen and rejected, as messages or as text, in
    .jsonl, .json or .parquet, or a folder that `datasets` saved.

    Checkpoints are kept in the store: killed and rerun, training goes on and ends with the same adapter.
    """
    from truing.files import check_folder
    from truing.store import open_store
    from truing.studies.one import wheel_of
    from truing.targets import need, resolve

    if bool(claim) == bool(data):
        raise click.UsageError("give either a CLAIM or --data with --target")
    if (data and not target) or (claim and (target or clause)):
        raise click.UsageError("--target goes with --data, and --clause too; a claim has its own")
    check_folder(out)  # before minutes of training
    progress = Progress()
    how = {"method": method, "seed": seed} | {name: value for name, value in settings.items() if value is not None}
    with progress.running():
        if data:
            subject = resolve(str(target), progress)
            need(subject, "Trainable")
            from truing.studies.preferences import fit_rows, read

            rows = read(data)  # before a store is made: it may be no such file
            with open_store(store_path) as store:
                training = fit_rows(subject, rows, store, clause=clause, fitting=how, watcher=progress)
                export_to(training, store, out)
        else:
            with existing(store_path) as store:
                training = wheel_of(str(claim), store, seed=seed, fitting=how, watcher=progress).fix()
                export_to(training, store, out)
    body = training.plain()["body"] | {"id": training.id, "adapter": str(out)}
    first, last = training.steps[0], training.steps[-1]
    use = f"truing measure {claim} --after {out} --store {store_path}" if claim else f"truing audit {target}@{out}"
    margin = "" if last.margin is None else f", margin {last.margin:+.3f}"
    lines = [
        f"{len(training.steps)} steps, loss {first.loss:.4f} -> {last.loss:.4f}{margin}",
        f"adapter  {out}",
        f"use it   {use}",
    ]
    emit(body, as_json=as_json, lines=lines)
    return 0


def export_to(training: Training, store: Store, out: Path) -> None:
    """The adapter as a folder."""
    from truing.train import export  # torch is loaded by now, and only where it is needed

    export(training, store, out)
