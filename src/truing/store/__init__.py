"""Keeps records, finished work and files: SQLite for what is small, content-addressed files for what is large."""

from __future__ import annotations

from truing.store.store import Entry, Garbage, Store, open_store

__all__ = ["Entry", "Garbage", "Store", "open_store"]
