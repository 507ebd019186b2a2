"""What the disk and SQLite raise, as a StoreError that says what to do."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truing.errors import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT}
LITTLE = 1 << 20
"""Bytes. With less than this free, what SQLite calls an input/output error is taken for a full disk."""

ADVICE = {
    sqlite3.SQLITE_BUSY: "another process keeps it busy: wait for that process to end and run the command again",
    sqlite3.SQLITE_READONLY: "it may not be written: check the owner and the permissions of the folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check the owner and the permissions of the folder",
    sqlite3.SQLITE_IOERR: "the disk could not read or write it: check the disk, then run `truing store check`",
}
DAMAGED = (
    "its database is damaged: keep a copy, then restore a backup, or make a new store and import your bundles into it; "
    "`sqlite3 truing.db .recover` may save more"
)


@contextmanager
def spoken(folder: Path) -> Iterator[None]:
    """Raise StoreError, naming the folder, for whatever the block's files and database raise."""
    try:
        yield
    except sqlite3.ProgrammingError:  # a bug of the caller, such as a closed store: not a fault of the data
        raise
    except sqlite3.DatabaseError as error:
        # The low byte is the primary result code; the rest tells variants of it apart.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and shutil.disk_usage(folder).free < LITTLE):
            raise StoreError(_full(folder)) from error
        raise StoreError(f"the store {folder} failed ({error}): {ADVICE.get(code, DAMAGED)}") from error
    except OSError as error:
        if error.errno in FULL:
            raise StoreError(_full(folder)) from error
        raise StoreError(
            f"a file could not be read or written: {error}. Check the path and its permissions, then run again"
        ) from error


def _full(folder: Path) -> str:
    return (
        f"the disk that holds {folder} is full. Nothing was half-written, and finished work is kept: free some space "
        f"(`truing store gc --store {folder}` removes what nothing refers to) and run the same command again"
    )
