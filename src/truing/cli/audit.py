"""`truing audit`: FIND."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from truing.cli.common import Progress, claim_lines, emit, json_option, store_option


@click.command("audit", epilog="Example:  truing audit local/smollm2-135m --family sycophancy", short_help="FIND.")
@click.argument("target", default="local/smollm2-135m")
@click.option("--family", "families", multiple=True, help="Family of scenarios; repeat for several. Default: all.")
@click.option(
    "--half",
    type=click.Choice(["develop", "held-out"]),
    default="develop",
    show_default=True,
    help="Half of the plots and wordings. The held-out half is kept for testing a fix.",
)
@click.option("--list", "list_only", is_flag=True, help="List families, their clauses and plots; audit nothing.")
@click.option("--fail-if", type=click.Choice(["supported"]), help="Exit with 1 if a claim is supported.")
@store_option
@json_option
def command(
    target: str,
    families: tuple[str, ...],
    half: str,
    list_only: bool,
    fail_if: str | None,
    store_path: Path,
    as_json: bool,
) -> int:
    """Test claims about TARGET: the naive effect, its controls, the effect beyond them, and a verdict."""
    from truing.audit import FAMILIES, audit, family, lay_out, spec
    from truing.audit import clause as clause_of
    from truing.records import Replies
    from truing.store import open_store
    from truing.targets import resolve

    chosen = families or FAMILIES
    rules = {name: family(name) for name in chosen}
    if list_only:
        rows: list[dict[str, Any]] = []
        for name, rule in rules.items():
            surfaces = lay_out(name, half=half, wordings=half).surfaces  # type: ignore[arg-type]
            clause = clause_of(spec(), rule.clause)
            row = {"family": name, "clause": clause.id, "title": clause.title, "question": rule.question}
            rows.append({**row, "plots": sorted({s.plot for s in surfaces}), "surfaces": len(surfaces)})
        lines = [
            f"{r['family']:11} {r['clause']:4} {len(r['plots'])} plots, {r['surfaces']} surfaces: {r['question']}"
            for r in rows
        ]
        emit({"families": rows}, as_json=as_json, lines=lines)
        return 0
    progress = Progress()
    with progress.running():
        subject = resolve(target, progress)  # first: a typo must not make a store
        with open_store(store_path) as store:
            store.add(spec())
            found = audit(subject, chosen, store, half=half, watcher=progress)  # type: ignore[arg-type]
            asked = [store.get(record) for record in {parent for claim in found for parent in claim.parents}]
    claims = [claim.plain()["body"] | {"id": claim.id} for claim in found]
    redactions = sum(record.redactions for record in asked if isinstance(record, Replies))
    lines = claim_lines(claims)
    if redactions:
        lines.append(f"{redactions} {'secret was' if redactions == 1 else 'secrets were'} redacted in stored replies")
    value = {"target": target, "claims": claims, "redactions": redactions, "store": str(store_path)}
    emit(value, as_json=as_json, lines=lines)
    return int(fail_if == "supported" and any(claim.verdict == "supported" for claim in found))
