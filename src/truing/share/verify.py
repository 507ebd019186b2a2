"""Check a bundle without trusting whoever sent it."""

from __future__ import annotations

import hashlib
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.errors import BundleError, RecordError, UsageError
from truing.records import Claim, Id, digest, parse
from truing.share.container import MANIFEST, REPORT, STATEMENT, Container
from truing.share.keys import PublicKey
from truing.share.manifest import Contents, File, Manifest, check_depth, parse_json
from truing.share.statement import Statement, open_statement
from truing.text import short

MEANS = (
    "A valid signature proves who said what and that nothing changed since, not that it is true: not that the model "
    "was really run, nor that this run was not picked from many."
)
UNKNOWN = "signed by an unknown key: name the keys that you trust to have this checked"


@dataclass(frozen=True)
class Verification:
    """What a bundle holds, who signed it, and what is wrong with it. What is not `ok` is not evidence."""

    path: Path
    problems: tuple[str, ...]
    """What was altered, is missing or is not as signed; each begins with the member it is about."""
    remarks: tuple[str, ...] = ()
    """What a reader should know, though nothing failed."""
    signed_by: PublicKey | None = None
    """The key whose signature is valid; None without a valid signature."""
    trusted: bool | None = None
    """Whether that key is among the trusted ones; None where none were given."""
    version: str | None = None
    """Version of Truing that packed it."""
    about: dict[str, Any] = field(default_factory=dict)
    """The packer's own words on what the evidence is about."""
    roots: tuple[Id, ...] = ()
    records: dict[str, int] = field(default_factory=dict)
    """Number of records by kind."""
    claims: tuple[Claim, ...] = ()
    withheld: tuple[str, ...] = ()
    """Digests of blobs that records name and the bundle does not hold."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def key_id(self) -> str | None:
        """Id of the key whose signature is valid."""
        return self.signed_by.id if self.signed_by else None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "path": str(self.path),
            "problems": list(self.problems),
            "remarks": list(self.remarks),
            "key_id": self.key_id,
            "signed_by": self.signed_by.pem if self.signed_by else None,
            "trusted": self.trusted,
            "version": self.version,
            "about": self.about,
            "roots": list(self.roots),
            "records": self.records,
            "withheld": list(self.withheld),
            "means": MEANS,
        }


def verify(path: Path, *, trusted: Sequence[PublicKey | str] = ()) -> Verification:
    """Check a bundle: container, signature, manifest, every file, every record, what they need of each other.

    With `trusted` (public keys or full key ids), a bundle that another key signed is not ok. A bundle that cannot be
    read at all is not ok either; UsageError only where there is no such file.
    """
    try:
        # A pipe or a device would never end, or block.
        if not stat.S_ISREG(path.stat().st_mode):
            return Verification(path, (f"{path.name}: is not a file",))
        with path.open("rb") as file:
            check = _Check(Container(file, path.stat().st_size))
            check.run([key if isinstance(key, str) else key.id for key in trusted])
    except FileNotFoundError as error:
        raise UsageError(f"there is no bundle at {path}") from error
    except OSError as error:
        return Verification(path, (f"{path.name}: cannot be read: {error.strerror}",))
    except BundleError as error:
        return Verification(path, (str(error),))
    return check.result(path)


def extract_report(path: Path) -> bytes:
    """The HTML report of a bundle that verifies; BundleError if it does not, or has none.

    It is as the signer packed it, scripts included, and was not recomputed from the records.
    """
    found = verify(path)
    if not found.ok:
        raise BundleError(f"{path.name} does not verify: {found.problems[0]}")
    with path.open("rb") as file:
        box = Container(file, path.stat().st_size)
        if REPORT not in box.members:
            raise BundleError(f"{path.name} holds no report; pack one with `truing share pack --report FILE.html`")
        return box.read(REPORT)


class _Check:
    """One pass over a bundle that gathers problems."""

    def __init__(self, box: Container) -> None:
        self.box = box
        self.problems: list[str] = []
        self.contents = Contents()
        self.claims: list[Claim] = []
        self.statement: Statement | None = None
        self.manifest: Manifest | None = None
        self.trusted: bool | None = None

    def run(self, trusted: Sequence[str]) -> None:
        self.problems += [f"{name}: is missing" for name in (MANIFEST, STATEMENT) if name not in self.box.members]
        if not self.problems:
            self._statement(trusted)
            self._manifest()
        for name in self.box.members:
            self._member(name)
        self._files()
        self._graph()
        if not self.problems and self.manifest:
            self._summary(self.manifest)

    def result(self, path: Path) -> Verification:
        statement, manifest = self.statement, self.manifest
        return Verification(
            path=path,
            problems=tuple(self.problems),
            remarks=tuple(self._remarks()),
            signed_by=statement.key if statement else None,
            trusted=self.trusted,
            version=short(statement.predicate.tool.version, length=40) if statement else None,
            about=statement.predicate.about if statement else {},
            roots=manifest.roots if manifest else (),
            records=dict(self.contents.kinds),
            claims=tuple(self.claims),
            withheld=tuple(dict.fromkeys(b.digest for b in manifest.blobs if b.withheld)) if manifest else (),
        )

    def _statement(self, trusted: Sequence[str]) -> None:
        try:
            self.statement = open_statement(self.box.read(STATEMENT))
        except BundleError as error:
            self.problems.append(str(error))
            return
        key = self.statement.key.id
        if trusted:
            self.trusted = key in trusted
            if not self.trusted:
                self.problems.append(f"{STATEMENT}: signed by key {key}, which is not among the trusted ones")

    def _manifest(self) -> None:
        """The manifest, if it is the one that was signed for; one that is not is no standard for other members."""
        data = self.box.read(MANIFEST)
        if self.statement and digest(data) != self.statement.manifest:
            self.problems.append(f"{MANIFEST}: content does not match its digest in the signed statement")
            return
        try:
            self.manifest = parse_json(data, Manifest, name=MANIFEST)
        except BundleError as error:
            self.problems.append(str(error))
            return
        if self.statement and self.statement.predicate.roots != self.manifest.roots:
            self.problems.append(f"{STATEMENT}: names other roots than the manifest")

    def _member(self, name: str) -> None:
        """Digest and size by the manifest; checksum by the container; identity by the name itself."""
        sha256, crc = hashlib.sha256(), 0
        for chunk in self.box.chunks(name):
            sha256.update(chunk)
            crc = zlib.crc32(chunk, crc)
        entry = self.box.members[name]
        found = File(sha256=sha256.hexdigest(), size=entry.size)
        if problem := self._against_manifest(name, found) or self._against_name(name, found):
            self.problems.append(f"{name}: {problem}")
        elif crc != entry.crc:
            self.problems.append(f"{name}: content does not match its checksum in the container")

    def _against_manifest(self, name: str, found: File) -> str | None:
        if self.manifest is None or name in {MANIFEST, STATEMENT}:
            return None
        if name not in self.manifest.files:
            return "is not named by the manifest"
        return None if self.manifest.files[name] == found else "content does not match its digest in the manifest"

    def _against_name(self, name: str, found: File) -> str | None:
        if name.startswith("blobs/") and name != f"blobs/{found.sha256}":
            return "content does not match the digest that is its name"
        if not name.startswith("records/"):
            return None
        try:
            data = self.box.read(name)
            check_depth(data, name=name)
            record = parse(data, id=name.removeprefix("records/").removesuffix(".json"))
        except (RecordError, BundleError) as error:
            return f"is not the record that it should be: {short(error)}"
        self.contents.add(record)
        if isinstance(record, Claim):
            self.claims.append(record)
        return None

    def _files(self) -> None:
        names = self.manifest.files if self.manifest else {}
        self.problems += [f"{short(name)}: is missing" for name in names if name not in self.box.members]

    def _graph(self) -> None:
        """Every parent and every root is there, as a file at least: a broken one was named already."""
        there = {name.removeprefix("records/").removesuffix(".json") for name in self.box.members}
        self.problems += [
            f"records/{record}.json: its parent {parent} is missing"
            for record, parent in self.contents.orphans()
            if parent not in there
        ]
        roots = self.manifest.roots if self.manifest else ()
        self.problems += [f"{MANIFEST}: its root {root} is missing" for root in roots if root not in there]

    def _summary(self, manifest: Manifest) -> None:
        """What the manifest says about the records is what they say. Only worth asking where all of them parse."""
        if manifest.records != dict(self.contents.kinds):
            self.problems.append(f"{MANIFEST}: counts other records than the bundle holds")
        packed = {name.removeprefix("blobs/") for name in self.box.members if name.startswith("blobs/")}
        try:
            listed = self.contents.listed(packed)
        except BundleError as error:
            self.problems.append(f"records: {error}")
            return
        if manifest.blobs != listed:
            self.problems.append(f"{MANIFEST}: lists other blobs, packed or withheld, than the records name")
        self.problems += [f"blobs/{blob}: no record names it" for blob in sorted(packed - {b.digest for b in listed})]
        self.problems += [
            f"blobs/{blob.digest}: has another size than a record says ({blob.size} bytes)"
            for blob in listed
            if not blob.withheld and blob.size != self.box.members[f"blobs/{blob.digest}"].size
        ]

    def _remarks(self) -> list[str]:
        remarks = []
        if self.statement and self.trusted is None:
            remarks.append(UNKNOWN)
        if REPORT in self.box.members:
            remarks.append(f"{REPORT} is as the signer packed it; it was not recomputed from the records")
        return remarks
