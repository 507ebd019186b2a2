"""A store: the folder in which everything that was found out is kept."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from truing.errors import RecordError, StoreError, UsageError
from truing.records import KINDS, Blob, Id, Record, blobs_in, parse
from truing.store import export
from truing.store.blobs import Blobs, read_chunks
from truing.store.database import NAME, Database, Mode
from truing.store.faults import spoken
from truing.store.lock import Lock


@dataclass(frozen=True)
class Entry:
    """What the store knows about a record besides its content."""

    id: Id
    kind: str
    created: str
    """UTC, ISO 8601."""
    host: str
    size: int
    """Bytes of its canonical JSON."""
    parents: int
    stage: str | None
    """The stage whose work gave it; None if it was added by itself."""
    seconds: float | None
    """How long that unit of work took, for all its records together."""


@dataclass(frozen=True)
class Garbage:
    """What nothing refers to."""

    blobs: tuple[str, ...]
    """Digests of files that no record names."""
    temporary: tuple[str, ...]
    """Names of files that a killed writer left."""
    work: tuple[str, ...]
    """Keys of finished work whose records are gone; it will be done again."""
    size: int
    """Bytes of all these files."""


def open_store(path: str | os.PathLike[str], *, mode: Mode = "write") -> Store:
    """The store in a folder; for writing it is made if need be, and migrated if it is older.

    One process writes, any number read meanwhile. Reading makes and changes no file. StoreError where the store is
    missing (for reading), locked by another writer, damaged, or of a newer schema.
    """
    return Store(Path(path), mode)


class Store:
    """Records, finished work and files. A context manager; threads may share it."""

    def __init__(self, path: Path, mode: Mode) -> None:
        self.path, self.mode = path, mode
        self._lock: Lock | None = None
        if mode == "read":
            must_exist(path)
        else:
            with spoken(path):
                path.mkdir(parents=True, exist_ok=True)
                self._lock = Lock(path)
        try:
            self._database = Database(path, mode)
        except BaseException:
            self._unlock()
            raise
        self._blobs = Blobs(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and let the next writer in. Twice is once."""
        self._database.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Records

    def add(self, record: Record) -> Id:
        """Keep a record. Adding it again changes nothing, or repairs it if it was damaged."""
        self._insert([record])
        return record.id

    def get(self, id: Id) -> Record:  # noqa: A002 - the field's own name
        """The record of a full id. StoreError if it is absent, RecordError if it is damaged."""
        rows = self._database.rows("SELECT CAST(body AS BLOB) FROM records WHERE id = ?", id)
        if not rows:
            raise StoreError(f"no record {id[:12]} in the store {self.path}: `truing store ls` lists what there is")
        return parse(rows[0][0], id=id)

    def find(self, prefix: str, kind: str | None = None) -> Record:
        """The one record whose id begins so. UsageError if there is none, or more than one."""
        prefix = prefix.lower()
        if not prefix or set(prefix) - set("0123456789abcdef"):
            raise UsageError(f"{prefix!r} is not the beginning of a record id: give some of its hexadecimal digits")
        wanted = None if kind is None else _known(kind)
        # Placeholders without numbers: numbered ones count as named, and Python 3.14 takes no sequence for these.
        found = self._database.rows(
            "SELECT id, kind FROM records WHERE id >= ? AND id < ? AND (? IS NULL OR kind = ?) ORDER BY id LIMIT 6",
            prefix, f"{prefix}g", wanted, wanted,
        )  # fmt: skip
        if not found:
            raise UsageError(
                f"no {kind or 'record'} in the store {self.path} has an id that begins with {prefix}: "
                "`truing store ls` lists what there is"
            )
        if len(found) > 1:
            some = [f"{one[:16]} ({its_kind})" for one, its_kind in found[:5]] + ["and more"] * (len(found) > 5)
            raise UsageError(f"several records begin with {prefix}: {', '.join(some)}. Give more digits")
        return self.get(found[0][0])

    def of_kind(self, kind: str) -> list[Record]:
        """Records of a kind, in the order in which they were first added."""
        return [self.get(entry.id) for entry in self.ls(kind)]

    def latest(self, kind: str) -> Record | None:
        """The record of a kind that was added last; adding one again does not make it the last."""
        rows = self._database.rows("SELECT id FROM records WHERE kind = ? ORDER BY place DESC LIMIT 1", _known(kind))
        return self.get(rows[0][0]) if rows else None

    def closure(self, ids: Iterable[Id]) -> list[Record]:
        """These records and all their ancestors, parents before children; the order depends on the records alone."""
        found: dict[Id, Record] = {}
        waiting = list(ids)
        while waiting:
            wanted = waiting.pop()
            if wanted not in found:
                found[wanted] = self.get(wanted)
                waiting.extend(found[wanted].parents)
        sorter = TopologicalSorter({record.id: record.parents for record in found.values()})
        sorter.prepare()
        ordered: list[Record] = []
        while ready := sorted(sorter.get_ready()):
            ordered.extend(map(found.__getitem__, ready))
            sorter.done(*ready)
        return ordered

    # Finished work (the Ledger of the runner)

    def done(self, key: str) -> tuple[Record, ...] | None:
        """The records of a finished unit of work; None if it is not done, or a record or file of it is gone or damaged.

        A file that is damaged is so made again by the work that made it, which puts the same bytes in its place.
        """
        if not self._database.rows("SELECT 1 FROM work WHERE key = ?", key):
            return None
        rows = self._database.rows(
            "SELECT record, CAST(body AS BLOB) FROM outputs LEFT JOIN records ON record = id WHERE key = ?"
            " ORDER BY outputs.place",
            key,
        )
        if any(body is None for _, body in rows):
            return None
        records = tuple(parse(body, id=record) for record, body in rows)
        return None if any(self._blobs.problem(blob, known=True) for blob in blobs_in(records)) else records

    def keep(self, key: str, stage: str, records: Sequence[Record], *, seconds: float) -> None:
        """Remember a finished unit of work and its records, together. What is done stays as it was first kept."""
        if self.done(key) is None:
            self._insert(records, key=key, stage=stage, seconds=seconds)

    def _insert(self, records: Sequence[Record], *, key: str = "", stage: str = "", seconds: float = 0.0) -> None:
        """Write records and, given a key, the unit of work that they are the outputs of, in one transaction."""
        created, host = datetime.now(UTC).isoformat(timespec="milliseconds"), platform.node()
        lines = [(record.id, record.kind, record.canonical.decode(), created, host) for record in records]
        parents = [(record.id, place, parent) for record in records for place, parent in enumerate(record.parents)]
        outputs = [(key, place, record.id) for place, record in enumerate(records)]
        with self._database.transaction() as write:
            write.executemany(
                "INSERT INTO records (id, kind, body, created, host) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, body = excluded.body",
                lines,
            )
            write.executemany("INSERT OR REPLACE INTO parents (child, place, parent) VALUES (?, ?, ?)", parents)
            if key:
                write.execute(
                    "INSERT OR REPLACE INTO work (key, stage, created, seconds) VALUES (?, ?, ?, ?)",
                    (key, stage, created, seconds),
                )
                write.execute("DELETE FROM outputs WHERE key = ?", (key,))
                write.executemany("INSERT INTO outputs (key, place, record) VALUES (?, ?, ?)", outputs)

    # Files

    def put_blob(self, data: bytes, media: str) -> Blob:
        """Keep bytes as a file. Put it before the record that names it."""
        self._database.must_write()
        return self._blobs.put([data], media)

    def put_file(self, path: str | os.PathLike[str], media: str) -> Blob:
        """Keep a copy of a file."""
        self._database.must_write()
        return self._blobs.put(read_chunks(Path(path)), media)

    def blob_path(self, blob: Blob | str) -> Path:
        """Where a file is, by its Blob or its digest. StoreError if it is missing or its content damaged."""
        return self._blobs.path(blob)

    def blob_bytes(self, blob: Blob | str) -> bytes:
        """The content of a file; errors as above."""
        path = self.blob_path(blob)
        with spoken(self.path):
            return path.read_bytes()

    def blobs_of(self, record: Record) -> list[Blob]:
        """The files that a record names, each once, in the order of its fields."""
        return list(dict.fromkeys(blobs_in(record)))

    # The store as a whole

    def ls(self, kind: str | None = None) -> list[Entry]:
        """What is kept, in the order in which it was first added."""
        wanted = None if kind is None else _known(kind)
        rows = self._database.rows(
            "SELECT id, kind, records.created, host, length(CAST(body AS BLOB)),"
            " (SELECT count(*) FROM parents WHERE child = id), stage, seconds FROM records"
            " LEFT JOIN work ON key = (SELECT min(key) FROM outputs WHERE record = id)"
            " WHERE ? IS NULL OR kind = ? ORDER BY records.place",
            wanted, wanted,
        )  # fmt: skip
        return [Entry(*row) for row in rows]

    def check(self) -> list[str]:
        """What is wrong, in words: damaged records, absent parents and outputs, missing or damaged files."""
        problems = [line for (line,) in self._database.rows("PRAGMA integrity_check") if line != "ok"]
        blobs: dict[Blob, None] = {}
        for entry in self.ls():
            try:
                record = self.get(entry.id)
            except RecordError as error:
                problems.append(f"record {entry.id[:12]} ({entry.kind}): {error}")
                continue
            problems += self._misfiled(record, entry)
            blobs.update(dict.fromkeys(blobs_in(record)))
        problems += [
            f"work {key[:12]} ({stage}): its record {record[:12]} is missing; run the same command again"
            for key, stage, record in self._database.rows(ORPHANED)
        ]
        return problems + [problem for blob in blobs if (problem := self._blobs.problem(blob))]

    def _misfiled(self, record: Record, entry: Entry) -> list[str]:
        """What the tables say of a record, against what it says itself."""
        name = f"record {entry.id[:12]} ({entry.kind})"
        rows = self._database.rows(
            "SELECT parent, id FROM parents LEFT JOIN records ON parent = id WHERE child = ? ORDER BY parents.place",
            entry.id,
        )
        problems = [f"{name}: its parent {parent[:12]} is missing" for parent, found in rows if found is None]
        if record.kind != entry.kind:
            problems.append(f"{name} is a {record.kind} record, listed under another kind")
        if tuple(parent for parent, _ in rows) != record.parents:
            problems.append(f"{name}: the table of parents does not agree with it")
        return problems

    def gc(self, *, dry_run: bool = False) -> Garbage:
        """Remove what nothing refers to, or only say what that is.

        RecordError, and nothing is removed, if a record is damaged: it may be the one that names a file. Not for a time
        when another thread puts a file whose record is still to come.
        """
        named = {blob.digest for entry in self.ls() for blob in blobs_in(self.get(entry.id))}
        blobs = {digest: size for digest, size in self._blobs.sizes().items() if digest not in named}
        temporary = self._blobs.leftovers()
        work = sorted({key for key, _, _ in self._database.rows(ORPHANED)})
        if not dry_run:
            self._remove(blobs, temporary, work)
        names = tuple(path.name for path in temporary)
        return Garbage(tuple(blobs), names, tuple(work), sum(blobs.values()) + sum(temporary.values()))

    def _remove(self, blobs: Iterable[str], temporary: Iterable[Path], work: Sequence[str]) -> None:
        with self._database.transaction() as write:
            write.executemany("DELETE FROM outputs WHERE key = ?", [(key,) for key in work])
            write.executemany("DELETE FROM work WHERE key = ?", [(key,) for key in work])
        for digest in blobs:
            self._blobs.remove(digest)
        with spoken(self.path):
            for path in temporary:
                path.unlink()

    def du(self) -> dict[str, int]:
        """Bytes of canonical JSON by kind of record, and under "blobs" those of all files."""
        sizes: dict[str, int] = dict.fromkeys(sorted(entry.kind for entry in self.ls()), 0)
        for entry in self.ls():
            sizes[entry.kind] += entry.size
        return {**sizes, "blobs": sum(self._blobs.sizes().values())}

    def export_parquet(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write one Parquet table per kind, `KIND.parquet`; none for kinds of which there is no record."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for entry in self.ls():
            tables.setdefault(entry.kind, []).append(export.row(self.get(entry.id), entry.created))
        return [export.write(Path(folder), kind, rows) for kind, rows in sorted(tables.items())]


ORPHANED = (
    "SELECT key, stage, record FROM work JOIN outputs USING (key) LEFT JOIN records ON record = id"
    " WHERE id IS NULL ORDER BY key, outputs.place"
)


def must_exist(path: Path) -> None:
    """StoreError if there is no store in the folder."""
    if not (path / NAME).is_file():
        raise StoreError(
            f"no store at {path}: give the right --store, or make one, for example with "
            f"`truing loop local/tiny --store {path}`"
        )


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"unknown kind of record {kind!r}; known: {', '.join(sorted(KINDS))}")
    return kind
