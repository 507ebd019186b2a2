"""`truing share`: pack and sign evidence; check a bundle from another lab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from truing.cli.common import emit, json_option, store_option
from truing.cli.share_read import command as read
from truing.errors import UsageError
from truing.files import write_whole
from truing.records import CaseGraph, Claim, Target, Training
from truing.share import Verification, extract_report, key_path, own_key, verify
from truing.share import pack as pack_bundle
from truing.share.keys import KEY_ID, PublicKey
from truing.share.verify import MEANS, UNKNOWN
from truing.store import Store, open_store

FILE = click.Path(dir_okay=False, path_type=Path)
SHOWN = 20
"""Problems that are printed as text; --json gives all of them."""
# The whole id, and not its beginning: others can make a key whose id begins alike.
COMPARE = "compare it with the signer's own, then name it with `share verify --trust`"


@click.group(epilog="Example:  truing share pack --out evidence.truing  ·  truing share verify evidence.truing")
def command() -> None:
    """Pack records into one signed file, and check such a file from another lab."""


@command.command(epilog="Example:  truing share keygen")
@json_option
def keygen(*, as_json: bool) -> None:
    """Print your public key and its id; make the key where there is none yet. A key is never overwritten."""
    path = key_path()
    made = not path.exists()
    public = own_key(path).public
    lines = [f"{'made' if made else 'kept'} {path}", f"key id  {public.id}", *public.pem.splitlines()]
    value = {"key_id": public.id, "public_key": public.pem, "path": str(path), "made": made}
    emit(value, as_json=as_json, lines=lines)


@command.command(epilog="Example:  truing share pack --out evidence.truing --without-blobs")
@click.argument("roots", nargs=-1, metavar="[ROOT_ID_PREFIX]...")
@click.option("--out", required=True, type=FILE, help="The bundle to write.")
@click.option(
    "--report", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="HTML report to pack along."
)
@click.option("--without-blobs", is_flag=True, help="List weights and other large files as withheld.")
@store_option
@json_option
def pack(
    roots: tuple[str, ...],
    out: Path,
    report: Path | None,
    store_path: Path,
    *,
    without_blobs: bool,
    as_json: bool,
) -> None:
    """Pack records, with all that they rest on, into one signed file.

    Without ROOT_ID_PREFIX: the latest loop, or where there is none, all claims and what was made of them.
    """
    with open_store(store_path, mode="read") as store:
        ids = [store.find(prefix).id for prefix in roots] or _all_there_is(store)
        if not ids:
            raise UsageError(f"the store {store_path} holds no loop and no claim to pack; run `truing audit` first")
        records = store.closure(ids)
        named = [] if without_blobs else [blob for record in records for blob in store.blobs_of(record)]
        packed = pack_bundle(
            out,
            records,
            {blob.digest: store.blob_path(blob) for blob in named},
            roots=ids,
            report=report.read_bytes() if report else None,
            key=own_key(),
            subject={"targets": sorted({record.name for record in records if isinstance(record, Target)})},
        )
    quoting = [record.id for record in records if isinstance(record, CaseGraph) and record.labels]
    lines = [
        f"packed {_counts(packed.records)} into {out} ({packed.size} bytes)",
        f"sha256  {packed.digest}",
        f"signed by key {packed.key_id}",
        *_withheld(packed.withheld),
        *_quoting(quoting),
    ]
    emit(packed.plain() | {"quoting": quoting}, as_json=as_json, lines=lines)


def _all_there_is(store: Store) -> list[str]:
    """The latest loop; without one every claim, graph, case, finished training and measurement."""
    if loop := store.latest("loop"):
        return [loop.id]
    made = [record for kind in ("claim", "graph", "case", "training", "measurement") for record in store.of_kind(kind)]
    return [record.id for record in made if not isinstance(record, Training) or record.finished]


@command.command("verify", epilog="Example:  truing share verify evidence.truing --trust their-key.pem")
@click.argument("file", type=FILE)
@click.option(
    "--trust", "trusted", multiple=True, metavar="KEYID_OR_PEM", help="A key id, or a file with a public key."
)
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, trusted: tuple[str, ...], *, as_json: bool) -> None:
    """Check a bundle. Exit code 0: nothing was altered; 1: altered or unreadable; 2: no such file.

    Without --trust, whoever packed it may have packed anything: "verified" is said of a trusted signer alone, and a
    bundle that another key signed ends with 1.
    """
    found = verify(file, trusted=[_key(text) for text in trusted])
    emit(found.plain(), as_json=as_json, lines=[*_verdict(found), *_contents(found), MEANS])
    ctx.exit(0 if found.ok else 1)


@command.command(epilog="Example:  truing share show evidence.truing")
@click.argument("file", type=FILE)
@click.option("--report", type=FILE, help="Write the HTML report of the bundle to this file.")
@json_option
@click.pass_context
def show(ctx: click.Context, file: Path, report: Path | None, *, as_json: bool) -> None:
    """Show what a bundle holds: records by kind, claims with their verdicts. Exit code 1 where it does not verify."""
    found = verify(file)
    if report:
        write_whole(report, extract_report(file))
    claims = [_claim(claim) for claim in found.claims]
    lines = [
        f"{claim['verdict']:<14}{claim['outcome']:<12}{claim['clause']:<5}{claim['statement']}" for claim in claims
    ]
    value = {**found.plain(), "claims": claims}
    emit(value, as_json=as_json, lines=[*_verdict(found), *_contents(found), *lines])
    ctx.exit(0 if found.ok else 1)


command.add_command(read)


def _key(text: str) -> PublicKey | str:
    """A key from --trust. A shortened id is refused: others can make a key whose id begins alike."""
    if KEY_ID.fullmatch(text):
        return text
    try:
        return PublicKey.from_pem(Path(text).read_bytes())
    except OSError as error:
        raise UsageError(
            f"--trust {text}: neither a key id (64 hexadecimal digits) nor a file that can be read: {error.strerror}"
        ) from error


def _verdict(found: Verification) -> list[str]:
    """Whether the bundle verifies, what is wrong, who signed it. Only a key that was named makes it "verified"."""
    key = f"signed by key {found.key_id}"
    if found.ok and found.trusted:
        lines = [f"verified: nothing was altered, {key} (trusted)"]
    elif found.ok:
        lines = ["intact: nothing was altered since it was signed; who signed it is not known", f"{key}: {COMPARE}"]
    else:
        lines = [f"NOT VERIFIED: {len(found.problems)} problem(s)", *(f"  {p}" for p in found.problems[:SHOWN])]
        if len(found.problems) > SHOWN:
            lines.append(f"  and {len(found.problems) - SHOWN} more (--json lists all)")
        lines += [key] if found.key_id else []
    return lines + [f"note: {remark}" for remark in found.remarks if remark != UNKNOWN]


def _contents(found: Verification) -> list[str]:
    return [f"holds {_counts(found.records)}", *_withheld(found.withheld), *(f"root {root}" for root in found.roots)]


def _counts(records: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(records.items())) or "no records"


def _withheld(digests: tuple[str, ...]) -> list[str]:
    return [f"withheld blob {digest}" for digest in digests]


def _quoting(cases: Sequence[str]) -> list[str]:
    """That labels of neurons may show what targets wrote, which a private test may be told from."""
    if not cases:
        return []
    return [
        f"note: labels of neurons quote the texts that they were made from, which may be replies in this store: case"
        f" {', '.join(case[:12] for case in cases)} (`truing trace --no-labels` leaves labels out)"
    ]


def _claim(claim: Claim) -> dict[str, Any]:
    fields = ("verdict", "outcome", "family", "clause", "statement", "why")
    return {"id": claim.id, **{name: getattr(claim, name) for name in fields}}
