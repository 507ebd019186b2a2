"""`truing view`: the report of a store."""

from __future__ import annotations

from pathlib import Path

import click

from truing.cli.common import emit, json_option, store_option


@click.command("view", epilog="Example:  truing view --out report.html", short_help="Write a report.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
@click.option(
    "--loop",
    "prefix",
    default="",
    help="Id (or first digits) of a loop. Default: the latest; without any, an overview.",
)
@store_option
@json_option
def command(out: Path, prefix: str, store_path: Path, as_json: bool) -> int:
    """Write what a store holds as one self-contained HTML file."""
    from truing.errors import StoreError
    from truing.files import write_whole
    from truing.records import KINDS, CaseGraph, Loop, Record
    from truing.report import overview, page
    from truing.store import open_store

    with open_store(store_path, mode="read") as store:
        loop = store.find(prefix, "loop") if prefix else store.latest("loop")
        if isinstance(loop, Loop):
            records: list[Record] = store.closure([loop.id])
            # Cases illustrate a claim; no claim rests on one.
            cases = [
                case for case in store.of_kind("case") if isinstance(case, CaseGraph) and case.claim in loop.claims
            ]
            records = list({one.id: one for one in [*records, *store.closure([case.id for case in cases])]}.values())
            html = page(loop, records, blobs=store.blob_bytes)
        else:
            records = [record for kind in KINDS for record in store.of_kind(kind)]
            if not records:
                raise StoreError(
                    f"the store {store_path} is empty: nothing to report. Run `truing loop` or `truing audit` first."
                )
            html = overview(records, blobs=store.blob_bytes)
    write_whole(out, html.encode())
    lines = [f"report   {out} ({len(records)} records)"]
    emit({"report": str(out), "records": len(records)}, as_json=as_json, lines=lines)
    return 0
