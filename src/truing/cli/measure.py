"""`truing measure`: VERIFY."""

from __future__ import annotations

from pathlib import Path

import click

from truing.cli.common import Progress, emit, existing, json_option, number, seed_option, store_option


@click.command("measure", epilog="Example:  truing measure 3fa9 --after fixed-adapter", short_help="VERIFY.")
@click.argument("claim")
@click.option(
    "--after",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the PEFT adapter that is meant to fix the claim.",
)
@click.option("--fail-if", type=click.Choice(["not-fixed"]), help="Exit with 1 in this case.")
@seed_option
@store_option
@json_option
def command(claim: str, after: Path, fail_if: str | None, seed: int, store_path: Path, as_json: bool) -> int:
    """Compare the target of CLAIM with and without an adapter, on held-out plots and wordings.

    By preference and by free generation, and what the fix costs. Whether the behaviour is gone or only hidden is the
    question of `truing train gate`.
    """
    from truing.studies.one import measured

    progress = Progress()
    with existing(store_path) as store, progress.running():
        seen = measured(claim, after, store, seed=seed, watcher=progress)
    parts = ("before", "after", "runout", "retention")
    body = {part: {n.name: n.quantity.model_dump() for n in getattr(seen, part)} for part in parts}
    lines = [f"{part:10} {name}: {number(quantity)}" for part in parts for name, quantity in body[part].items()]
    lines += [f"failed     {line}" for line in seen.failed] or ["failed     nothing"]
    emit({**body, "failed": list(seen.failed)}, as_json=as_json, lines=lines)
    return int(fail_if == "not-fixed" and bool(seen.failed))
