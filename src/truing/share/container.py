"""The container of a bundle: a zip file that can be written in exactly one way, and is read in no other.

Every member is stored, dated 1980-01-01, a plain file of mode 0644, in sorted order, without extra fields; the
directory follows the last member and ends the file. Any unzip program opens it. All bytes that are not content follow
from names, sizes and checksums, so the reader compares each of them with what the writer would have written: a file
that it accepts is, byte for byte, what `write` makes of its members.

A file from outside is hostile. Names must match a closed list, are never used as paths, and content is read only within
the bounds below.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from truing.errors import BundleError

MANIFEST: Literal["manifest.json"] = "manifest.json"
STATEMENT = "statement.dsse.json"
REPORT = "report.html"
NAME = re.compile(r"manifest\.json|statement\.dsse\.json|report\.html|records/[0-9a-f]{64}\.json|blobs/[0-9a-f]{64}")

MEGABYTE = 1 << 20
MAX_CONTAINER = (1 << 32) - 1
"""Bytes; the bound of a zip file without its 64-bit extension."""
MAX_MEMBERS = (1 << 16) - 1
MAX_NAME = 80
LIMITS = {"manifest.json": 32 * MEGABYTE, "statement.dsse.json": MEGABYTE, "report.html": 128 * MEGABYTE}
MAX_RECORD = 32 * MEGABYTE
CHUNK = MEGABYTE

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_VERSION, _UNIX, _DATE, _MODE = 20, 3 << 8, 0x0021, 0o100644 << 16


@dataclass(frozen=True)
class Entry:
    """What the container says about a member."""

    name: str
    crc: int
    """CRC-32 of the content."""
    size: int
    """Bytes."""

    @property
    def header(self) -> bytes:
        """The bytes that stand before the content."""
        name = self.name.encode("ascii")
        return _LOCAL.pack(LOCAL, _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0) + name

    def listing(self, offset: int) -> bytes:
        """The entry in the directory; `offset` is where the header begins."""
        name, made_by = self.name.encode("ascii"), _UNIX | _VERSION
        fields = (
            made_by,
            _VERSION,
            0,
            0,
            0,
            _DATE,
            self.crc,
            self.size,
            self.size,
            len(name),
            0,
            0,
            0,
            0,
            _MODE,
            offset,
        )
        return _CENTRAL.pack(CENTRAL, *fields) + name


def limit(name: str) -> int:
    """The most bytes that a member of this name may have."""
    return MAX_CONTAINER if name.startswith("blobs/") else LIMITS.get(name, MAX_RECORD)


def write(out: BinaryIO, members: Mapping[str, bytes | Path]) -> None:
    """Write the container. BundleError where it would break a bound; OSError from the files and the disk."""
    if len(members) > MAX_MEMBERS:
        raise BundleError(
            f"{len(members)} files do not fit into one bundle, the bound is {MAX_MEMBERS}: pack fewer roots"
        )
    entries = [_measured(name, members[name]) for name in sorted(members)]
    total = sum(len(entry.header) + entry.size + len(entry.listing(0)) for entry in entries) + _END.size
    if total > MAX_CONTAINER:
        raise BundleError(f"the bundle would have {total} bytes, the bound is {MAX_CONTAINER}: pack without blobs")
    offsets = []
    position = 0
    for entry in entries:
        offsets.append(position)
        out.write(entry.header)
        crc = 0
        for chunk in chunks(members[entry.name]):
            crc = zlib.crc32(chunk, crc)
            out.write(chunk)
        if crc != entry.crc:
            raise BundleError(f"{entry.name} changed while it was packed: pack again")
        position += len(entry.header) + entry.size
    directory = b"".join(map(Entry.listing, entries, offsets))
    out.write(directory + _end(len(entries), len(directory), position))


def chunks(source: bytes | Path) -> Iterator[bytes]:
    """The content of a member, in pieces."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _measured(name: str, source: bytes | Path) -> Entry:
    crc = size = 0
    for chunk in chunks(source):
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    if size > limit(name):
        raise BundleError(f"{name} has {size} bytes, more than the {limit(name)} that a bundle may hold of it")
    return Entry(name, crc, size)


