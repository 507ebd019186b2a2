"""`truing trace`: EXPLAIN."""

from __future__ import annotations

from pathlib import Path

import click

from truing.cli.common import Progress, emit, existing, json_option, number, seed_option, store_option


@click.command("trace", epilog="Example:  truing trace 3fa9 --store .truing", short_help="EXPLAIN.")
@click.argument("claim")
@seed_option
@store_option
@json_option
def command(claim: str, seed: int, store_path: Path, as_json: bool) -> int:
    """Trace the effect of CLAIM (an id, or its first digits): which heads and neurons carry it, and a causal check.

    Units are chosen on one half of the plots; on the other half they are patched from the twin, beside random units,
    largest changes and a shuffled explanation.
    """
    from truing.studies.one import wheel_of

    progress = Progress()
    with existing(store_path) as store, progress.running():
        graph = wheel_of(claim, store, ability="WhiteBox", seed=seed, watcher=progress).explain()
    body = graph.plain()["body"] | {"id": graph.id}
    lines = [
        f"{graph.verdict}: {graph.why}",
        f"effect   {number(body['effect'])}",
        f"closure  {graph.closure_error:.1e}",
    ]
    lines += [
        f"patched  {row['k']:5} {row['kind']}s by {row['choice']:14} {number(row['share'])}" for row in body["mediated"]
    ]
    lines.append(f"graph    {graph.id}")
    emit(body, as_json=as_json, lines=lines)
    return 0
