"""The tables, as a list of steps: a store at version n has had the first n of them."""

from __future__ import annotations

import sqlite3

FIRST = (
    """CREATE TABLE records (
        place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, body TEXT NOT NULL,
        created TEXT NOT NULL, host TEXT NOT NULL)""",
    """CREATE TABLE parents (
        child TEXT NOT NULL, place INTEGER NOT NULL, parent TEXT NOT NULL, PRIMARY KEY (child, place)) WITHOUT ROWID""",
    "CREATE TABLE work (key TEXT PRIMARY KEY, stage TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE outputs (
        key TEXT NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (key, place)) WITHOUT ROWID""",
)
"""`body` is the canonical JSON that the id hashes; `created` is UTC, ISO 8601."""

SECONDS = (
    "ALTER TABLE work ADD COLUMN seconds REAL",
    "CREATE INDEX records_by_kind ON records (kind, place)",
    "CREATE INDEX outputs_by_record ON outputs (record)",
)
"""How long work took (NULL where it was done before this step), and indexes for lists by kind."""

MIGRATIONS = (FIRST, SECONDS)
VERSION = len(MIGRATIONS)


def version(connection: sqlite3.Connection) -> int:
    """Steps that this database has had; 0 for an empty file."""
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def migrate(connection: sqlite3.Connection) -> None:
    """Take the missing steps, all of them or none. The connection must be in autocommit mode."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[version(connection) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
