"""`truing store`: look into a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import as_text, emit, existing, json_option, store_option
from truing.text import one_line

if TYPE_CHECKING:
    from truing.store import Entry, Store


@click.group(
    name="store",
    epilog="Example:  truing store ls --store .truing  ·  Only gc changes anything; the others may run at any time.",
)
def command() -> None:
    """Look into a store: what is kept, whether it is whole, how large it is."""


@command.command(epilog="Example:  truing store ls --kind claim")
@click.option("--kind", metavar="KIND", help="Only records of this kind, such as claim or graph.")
@store_option
@json_option
def ls(kind: str | None, store_path: Path, as_json: bool) -> None:
    """List the records, oldest first."""
    with _reading(store_path) as store:
        entries, empty = store.ls(kind), not store.ls()
    if empty:
        lines = [_empty(store_path)]
    elif not entries:
        lines = [f"No {kind} records in the store {store_path}; `truing store ls --store {store_path}` lists all."]
    else:
        rows = [(e.id[:12], e.kind, e.created[:19], e.stage or "", str(e.parents), _size(e.size)) for e in entries]
        lines = _table(("id", "kind", "created (UTC)", "stage", "parents", "size"), rows, right=2)
    emit({"store": str(store_path), "records": [asdict(e) for e in entries]}, as_json=as_json, lines=lines)


@command.command(epilog="Example:  truing store show 3f9c  ·  the beginning of an id is enough, if no other begins so.")
@click.argument("record_id", metavar="ID")
@store_option
@json_option
def show(record_id: str, store_path: Path, as_json: bool) -> None:
    """Show one record: where it comes from, and its content."""
    with _reading(store_path) as store:
        record = store.find(record_id)
        entry = next(e for e in store.ls(record.kind) if e.id == record.id)
    plain = record.plain()
    value = {**asdict(entry), **plain}
    emit(value, as_json=as_json, lines=_facts(entry, plain))


@command.command(
    epilog="Example:  truing store export --parquet tables  ·  then pandas.read_parquet('tables/claim.parquet')"
)
@click.option("--parquet", "folder", type=click.Path(path_type=Path), required=True, help="Folder for the tables.")
@store_option
@json_option
def export(folder: Path, store_path: Path, as_json: bool) -> None:
    """Write the records as Parquet tables, one per kind (needs the extra `parquet`)."""
    with _reading(store_path) as store:
        files = store.export_parquet(folder)
    lines = [f"wrote {file}" for file in files] or [_empty(store_path)]
    emit({"store": str(store_path), "files": [str(file) for file in files]}, as_json=as_json, lines=lines)


@command.command(epilog="Example:  truing store check && echo whole  ·  exit code 1 if something is wrong.")
@store_option
@json_option
@click.pass_context
def check(ctx: click.Context, store_path: Path, as_json: bool) -> None:
    """Read everything, and say what is missing or damaged."""
    with _reading(store_path) as store:
        problems, count = store.check(), len(store.ls())
    value = {"store": str(store_path), "records": count, "problems": problems}
    lines = [f"The store {store_path} is whole: {_count(count, 'record')} checked."]
    if problems:
        lines = [f"{_count(len(problems), 'problem')} in the store {store_path}:", *(f"  {p}" for p in problems)]
    emit(value, as_json=as_json, lines=lines)
    if problems:
        ctx.exit(1)


@command.command(epilog="Example:  truing store gc --dry-run")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@store_option
@json_option
def gc(dry_run: bool, store_path: Path, as_json: bool) -> None:
    """Remove files and rows that nothing refers to."""
    with _reading(store_path) if dry_run else existing(store_path) as store:
        garbage = store.gc(dry_run=dry_run)
    parts = {"file": garbage.blobs, "temporary file": garbage.temporary, "work row": garbage.work}
    counts = ", ".join(_count(len(found), noun) for noun, found in parts.items() if found)
    done = "Would remove" if dry_run else "Removed"
    line = f"{done} {counts}: {_size(garbage.size)}." if counts else f"Nothing to remove from the store {store_path}."
    emit({"store": str(store_path), "dry_run": dry_run, **asdict(garbage)}, as_json=as_json, lines=[line])


@command.command(epilog="Example:  truing store du --json")
@store_option
@json_option
def du(store_path: Path, as_json: bool) -> None:
    """Say what takes how much room."""
    with _reading(store_path) as store:
        sizes, empty = store.du(), not store.ls()
    total = sum(sizes.values())
    rows = [(name, _size(size)) for name, size in [*sizes.items(), ("total", total)]]
    lines = [_empty(store_path)] if empty and not total else _table(("what", "size"), rows, right=1)
    emit({"store": str(store_path), "bytes": sizes, "total": total}, as_json=as_json, lines=lines)


def _reading(path: Path) -> Store:
    from truing.store import open_store

    return open_store(path, mode="read")


def _empty(path: Path) -> str:
    return f"The store {path} is empty. To fill it, run for example:  truing loop local/tiny --store {path}"


def _facts(entry: Entry, plain: dict[str, Any]) -> list[str]:
    """A record for reading: head, then its body as JSON."""
    seconds = "" if entry.seconds is None else f" in {entry.seconds:.3g} s"
    head = {
        "id": entry.id,
        "kind": entry.kind,
        "created": f"{entry.created} on {entry.host}",
        "stage": f"{entry.stage}{seconds}" if entry.stage else "",
    }
    lines = [f"{name:<8} {value}" for name, value in head.items() if value]
    lines += [f"{'' if number else 'parents':<8} {parent}" for number, parent in enumerate(plain["parents"])]
    return [*lines, *as_text(plain["body"]).split("\n")]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: int) -> list[str]:
    """A table whose last `right` columns are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place >= len(heads) - right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(one_line, row))
    console = Console(markup=False, highlight=False)
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip("\n").split("\n")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
