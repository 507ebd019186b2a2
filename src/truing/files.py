"""Files that users keep: reports, bundles, adapters. Each appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from truing.errors import StoreError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file; its folder is made if need be. StoreError, and nothing left behind, where that fails."""
    with whole(path) as file:
        file.write(data)


@contextmanager
def whole(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write into that takes its name, safe on the disk, when the block ends well. Errors as above.

    `mode`: who may read and write it, less the umask.
    """
    with _spoken(path):
        if path.exists() and not path.is_file():  # a device would be replaced by an ordinary file
            raise StoreError(f"cannot write {path}: it is not an ordinary file. Give another name")
    check_folder(path.parent)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with _spoken(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """StoreError where a folder is not there and cannot be made, or files cannot be put in. Makes nothing."""
    with _spoken(path):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise StoreError(f"cannot write to the folder {path}: {there} is a file. Give another folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to the folder {path}: you may not write in {there}. Give another folder")


def check_empty(path: Path) -> None:
    """StoreError where a folder has files in it, or cannot be made."""
    if path.is_dir() and any(path.iterdir()):
        raise StoreError(f"{path} is not empty; nothing there is written over. Give another folder")
    check_folder(path)


@contextmanager
def _spoken(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}. Nothing was left behind;"
            " check permissions and free space, then run again, or give another place"
        ) from error
