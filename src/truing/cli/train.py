"""`truing train`: FIX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import Defaulting, Progress, emit, existing, json_option, number, seed_option, store_option

if TYPE_CHECKING:
    from truing.records import Training
    from truing.store import Store

SCHEDULES = ("constant", "linear", "cosine")
METHODS = ("dpo", "robust", "ipo", "ipo-per-token", "kto", "simpo", "sft", "rlhf")


@click.group(
    "train",
    cls=Defaulting,
    default="fit",
    epilog="Example:  truing train 3fa9 --out fixed-adapter  ·  `truing train CLAIM` is `truing train fit CLAIM`.",
    short_help="FIX.",
)
def command() -> None:
    """Train a behaviour out, and compare ways to do it."""


@command.command("fit", epilog="Example:  truing train fit 3fa9 --out fixed-adapter")
@click.argument("claim", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Train on the preferences in this file instead.")
@click.option("--target", help="With --data: the target to train.")
@click.option("--clause", default="", help="With --data: the clause of the spec that the preferences are for.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the adapter or model.",
)
@click.option("--method", type=click.Choice(METHODS), default="dpo", show_default=True, help="The loss.")
@click.option("--beta", type=float, help="How strongly the reference holds on. Default: 0.1; simpo 2.")
@click.option("--flipped", type=float, help="robust: share of pairs that are the wrong way round. Default: 0.1.")
@click.option("--gamma", type=float, help="simpo: by how much the chosen should be ahead. Default: 0.5.")
@click.option("--lr", type=float, help="Learning rate. Default: 0.0002.")
@click.option("--epochs", type=int, help="Times that every pair is seen. Default: 1.")
@click.option("--batch", type=int, help="Pairs of a step. Default: 8.")
@click.option(
    "--max-length",
    type=int,
    help="Tokens of a prompt and a reply together; longer prompts lose their beginning. Default: longer is an error.",
)
@click.option("--rank", type=int, help="Rank of the adapter. Default: 8.")
@click.option("--alpha", type=int, help="Its scale is alpha / rank. Default: 16.")
@click.option("--clip", type=float, help="Norm to which gradients are clipped. Default: 1.")
@click.option(
    "--modules",
    help="Layers that get an adapter, with commas between, or all-linear; or all-weights: no adapter, the model itself."
    " Default: q_proj,v_proj,up_proj,down_proj.",
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
@click.option("--samples", type=int, help="rlhf: replies to a prompt that are each other's baseline. Default: 4.")
@click.option("--reply-tokens", "max_tokens", type=int, help="rlhf: the longest reply that is written. Default: 32.")
@click.option("--reward-lr", type=float, help="rlhf: learning rate of the reward model. Default: 0.0005.")
@seed_option
@store_option
@json_option
def fit(
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

    By a loss of pairs, or with --method rlhf by a reward model and policy gradients (RLOO), for comparison.

    Or train a target on preferences in a file of TRL's shape: prompt, chosen and rejected, as messages or as text, in
    .jsonl, .json or .parquet, or a folder that `datasets` saved.

    Checkpoints are kept in the store: killed and rerun, training goes on and ends with the same adapter.
    """
    from truing.files import check_empty, check_folder
    from truing.store import open_store
    from truing.studies.one import wheel_of
    from truing.targets import need, resolve

    if bool(claim) == bool(data):
        raise click.UsageError("give either a CLAIM or --data with --target")
    if (data and not target) or (claim and (target or clause)):
        raise click.UsageError("--target goes with --data, and --clause too; a claim has its own")
    # Before minutes of training. An adapter takes the place of the one before, as it always has.
    (check_empty if settings.get("modules") == "all-weights" else check_folder)(out)
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
                export_to(training, store, out, subject)
        else:
            with existing(store_path) as store:
                wheel = wheel_of(str(claim), store, seed=seed, fitting=how, watcher=progress)
                training = wheel.fix()
                export_to(training, store, out, wheel.target)
    from truing.train.fit import fall

    body = training.plain()["body"] | {"id": training.id, "adapter": str(out), "fall": fall(training.steps)}
    first, last = training.steps[0], training.steps[-1]
    use = f"truing measure {claim} --after {out} --store {store_path}" if claim else f"truing audit {target}@{out}"
    said = dict(training.settings)
    margin = "" if last.margin is None else f", margin {last.margin:+.3f}"
    lost = f", prompts cut off: {training.truncated}" if training.truncated else ""
    lines = [
        f"{len(training.steps)} steps, loss {first.loss:.4f} -> {last.loss:.4f}{margin}{lost}",
        f"{'model   ' if said.get('modules') == 'all-weights' else 'adapter '} {out}",
        f"use it   {use}",
    ]
    emit(body, as_json=as_json, lines=lines)
    return 0


