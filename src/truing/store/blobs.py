"""Files named by their SHA-256: `blobs/ab/abcdef...`. A file is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from truing.errors import StoreError
from truing.records import Blob
from truing.store.faults import spoken

DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 << 20


class Blobs:
    """The files of one store."""

    def __init__(self, folder: Path) -> None:
        self._store, self._folder, self._spool = folder, folder / "blobs", folder / "tmp"
        self._sound: dict[str, tuple[int, ...]] = {}
        """Files whose content was found to be what their digests name, and the state that they were in then."""

    def put(self, chunks: Iterable[bytes], media: str) -> Blob:
        """Write a file. Writing it again replaces it by the same bytes, and so repairs a damaged one."""
        with spoken(self._store), spooled(self._spool, chunks) as (path, digest, size):
            move(path, self._place(digest))
        return Blob(digest=digest, size=size, media=media)

    def path(self, blob: Blob | str) -> Path:
        """Where the file is. StoreError if it is missing, or its content is not what its digest names."""
        path, digest = self._found(blob)
        # Read wholly the first time and whenever it has changed since: a loop asks for its large files several times.
        stamp = _stamp(path)
        if self._sound.get(digest) != stamp:
            self._read(path, digest)
            self._sound[digest] = stamp
        return path

    def problem(self, blob: Blob, *, known: bool = False) -> str | None:
        """What is wrong with a file, or None. Reads it wholly, or trusts what is `known` of it."""
        try:
            if known:
                self.path(blob)
            else:
                self._read(*self._found(blob))
        except StoreError as error:
            return str(error)
        return None

    def _found(self, blob: Blob | str) -> tuple[Path, str]:
        digest = blob.digest if isinstance(blob, Blob) else blob
        # Digests in records may come from outside: anything but a digest could name a file elsewhere.
        if not DIGEST.fullmatch(digest):
            raise StoreError(f"{digest[:80]!r} is not the digest of a file (64 hexadecimal digits)")
        path = self._place(digest)
        if not path.is_file():
            raise StoreError(
                f"file {digest[:12]} is missing from the store {self._store}: run the work that makes it again"
            )
        if isinstance(blob, Blob) and path.stat().st_size != blob.size:
            raise StoreError(
                f"file {digest[:12]} of the store {self._store} is damaged: it has {path.stat().st_size} bytes, "
                f"not {blob.size}. Run the work that makes it again"
            )
        return path, digest

    def _read(self, path: Path, digest: str) -> None:
        with spoken(self._store), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise StoreError(
                    f"file {digest[:12]} of the store {self._store} is damaged: its content is not what its digest "
                    "names. Run the work that makes it again"
                )

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by digest. What is not named like a blob is not ours and is left out."""
        with spoken(self._store):
            files = sorted(self._folder.glob("??/*"))
            return {file.name: file.stat().st_size for file in files if file == self._place(file.name)}

    def leftovers(self) -> dict[Path, int]:
        """Bytes of temporary files that a killed writer left."""
        with spoken(self._store):
            return {file: file.stat().st_size for file in sorted(self._spool.glob("*.tmp"))}

    def remove(self, digest: str) -> None:
        """Delete one file."""
        with spoken(self._store):
            self._place(digest).unlink()

    def _place(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file is replaced or written to."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def spooled(folder: Path, chunks: Iterable[bytes]) -> Iterator[tuple[Path, str, int]]:
    """Bytes, safely on the disk under a temporary name, with digest and size. Gone afterwards, unless moved away."""
    folder.mkdir(parents=True, exist_ok=True)
    path, sha, size = folder / f"{uuid4().hex}.tmp", hashlib.sha256(), 0
    try:
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
                sha.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield path, sha.hexdigest(), size
    finally:
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Give a file its name in one step, on the same disk, and make the name as safe as the content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    for folder in (target.parent, target.parent.parent):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
