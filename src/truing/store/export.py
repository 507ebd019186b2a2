"""Records as Parquet tables, one file per kind, for notebooks and data frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.errors import UsageError
from truing.records import Record, canonical
from truing.store.blobs import move, spooled
from truing.store.faults import spoken


def row(record: Record, created: str) -> dict[str, Any]:
    """One line of a table: the body's scalar fields, then id, created, parents and the whole body as JSON.

    Fields of nested values are joined by dots ("gate.reason"); lists stand in the body alone, and so does a field
    that is named like one of the four columns.
    """
    body = record.plain()["body"]
    fixed = {
        "id": record.id,
        "created": created,
        "parents": list(record.parents),
        "body": canonical(body).decode(),
    }
    return {**dict(_scalars(body)), **fixed}


def write(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write one table. The file is replaced in one step."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("export to Parquet needs pyarrow: pip install 'truing[parquet]'") from error
    names = ["id", "created", "parents", "body"]
    names += sorted({name for row in rows for name in row} - set(names))
    columns = {name: _one_type([row.get(name) for row in rows]) for name in names}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    target = folder / f"{kind}.parquet"
    with spoken(folder), spooled(folder, [sink.getvalue().to_pybytes()]) as (path, _, _):
        move(path, target)
    return target


def _scalars(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _scalars(part, f"{prefix}{name}.")
        elif not isinstance(part, list):
            yield prefix + name, part


def _one_type(values: Sequence[Any]) -> Iterable[Any]:
    """A column has one type: values of several (a number here, a text there) become JSON text."""
    types = {type(value) for value in values if value is not None}
    if len(types) <= 1 or types == {int, float}:
        return values
    return [None if value is None else canonical(value).decode() for value in values]
