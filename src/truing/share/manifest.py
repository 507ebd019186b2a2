"""What a bundle holds: the two JSON files that are no records, and how JSON from outside is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from truing.errors import BundleError, RecordError
from truing.records import Blob, Id, Record, Value, blobs_in, canonical
from truing.text import short

FORMAT: Literal["truing-bundle/1"] = "truing-bundle/1"
MAX_DEPTH = 48
"""Nested arrays and objects in one JSON file; Truing's own records stay below 12."""

Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0)]
V = TypeVar("V", bound=Value)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")


class File(Value):
    """Digest and size of one member."""

    sha256: Digest
    size: Count


class Listed(Value):
    """A blob that records name: packed, or withheld."""

    digest: Digest
    size: Count
    media: str
    withheld: bool


class Manifest(Value):
    """Every member but the manifest and the statement, and what they are."""

    format: Literal["truing-bundle/1"] = FORMAT
    roots: Annotated[tuple[Digest, ...], Field(min_length=1)]
    records: dict[str, Count]
    """Number of records by kind."""
    blobs: tuple[Listed, ...]
    files: dict[str, File]

    @property
    def canonical(self) -> bytes:
        """The bytes that are packed and signed for."""
        return canonical(self.model_dump(mode="json"))


class Contents:
    """What the records of a bundle call for, gathered one record at a time."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.parents: dict[Id, tuple[Id, ...]] = {}
        self.blobs: set[Blob] = set()

    def add(self, record: Record) -> None:
        """Take in one record."""
        self.kinds[record.kind] += 1
        self.parents[record.id] = record.parents
        self.blobs.update(blobs_in(record))

    def listed(self, packed: Iterable[str]) -> tuple[Listed, ...]:
        """The blobs in sorted order; those whose digest is not among the packed are withheld."""
        there = set(packed)
        rows = sorted((blob.digest, blob.size, blob.media) for blob in self.blobs)
        try:
            return tuple(Listed(digest=d, size=s, media=m, withheld=d not in there) for d, s, m in rows)
        except ValidationError as error:
            raise BundleError(f"a record names a blob by what is no digest or size: {short(error)}") from error

    def orphans(self) -> Iterator[tuple[Id, Id]]:
        """(record, parent) for each parent that is not there."""
        for record, parents in self.parents.items():
            yield from ((record, parent) for parent in parents if parent not in self.parents)


def parse_json(data: bytes, model: type[V], *, name: str) -> V:
    """A value from the bytes of a member, which must be canonical JSON. BundleError names the member."""
    check_depth(data, name=name)
    try:
        plain: Any = json.loads(data)
        value = model.model_validate(plain)
        written = canonical(value.model_dump(mode="json"))
    except (ValueError, RecordError) as error:
        raise BundleError(f"{name}: does not parse: {short(error)}") from error
    if written != data:
        raise BundleError(f"{name}: is not canonical JSON, as Truing writes it")
    return value


def check_depth(data: bytes, *, name: str) -> None:
    """Refuse JSON that nests too deeply to be parsed safely. Linear in the size of the data."""
    depth = 0
    for bracket in _NO_BRACKET.sub(b"", _STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise BundleError(f"{name}: nests more than {MAX_DEPTH} deep")
