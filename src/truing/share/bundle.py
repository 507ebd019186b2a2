"""Pack records, the files they name and a report into one signed file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import truing
from truing.errors import BundleError
from truing.files import check_folder, whole
from truing.records import Id, Record, digest
from truing.share import container
from truing.share.keys import SigningKey
from truing.share.manifest import Contents, File, Listed, Manifest
from truing.share.statement import DigestSet, Key, Predicate, Statement, Subject, Tool, sign


@dataclass(frozen=True)
class Packed:
    """A bundle that was written."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    size: int
    """Bytes."""
    roots: tuple[Id, ...]
    records: dict[str, int]
    """Number of records by kind."""
    withheld: tuple[str, ...]
    """Digests of blobs that records name and the bundle does not hold."""
    key_id: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "path": str(self.path), "roots": list(self.roots), "withheld": list(self.withheld)}


def pack(
    path: Path,
    records: Sequence[Record],
    blobs: Mapping[str, Path],
    *,
    roots: Sequence[Id],
    report: bytes | None,
    key: SigningKey,
    subject: dict[str, Any],
) -> Packed:
    """Write a signed bundle, whole or not at all. The same input and key give the same bytes.

    `records` must hold the parents of each of them; blobs that they name and `blobs` (files by digest) lacks are listed
    as withheld. `subject` is plain data: the packer's own words on what the evidence is about.
    BundleError where something is missing or does not fit, StoreError where the disk refuses.
    """
    check_folder(path.parent)  # before all files are read
    contents = _contents(records, roots)
    listed = _listed(contents, blobs)
    members: dict[str, bytes | Path] = {f"records/{record.id}.json": record.canonical for record in records}
    members |= {f"blobs/{blob}": file for blob, file in blobs.items()}
    if report is not None:
        members[container.REPORT] = report
    manifest = Manifest(
        roots=tuple(sorted(set(roots))),
        records=dict(contents.kinds),
        blobs=listed,
        files={name: _file(name, content) for name, content in members.items()},
    )
    _check_blobs(manifest)
    members[container.MANIFEST] = manifest.canonical
    members[container.STATEMENT] = sign(_statement(manifest, key, subject), key)
    _write(path, members)
    return Packed(
        path=path,
        digest=_file(str(path), path).sha256,
        size=path.stat().st_size,
        roots=manifest.roots,
        records=manifest.records,
        withheld=tuple(dict.fromkeys(blob.digest for blob in listed if blob.withheld)),
        key_id=key.public.id,
    )


def _contents(records: Sequence[Record], roots: Sequence[Id]) -> Contents:
    contents = Contents()
    for record in {record.id: record for record in records}.values():
        contents.add(record)
    for child, parent in contents.orphans():
        raise BundleError(f"record {child[:12]} needs its parent {parent[:12]}, which is not among those to pack")
    if missing := set(roots) - contents.parents.keys():
        raise BundleError(f"root {min(missing)[:12]} is not among the {len(contents.parents)} records to pack")
    if not roots:
        raise BundleError("a bundle needs at least one root: the id of the record that it is about")
    return contents


def _listed(contents: Contents, blobs: Mapping[str, Path]) -> tuple[Listed, ...]:
    listed = contents.listed(blobs)
    if strangers := blobs.keys() - {blob.digest for blob in listed}:
        raise BundleError(f"no record names blob {min(strangers)[:12]}: leave it out, or pack the record that names it")
    return listed


def _file(name: str, source: bytes | Path) -> File:
    sha256, size = hashlib.sha256(), 0
    try:
        for chunk in container.chunks(source):
            sha256.update(chunk)
            size += len(chunk)
    except OSError as error:
        raise BundleError(f"cannot read {name}: {error.strerror} ({source!s}); pack without blobs?") from error
    return File(sha256=sha256.hexdigest(), size=size)


def _check_blobs(manifest: Manifest) -> None:
    """Each packed blob has the digest and size that records give it."""
    for blob in manifest.blobs:
        file = manifest.files.get(f"blobs/{blob.digest}")
        if file and (file.sha256, file.size) != (blob.digest, blob.size):
            raise BundleError(
                f"blob {blob.digest[:12]} has another content or size than the records say: damaged store?"
            )


def _statement(manifest: Manifest, key: SigningKey, subject: dict[str, Any]) -> Statement:
    predicate = Predicate(
        roots=manifest.roots,
        tool=Tool(version=truing.__version__),
        public_key=Key(public=key.public.raw),
        about=subject,
    )
    return Statement(subject=(Subject(digest=DigestSet(sha256=digest(manifest.canonical))),), predicate=predicate)


def _write(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Nobody ever sees a half-written bundle."""
    with whole(path) as file:
        container.write(file, members)
