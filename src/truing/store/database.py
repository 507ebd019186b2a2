"""The SQLite file of a store: opened, migrated, asked, written in transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from truing.errors import StoreError
from truing.store import schema
from truing.store.faults import spoken

Mode = Literal["write", "read"]

NAME = "truing.db"
PATIENCE = 30.0
"""Seconds to wait for a reader or writer that is in the middle of something."""


class Database:
    """One connection, which threads may share.

    While a writer has it open the file is in WAL mode, so that readers never wait. On closing, the writer turns it back
    into one plain file, which a reader can open without making the side files of WAL.
    """

    def __init__(self, folder: Path, mode: Mode) -> None:
        self._folder, self._mode = folder, mode
        self._guard = threading.RLock()
        with spoken(folder):
            self._connection = _connect(folder, mode)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Every row of a query."""
        with self._guard, spoken(self._folder):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing of it. It is on the disk when the block ends."""
        self.must_write()
        with self._guard, spoken(self._folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def must_write(self) -> None:
        """StoreError if the store was opened for reading."""
        if self._mode == "read":
            raise StoreError(f'the store {self._folder} was opened for reading: open it with mode="write"')

    def close(self) -> None:
        """Close the connection. What was committed is safe already."""
        if self._mode == "write":
            # A courtesy to readers: with one connected, or the disk full, the file stays in WAL mode, which is as safe.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()


def _connect(folder: Path, mode: Mode) -> sqlite3.Connection:
    uri = f"{(folder / NAME).absolute().as_uri()}?mode={'rwc' if mode == 'write' else 'ro'}"
    # Autocommit: transactions are begun and ended by name. The guard above orders threads.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
    try:
        _refuse_newer(connection, folder)
        return _ready(connection) if mode == "write" else _readable(connection, folder)
    except BaseException:
        connection.close()
        raise


def _refuse_newer(connection: sqlite3.Connection, folder: Path) -> None:
    found = schema.version(connection)
    if found > schema.VERSION:
        raise StoreError(
            f"the store {folder} has schema {found}, this version of Truing knows up to {schema.VERSION}: "
            "update Truing (`pip install -U truing`), or use another --store"
        )


def _ready(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a kill
    schema.migrate(connection)
    return connection


def _readable(connection: sqlite3.Connection, folder: Path) -> sqlite3.Connection:
    """The connection; or, of an older schema, a migrated copy in memory: a reader changes no file."""
    found = schema.version(connection)
    if found == 0:
        raise StoreError(f"the store {folder} was never finished being made: run the command that makes it again")
    if found == schema.VERSION:
        return connection
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.backup(copy)
    connection.close()
    schema.migrate(copy)
    return copy
