"""PROVE: a record with all that it rests on, as a report and a signed bundle in the store's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing import share
from truing.files import write_whole
from truing.records import Blob, Record
from truing.store import Store


@dataclass(frozen=True, slots=True)
class Proof:
    """Files about one record."""

    folder: Path
    bundle: Path
    digest: str
    verified: bool


def prove(record: Record, records: list[Record], html: str, store: Store, *, along: list[Blob], subject: str) -> Proof:
    """Write report and bundle. `records`: it and its ancestors; `along`: files that go along; others are withheld."""
    folder = store.path / "out" / record.id[:12]
    page = html.encode()
    write_whole(folder / "report.html", page)
    bundle = folder / "evidence.truing.zip"
    about: dict[str, Any] = {record.kind: record.id, "why": subject}
    files = {blob.digest: store.blob_path(blob) for blob in along}
    packed = share.pack(bundle, records, files, roots=[record.id], report=page, key=share.own_key(), subject=about)
    return Proof(folder, bundle, packed.digest, share.verify(bundle).ok)