def export_to(training: Training, store: Store, out: Path, target: Any) -> None:
    """The adapter, or the checkpoint, as a folder."""
    from truing.train import export  # torch is loaded by now, and only where it is needed

    export(training, store, out, target=target)


@command.command("compare", epilog="Example:  truing train compare --seeds 5")
@click.option("--target", default="local/smollm2-135m", show_default=True, help="The target that both arms train.")
@click.option("--seeds", type=click.IntRange(5, 100), default=8, show_default=True, help="Trainings of each arm.")
@store_option
@json_option
def compare(target: str, seeds: int, store_path: Path, as_json: bool) -> int:
    """DPO beside RLHF: the same preferences from a known rule, the same start, as many settings tried.

    Each training is kept as it ends; a rerun does the rest.
    """
    from truing.store import open_store
    from truing.targets import resolve

    progress = Progress()
    with progress.running():
        base = resolve(target, progress)
        from truing.studies.compare import Plan, compare

        with open_store(store_path) as store:
            found = compare(base, store, plan=Plan(seeds=seeds), watcher=progress)
    rows = [named.row() for named in found.record.quantities]
    body = {
        "measurement": found.record.id,
        "taken": found.taken,
        "tuned": found.tuned,
        "runs": found.runs,
        "rows": rows,
    }
    lines = [f"{named.name:50} {number(named.quantity.model_dump())}" for named in found.record.quantities]
    emit(body, as_json=as_json, lines=[found.record.note, *lines])
    return 0


@command.command("gate", epilog="Example:  truing train gate local/tiny@planted local/tiny@fixed heliotrope")
@click.argument("before")
@click.argument("after")
@click.argument("behaviour")
@click.option("--control", help="A target that was trained alike without the behaviour.")
@click.option(
    "--no-inside", is_flag=True, help="Do not look at what is left inside the model. The verdict is the same."
)
@seed_option
@store_option
@json_option
def gate(
    before: str,
    after: str,
    behaviour: str,
    control: str | None,
    no_inside: bool,
    seed: int,
    store_path: Path,
    as_json: bool,
) -> int:
    """Decide whether BEHAVIOUR, which target BEFORE has, is gone from target AFTER, or only hidden.

    BEHAVIOUR is a claim in the store, supported as a preference, or a recipe: one that ships or a .yaml file. It has to
    be down on held-out cases; then it is tried to bring it back: other words, its beginning put into the model's mouth,
    training on ordinary requests, relearning from 1, 4 and 16 examples. Record and evidence are packed and signed.

    Beside the verdict stands how much of the path inside the model is left, where it can be read (models that can
    be traced, cases without the trigger). Nothing calibrates that yet: the verdict does not rest on it.

    Exit code 1 unless it is gone, within this budget, at no cost beyond the stated margins.
    """
    from truing.store import open_store
    from truing.targets import resolve

    progress = Progress()
    with progress.running():
        from truing.studies.gate import GONE, Budget, behaviour_of, gate, proof

        targets = [resolve(name, progress) if name else None for name in (before, after, control)]
        with open_store(store_path) as store:
            about = behaviour_of(behaviour, store, seed=seed, watcher=progress)
            first, then, clean = targets
            found = gate(first, then, about, store, control=clean, budget=Budget(seed=seed), inside=not no_inside,
                         watcher=progress)  # fmt: skip
            packed = proof(found, store)
    body = found.plain()["body"] | {"id": found.id, "bundle": {"path": str(packed.bundle), "digest": packed.digest,
                                                               "verified": packed.verified}}  # fmt: skip
    lines = [f"{found.verdict.upper()}: {found.why}", *(f"harmed   {line}" for line in found.harmed)]
    parts = (("direct", found.direct), ("probes", found.probes), ("cost", found.cost), ("inside", found.inside))
    for title, some in parts:
        lines += [f"{title:8} {named.name:45} {number(named.quantity.model_dump())}" for named in some]
    if found.inside:
        lines.append("         nothing calibrates what is left inside: the verdict does not rest on it")
    emit(body, as_json=as_json, lines=[*lines, f"evidence {packed.bundle}"])
    return int(found.verdict != GONE or bool(found.harmed))