def _end(count: int, directory: int, position: int) -> bytes:
    """The end record: number of members, size of the directory, where it begins."""
    return _END.pack(END, 0, 0, count, count, directory, position, 0)


class Container:
    """A container that was opened for reading. BundleError names what is not as the writer writes it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        if size > MAX_CONTAINER:
            raise BundleError(f"the file has {size} bytes, more than the {MAX_CONTAINER} of the largest bundle")
        self._file, self._size = file, size
        self._offsets: dict[Entry, int] = {}
        self.members: dict[str, Entry] = {}
        self._last = "the beginning"
        position = 0
        while entry := self._entry_at(position):
            self._offsets[entry], self.members[entry.name], self._last = position, entry, entry.name
            position += len(entry.header) + entry.size
        self._check_ending(position)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member, in pieces."""
        entry = self.members[name]
        self._file.seek(self._offsets[entry] + len(entry.header))
        left = entry.size
        while left:
            chunk = self._file.read(min(left, CHUNK))
            if not chunk:
                raise BundleError(f"{name}: the file became shorter while it was read")
            left -= len(chunk)
            yield chunk

    def read(self, name: str) -> bytes:
        """The whole content of a member; `limit` bounds it."""
        return b"".join(self.chunks(name))

    def _entry_at(self, position: int) -> Entry | None:
        """The member that begins here; None where the directory begins instead."""
        self._file.seek(position)
        fixed = self._file.read(_LOCAL.size)
        if position and fixed[:4] in {CENTRAL, END}:
            return None
        where = f"byte {position} (after {self._last})"
        if len(fixed) < _LOCAL.size or fixed[:4] != LOCAL:
            raise BundleError(
                f"{where}: neither a member nor the directory begins here; cut short, altered or no bundle"
            )
        _, _, flags, method, _, _, crc, packed, size, length, _ = _LOCAL.unpack(fixed)
        if length > MAX_NAME:
            raise BundleError(f"{where}: a member's name has {length} bytes, the longest of a bundle has {MAX_NAME}")
        raw = self._file.read(length)
        name = ascii(raw.decode("latin-1"))
        if not (raw.isascii() and NAME.fullmatch(raw.decode("ascii"))):
            raise BundleError(f"{where}: a bundle holds no member of the name {name}")
        entry = Entry(raw.decode("ascii"), crc, size)
        if method or flags or packed != size:
            raise BundleError(
                f"{entry.name}: compressed, encrypted or streamed; members of a bundle are stored plainly"
            )
        if fixed + raw != entry.header:
            raise BundleError(f"{entry.name}: its header in the container is not as Truing writes it")
        self._check_place(entry, position)
        return entry

    def _check_place(self, entry: Entry, position: int) -> None:
        if entry.name in self.members:
            raise BundleError(f"{entry.name}: stands in the container twice")
        if self.members and entry.name < self._last:
            raise BundleError(f"{entry.name}: stands after {self._last}; members of a bundle are sorted")
        if len(self.members) == MAX_MEMBERS:
            raise BundleError(f"{entry.name}: one more than the {MAX_MEMBERS} members that a bundle may hold")
        if entry.size > limit(entry.name):
            raise BundleError(f"{entry.name}: declares {entry.size} bytes, the bound is {limit(entry.name)}")
        left = self._size - position - len(entry.header)
        if entry.size > left:
            raise BundleError(
                f"{entry.name}: declares {entry.size} bytes, but only {left} follow; the file was cut short"
            )

    def _check_ending(self, position: int) -> None:
        """The rest of the file is exactly the directory that the members call for."""
        self._file.seek(position)
        for entry, offset in self._offsets.items():
            listing = entry.listing(offset)
            if self._file.read(len(listing)) != listing:
                raise BundleError(f"{entry.name}: its entry in the container's directory is not as Truing writes it")
        directory = self._file.tell() - position
        end = _end(len(self._offsets), directory, position)
        if self._file.read(len(end)) != end:
            raise BundleError("the end record of the container is not as Truing writes it; altered or cut short")
        if extra := self._size - self._file.tell():
            raise BundleError(f"{extra} bytes follow the end of the container")
