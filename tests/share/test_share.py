"""A bundle survives the journey whole, or is told apart from one that did not."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.errors import BundleError, DataError, StoreError, UsageError
from truing.records import Blob, Claim, Estimate, Measurement, Named, Record, Target, Unmeasured, blobs_in, canonical
from truing.share import PublicKey, SigningKey, container, extract_report, key_path, load_key, own_key, pack, verify
from truing.share.manifest import MAX_DEPTH
from truing.share.statement import sign

KEY = SigningKey.generate()
WEIGHTS = b"weights of an adapter" * 3
ADAPTER = Blob(digest=hashlib.sha256(WEIGHTS).hexdigest(), size=len(WEIGHTS), media="safetensors")
REPORT = b"<!doctype html><p>report</p>"


def target(name: str = "scripted/plain", adapter: Blob | None = None) -> Target:
    return Target(name=name, weights="0" * 64, template="1" * 64, dtype="float32", abilities=("chat",), adapter=adapter)


def claim(of: Target, statement: str = "It tells secrets when threatened.") -> Claim:
    effect = Estimate(value=0.4, low=0.2, high=0.6, level=0.95, n=40, clusters=8, unit="nats", estimator="mean")
    return Claim(
        family="insider", clause="C4", outcome="preference", statement=statement, design="2" * 64, target=of.id,
        naive=effect, specific=effect, controls=(), bound=0.1, p=0.01, p_holm=0.02, minimum_detectable=0.2,
        classes=(("lean", 30),), verdict="supported", why="beyond its control", parents=(of.id,),
    )  # fmt: skip


def measurement(*parents: Record) -> Measurement:
    quantities = (Named(name="runout", quantity=Unmeasured(reason="there was no fix")),)
    return Measurement(name="degree", targets=(), quantities=quantities, parents=tuple(p.id for p in parents))


def evidence() -> list[Record]:
    before, after = target(), target("scripted/fixed", ADAPTER)
    said = claim(before)
    return [before, after, said, measurement(said, after)]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    file = tmp_path / "weights"
    file.write_bytes(WEIGHTS)
    return {ADAPTER.digest: file}


@pytest.fixture
def bundle(tmp_path: Path, weights: dict[str, Path]) -> Path:
    return packed(tmp_path / "evidence.truing", weights)


def packed(path: Path, blobs: dict[str, Path], *, key: SigningKey = KEY, records: list[Record] | None = None) -> Path:
    records = evidence() if records is None else records
    pack(path, records, blobs, roots=[records[-1].id], report=REPORT, key=key, subject={"targets": ["scripted/plain"]})
    return path


def tiny(path: Path) -> Path:
    record = target()
    pack(path, [record], {}, roots=[record.id], report=None, key=KEY, subject={})
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as box:
        return {name: box.read(name) for name in box.namelist()}


def rewritten(path: Path, content: dict[str, bytes]) -> Path:
    """The members in a container that is written as it should be, whatever they are."""
    with path.open("wb") as file:
        container.write(file, content)
    return path


def resigned(content: dict[str, bytes], key: SigningKey = KEY, **changes: object) -> dict[str, bytes]:
    """The members with a manifest that fits them, and a statement that fits the manifest."""
    manifest = json.loads(content["manifest.json"]) | changes
    if "files" not in changes:
        evidence = content.keys() - {"manifest.json", "statement.dsse.json"}
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(content[name]).hexdigest(), "size": len(content[name])} for name in evidence
        }
    data = canonical(manifest)
    payload = json.loads(base64.b64decode(json.loads(content["statement.dsse.json"])["payload"]))
    payload["subject"][0]["digest"]["sha256"] = hashlib.sha256(data).hexdigest()
    payload["predicate"]["publicKey"]["public"] = key.public.raw
    payload["predicate"]["roots"] = manifest["roots"]
    return content | {"manifest.json": data, "statement.dsse.json": sign(_Plain(payload), key)}  # type: ignore[arg-type]


class _Plain:
    """Any payload, to be signed as it is."""

    def __init__(self, payload: object) -> None:
        self.payload = payload

    def model_dump(self, *, mode: str) -> object:
        assert mode == "json"
        return self.payload


# ---- what is packed -------------------------------------------------------------------------------------------------


def test_a_bundle_verifies_and_says_what_it_holds(bundle: Path) -> None:
    records = evidence()
    found = verify(bundle)
    assert found.ok, found.problems
    assert found.signed_by == KEY.public
    assert found.key_id == KEY.public.id
    assert found.trusted is None
    assert any("unknown key" in remark for remark in found.remarks)
    assert found.roots == (records[-1].id,)
    assert found.records == {"target": 2, "claim": 1, "measurement": 1}
    assert found.claims == (records[2],)
    assert found.withheld == ()
    assert found.about == {"targets": ["scripted/plain"]}
    assert "not that it is true" in found.plain()["means"]
    assert extract_report(bundle) == REPORT
    json.dumps(found.plain())


def test_any_unzip_program_opens_it(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as box:
        assert box.testzip() is None
        assert box.namelist() == sorted(box.namelist())
        assert {info.date_time for info in box.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.filemode(info.external_attr >> 16) for info in box.infolist()} == {"-rw-r--r--"}
    content = members(bundle)
    assert content[f"blobs/{ADAPTER.digest}"] == WEIGHTS
    for record in evidence():
        assert content[f"records/{record.id}.json"] == record.canonical


def test_the_statement_is_an_in_toto_statement_about_the_manifest(bundle: Path) -> None:
    content = members(bundle)
    envelope = json.loads(content["statement.dsse.json"])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digest = hashlib.sha256(content["manifest.json"]).hexdigest()
    assert statement["subject"] == [{"name": "manifest.json", "digest": {"sha256": digest}}]
    assert statement["predicate"]["publicKey"] == {"keytype": "ed25519", "public": KEY.public.raw}


def test_the_same_input_and_key_give_the_same_bytes(tmp_path: Path, weights: dict[str, Path]) -> None:
    one = packed(tmp_path / "one", weights).read_bytes()
    records = evidence()
    pack(
        tmp_path / "two", [*reversed(records), records[0]], weights, roots=[records[-1].id] * 2, report=REPORT, key=KEY,
        subject={"targets": ["scripted/plain"]},
    )  # fmt: skip
    assert (tmp_path / "two").read_bytes() == one
    assert packed(tmp_path / "three", weights, key=SigningKey.generate()).read_bytes() != one


def test_packed_tells_digest_and_size(tmp_path: Path) -> None:
    record = target()
    done = pack(tmp_path / "b", [record], {}, roots=[record.id], report=None, key=KEY, subject={})
    data = (tmp_path / "b").read_bytes()
    assert (done.digest, done.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert json.loads(json.dumps(done.plain()))["records"] == {"target": 1}


def test_withheld_blobs_are_listed_never_absent(tmp_path: Path) -> None:
    found = verify(packed(tmp_path / "b", {}))
    assert found.ok
    assert found.withheld == (ADAPTER.digest,)


def test_blobs_are_found_in_any_field() -> None:
    assert list(blobs_in(target(adapter=ADAPTER))) == [ADAPTER]
    assert list(blobs_in(claim(target()))) == []


def test_verifying_loads_nothing_heavy(bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from truing.share import verify; "
        f"assert verify(Path({str(bundle)!r})).ok; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'truing.store', 'truing.cli') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- what is refused to pack ----------------------------------------------------------------------------------------


def attempt(path: Path, records: list[Record], blobs: dict[str, Path], roots: list[str]) -> None:
    pack(path, records, blobs, roots=roots, report=None, key=KEY, subject={})


def test_missing_parents_roots_and_strange_blobs_are_refused(tmp_path: Path, weights: dict[str, Path]) -> None:
    records, path = evidence(), tmp_path / "b"
    with pytest.raises(BundleError, match="needs its parent"):
        attempt(path, records[1:], {}, [records[-1].id])
    with pytest.raises(BundleError, match="root 99999"):
        attempt(path, records, {}, ["9" * 64])
    with pytest.raises(BundleError, match="at least one root"):
        attempt(path, records, {}, [])
    with pytest.raises(BundleError, match="no record names blob"):
        attempt(path, records[:1], weights, [records[0].id])
    with pytest.raises(BundleError, match="no digest or size"):
        attempt(path, [odd := target(adapter=Blob.model_construct(digest="../x", size=1, media=""))], {}, [odd.id])
    assert not path.exists()


def test_a_damaged_or_missing_blob_is_not_packed(tmp_path: Path, weights: dict[str, Path]) -> None:
    weights[ADAPTER.digest].write_bytes(WEIGHTS[::-1])
    with pytest.raises(BundleError, match="another content"):
        packed(tmp_path / "b", weights)
    weights[ADAPTER.digest].unlink()
    with pytest.raises(BundleError, match="cannot read blobs/"):
        packed(tmp_path / "b", weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = bundle.read_bytes()

    def full(file: object, *args: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(container, "write", full)
    with pytest.raises(StoreError, match="No space left on device"):
        packed(bundle, {})
    assert bundle.read_bytes() == old
    assert not list(bundle.parent.glob(".*"))


def test_the_folder_of_a_bundle_is_made(tmp_path: Path) -> None:
    tiny(tmp_path / "nowhere" / "b")
    assert verify(tmp_path / "nowhere" / "b").ok
    with pytest.raises(StoreError, match="is a file"):
        tiny(tmp_path / "nowhere" / "b" / "c")


def test_a_file_that_changes_while_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = iter([b"one", b"two"])
    monkeypatch.setattr(container, "chunks", lambda source: iter([next(contents)]))
    with (tmp_path / "b").open("wb") as file, pytest.raises(BundleError, match="changed while it was packed"):
        container.write(file, {"report.html": b""})


def test_bounds_hold_when_writing_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "b").open("wb") as file:
        monkeypatch.setattr(container, "MAX_MEMBERS", 1)
        with pytest.raises(BundleError, match="pack fewer"):
            container.write(file, {"report.html": b"", "manifest.json": b""})
        monkeypatch.setitem(container.LIMITS, "report.html", 3)
        with pytest.raises(BundleError, match="has 4 bytes"):
            container.write(file, {"report.html": b"four"})
        monkeypatch.setattr(container, "MAX_CONTAINER", 100)
        with pytest.raises(BundleError, match="pack without blobs"):
            container.write(file, {"manifest.json": b"four"})


# ---- what is altered ------------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_detected_and_named(tmp_path: Path) -> None:
    path = tiny(tmp_path / "b")
    whole = path.read_bytes()
    name = f"records/{target().id}.json"
    begin = whole.index(target().canonical)
    inside = range(begin, begin + len(target().canonical))
    for offset in range(len(whole)):
        altered = bytearray(whole)
        altered[offset] ^= 0x01
        path.write_bytes(altered)
        found = verify(path)
        assert not found.ok, offset
        assert any(word in found.problems[0] for word in ("json", "byte", "end record")), found.problems
        if offset in inside:
            assert found.problems == (f"{name}: content does not match its digest in the manifest",)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_edit_passes(bundle: Path, data: st.DataObject) -> None:
    whole = members_cache.setdefault(bundle, bundle.read_bytes())
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 40))
    paste = data.draw(st.binary(max_size=40) | st.integers(0, len(whole)).map(lambda i: whole[i : i + 40]))
    edited = whole[:at] + paste + whole[at + cut :]
    copy = bundle.with_suffix(".edited")
    copy.write_bytes(edited)
    assert verify(copy).ok == (edited == whole)


members_cache: dict[Path, bytes] = {}


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = tiny(tmp_path / "b")
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert not verify(path).ok


def test_trailing_and_leading_data_are_refused(bundle: Path) -> None:
    whole = bundle.read_bytes()
    bundle.write_bytes(whole + b"more")
    assert verify(bundle).problems == ("4 bytes follow the end of the container",)
    bundle.write_bytes(b"#!/bin/sh\n" + whole)
    assert "neither a member nor the directory" in verify(bundle).problems[0]


def test_added_and_removed_members_are_named(bundle: Path) -> None:
    content = members(bundle)
    name = f"records/{'a' * 64}.json"
    assert f"{name}: is not named by the manifest" in verify(rewritten(bundle, content | {name: b"{}"})).problems
    for lost in content:
        found = verify(rewritten(bundle, {n: c for n, c in content.items() if n != lost}))
        assert any(p.startswith(f"{lost}: is missing") for p in found.problems), lost


def test_swapped_records_are_both_named(bundle: Path) -> None:
    content = members(bundle)
    one, two = sorted(name for name in content if name.startswith("records/"))[:2]
    swapped = content | {one: content[two], two: content[one]}
    assert {p.split(":")[0] for p in verify(rewritten(bundle, swapped)).problems} == {one, two}
    # With a manifest and a signature that fit, identity by content still tells.
    problems = verify(rewritten(bundle, resigned(swapped))).problems
    assert {p.split(":")[0] for p in problems} >= {one, two}


def test_an_altered_record_with_a_manifest_to_fit_is_named(bundle: Path) -> None:
    content = members(bundle)
    name = f"records/{evidence()[2].id}.json"
    altered = content | {name: content[name].replace(b'"supported"', b'"null"')}
    assert altered[name] != content[name]
    fitted = altered | {"manifest.json": resigned(altered)["manifest.json"]}
    problems = verify(rewritten(bundle, fitted)).problems
    assert "manifest.json: content does not match its digest in the signed statement" in problems
    assert any(p.startswith(f"{name}: is not the record that it should be") for p in problems)
    assert any(p.startswith(name) for p in verify(rewritten(bundle, resigned(altered))).problems)


def test_a_blob_that_is_not_its_name_is_named(bundle: Path) -> None:
    name = f"blobs/{ADAPTER.digest}"
    altered = members(bundle) | {name: WEIGHTS[::-1]}
    problems = verify(rewritten(bundle, resigned(altered))).problems
    assert f"{name}: content does not match the digest that is its name" in problems


def test_a_checksum_of_the_container_that_does_not_fit(bundle: Path) -> None:
    whole = bundle.read_bytes()
    crc = zlib.crc32(REPORT)
    bundle.write_bytes(whole.replace(struct.pack("<I", crc), struct.pack("<I", crc ^ 1)))
    assert verify(bundle).problems == ("report.html: content does not match its checksum in the container",)


def test_what_the_manifest_says_must_be_so_even_when_signed(bundle: Path) -> None:
    content = members(bundle)
    files = json.loads(content["manifest.json"])["files"]
    listed = json.loads(content["manifest.json"])["blobs"]
    absent = "c" * 64
    for changes, problem in (
        ({"records": {"claim": 7}}, "counts other records"),
        ({"blobs": []}, "lists other blobs"),
        ({"blobs": [listed[0] | {"size": 5}]}, "lists other blobs"),
        ({"roots": [absent]}, f"its root {absent} is missing"),
        ({"files": files | {f"records/{absent}.json": {"sha256": absent, "size": 1}}}, "is missing"),
        (
            {"files": files | {"../../\x1b[2Jx": {"sha256": absent, "size": 1}}},
            "\N{REPLACEMENT CHARACTER}[2Jx: is missing",
        ),
        ({"format": "truing-bundle/2"}, "does not parse"),
        ({"roots": []}, "does not parse"),
        ({"extra": 1}, "does not parse"),
    ):
        found = verify(rewritten(bundle, resigned(content, **changes)))
        assert any(problem in p for p in found.problems), (changes, found.problems)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    before = target()
    said = claim(before)
    path = packed(tmp_path / "b", {}, records=[before, said])
    content = members(path)
    del content[f"records/{before.id}.json"]
    problems = verify(rewritten(path, resigned(content, records={"claim": 1}))).problems
    assert problems == (f"records/{said.id}.json: its parent {before.id} is missing",)


def test_blobs_that_no_record_names_or_sizes_otherwise(tmp_path: Path, weights: dict[str, Path]) -> None:
    content = members(packed(tmp_path / "b", weights))
    stray = hashlib.sha256(b"stray").hexdigest()
    problems = verify(rewritten(tmp_path / "c", resigned(content | {f"blobs/{stray}": b"stray"}))).problems
    assert f"blobs/{stray}: no record names it" in problems
    liar = target(adapter=Blob(digest=ADAPTER.digest, size=1, media="safetensors"))
    content = members(packed(tmp_path / "d", {}, records=[liar])) | {f"blobs/{ADAPTER.digest}": WEIGHTS}
    listed = [{"digest": ADAPTER.digest, "size": 1, "media": "safetensors", "withheld": False}]
    problems = verify(rewritten(tmp_path / "d", resigned(content, blobs=listed))).problems
    assert problems == (f"blobs/{ADAPTER.digest}: has another size than a record says (1 bytes)",)
    odd = target(adapter=Blob.model_construct(digest="../../etc/passwd", size=1, media="x"))
    content = members(packed(tmp_path / "e", {}, records=[target()]))
    content = {n: c for n, c in content.items() if not n.startswith("records/")} | {
        f"records/{odd.id}.json": odd.canonical
    }
    problems = verify(rewritten(tmp_path / "e", resigned(content, roots=[odd.id]))).problems
    assert any("digest" in p and odd.id in p for p in problems)


# ---- who signed -----------------------------------------------------------------------------------------------------


def test_signed_by_another_key(bundle: Path) -> None:
    other = SigningKey.generate()
    assert verify(bundle, trusted=[KEY.public]).trusted is True
    assert verify(bundle, trusted=[other.public, KEY.public.id]).ok
    rewritten(bundle, resigned(members(bundle), other))
    found = verify(bundle)
    assert found.ok
    assert found.signed_by == other.public
    found = verify(bundle, trusted=[KEY.public.id])
    assert not found.ok
    assert found.trusted is False
    assert other.public.id in found.problems[0]
    assert not verify(bundle, trusted=[KEY.public.id[:12]]).ok


def test_a_statement_under_another_name_or_without_signature(bundle: Path) -> None:
    content = members(bundle)
    envelope = json.loads(content["statement.dsse.json"])
    other = SigningKey.generate()
    stolen = json.loads(resigned(content, other)["statement.dsse.json"])
    for changed in (
        envelope | {"signatures": stolen["signatures"]},
        envelope | {"payload": stolen["payload"]},
        envelope | {"signatures": []},
        envelope | {"signatures": envelope["signatures"] * 2},
        envelope | {"signatures": [envelope["signatures"][0] | {"sig": ""}]},
        envelope | {"signatures": [envelope["signatures"][0] | {"sig": "\ud800!"}]},
        envelope | {"signatures": [envelope["signatures"][0] | {"sig": "é"}]},
        envelope | {"payload": "é"},
        envelope | {"payload": "e30="},
        envelope | {"payloadType": "text/plain"},
        envelope | {"more": 1},
        [],
    ):
        content["statement.dsse.json"] = json.dumps(changed, separators=(",", ":"), sort_keys=True).encode()
        found = verify(rewritten(bundle, content))
        assert not found.ok
        assert found.problems[0].startswith("statement.dsse.json"), found.problems
        assert found.signed_by is None


def test_a_statement_about_other_roots_than_the_manifest(bundle: Path) -> None:
    content = members(bundle)
    payload = json.loads(base64.b64decode(json.loads(content["statement.dsse.json"])["payload"]))
    payload["predicate"]["roots"] = ["d" * 64]
    content["statement.dsse.json"] = sign(_Plain(payload), KEY)  # type: ignore[arg-type]
    problems = verify(rewritten(bundle, content)).problems
    assert problems == ("statement.dsse.json: names other roots than the manifest",)


def test_json_that_means_the_same_but_is_written_otherwise(bundle: Path) -> None:
    content = members(bundle)
    for name in ("manifest.json", "statement.dsse.json"):
        plain = json.loads(content[name])
        for spelling in (json.dumps(plain), json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n"):
            problems = verify(rewritten(bundle, content | {name: spelling.encode()})).problems
            assert any(p.startswith(name) for p in problems)
    # Signed for, yet not canonical: sizes as strings, which a lenient parser would read as numbers.
    files = json.loads(content["manifest.json"])["files"]
    lenient = {name: file | {"size": str(file["size"])} for name, file in files.items()}
    problems = verify(rewritten(bundle, resigned(content, files=lenient))).problems
    assert problems == ("manifest.json: is not canonical JSON, as Truing writes it",)


def test_a_signature_written_in_another_way_is_told(bundle: Path) -> None:
    """base64 has several spellings of the same bytes; only ours passes, so that no byte is free to change."""
    content = members(bundle)
    envelope = json.loads(content["statement.dsse.json"])
    sig = envelope["signatures"][0]["sig"]
    assert sig.endswith("==")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = sig[:-3] + alphabet[alphabet.index(sig[-3]) ^ 1] + "=="
    assert base64.b64decode(other) == base64.b64decode(sig)
    content["statement.dsse.json"] = canonical(envelope | {"signatures": [envelope["signatures"][0] | {"sig": other}]})
    assert verify(rewritten(bundle, content)).problems == (
        "statement.dsse.json: its envelope is not as Truing writes it",
    )


# ---- hostile files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "records/../../x.json",
        "C:\\x",
        "records/",
        "\x1b[2J",
        "blobs/" + "A" * 64,
        "x" * 300,
        "é",
    ],
)
def test_names_outside_the_closed_list_are_refused(bundle: Path, name: str) -> None:
    with zipfile.ZipFile(bundle, "a") as box:
        box.writestr(name, b"evil")
    found = verify(bundle)
    assert "no member of the name" in found.problems[0] or "longest of a bundle" in found.problems[0]
    assert found.problems[0].isprintable()


def test_zip_tricks_are_refused(bundle: Path) -> None:
    whole = bundle.read_bytes()

    def added(**kwargs: object) -> str:
        bundle.write_bytes(whole)
        info = zipfile.ZipInfo(**({"filename": "report.html", "date_time": (1980, 1, 1, 0, 0, 0)} | kwargs))  # type: ignore[arg-type]
        with zipfile.ZipFile(bundle, "a") as box, pytest.warns(UserWarning, match="Duplicate"):
            box.writestr(info, REPORT, kwargs.get("compress_type"))  # type: ignore[arg-type]
        return verify(bundle).problems[0]

    assert added() == "report.html: stands in the container twice"
    assert "not as Truing writes it" in added(date_time=(2026, 1, 1, 0, 0, 0))


def container_with(entries: list[tuple[container.Entry, bytes]], directory: bytes | None = None) -> bytes:
    body = b"".join(entry.header + content for entry, content in entries)
    listing = directory if directory is not None else b"".join(entry.listing(0) for entry, _ in entries)
    return body + listing


def entry(name: str, content: bytes, *, size: int | None = None) -> container.Entry:
    return container.Entry(name, zlib.crc32(content), len(content) if size is None else size)


def problem(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return verify(path).problems[0]


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "b"
    one = entry("manifest.json", b"{}")
    assert "only 2 follow" in problem(path, container_with([(entry("manifest.json", b"{}", size=900), b"{}")], b""))
    big = entry("manifest.json", b"{}", size=3 << 30)
    assert "the bound is" in problem(path, container_with([(big, b"{}")]))
    assert "only" in problem(path, container_with([(entry(f"blobs/{'a' * 64}", b"", size=3 << 30), b"")]))
    assert "twice" in problem(path, container_with([(one, b"{}"), (one, b"{}")]))
    assert "are sorted" in problem(path, container_with([(entry("report.html", b"x"), b"x"), (one, b"{}")]))
    deflated = bytearray(container_with([(one, b"{}")]))
    deflated[8] = 8
    assert "compressed" in problem(path, bytes(deflated))
    link = bytearray(one.listing(0))
    link[38:42] = struct.pack("<I", 0o120777 << 16)
    assert "manifest.json: its entry in the container's directory" in problem(
        path, container_with([(one, b"{}")], bytes(link))
    )
    assert "end record" in problem(path, container_with([(one, b"{}")]))
    assert "no bundle" in problem(path, b"")
    assert "no bundle" in problem(path, b"\x89PNG not a zip at all, but long enough to hold a header")


def test_too_many_members_and_too_large_a_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_MEMBERS", 3)
    assert "one more than the 3 members" in verify(bundle).problems[0]
    monkeypatch.setattr(container, "MAX_CONTAINER", 100)
    assert "more than the 100" in verify(bundle).problems[0]


@pytest.mark.parametrize(
    "hostile",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'"' * 1_000_000,
        b'"\\"' * 300_000,
        b"9" * 100_000,
        b"\xff\xfe\x00",
        b"NaN",
        b"1e999",
        b'{"kind":"target","schema":1,"parents":["\\ud800"],"body":{}}',
        b'{"kind":["x"],"schema":1,"parents":[],"body":{}}',
        b'{"kind":"target","schema":1,"parents":7,"body":[]}',
    ],
)
def test_hostile_json_ends_in_a_problem(bundle: Path, hostile: bytes) -> None:
    content = members(bundle)
    for name in (f"records/{evidence()[0].id}.json", "manifest.json", "statement.dsse.json"):
        altered = content | {name: hostile}
        fitted = resigned(altered) if name.startswith("records/") else altered
        problems = verify(rewritten(bundle, fitted)).problems
        assert any(p.startswith(name) for p in problems)
        assert all(p.isprintable() and len(p) < 500 for p in problems)


def test_depth_is_counted_outside_strings_alone(tmp_path: Path) -> None:
    deep = measurement().model_copy(update={"note": '[{"\\' * 500})
    path = tmp_path / "b"
    pack(path, [deep], {}, roots=[deep.id], report=None, key=KEY, subject={})
    assert verify(path).ok
    assert MAX_DEPTH < 100


def test_what_is_no_file(tmp_path: Path) -> None:
    assert verify(tmp_path).problems == (f"{tmp_path.name}: is not a file",)
    with pytest.raises(UsageError, match="no bundle at"):
        verify(tmp_path / "nowhere")


def test_a_report_is_only_taken_from_a_bundle_that_verifies(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no report"):
        extract_report(tiny(tmp_path / "b"))
    bundle.write_bytes(bundle.read_bytes().replace(REPORT, REPORT.replace(b"report", b"Report")))
    with pytest.raises(BundleError, match=r"report\.html: content does not match"):
        extract_report(bundle)


# ---- the key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUING_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def test_the_key_is_made_once_and_for_its_owner_alone(home: Path) -> None:
    key = own_key()
    assert key_path() == home / "key.pem"
    assert stat.S_IMODE((home / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert own_key().public == key.public
    assert [p.name for p in home.iterdir()] == ["key.pem"]
    assert repr(key) == f"SigningKey({key.public.id[:12]})"


def test_where_the_key_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRUING_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert key_path() == tmp_path / "truing" / "key.pem"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert key_path() == Path.home() / ".config" / "truing" / "key.pem"


def test_a_key_that_others_can_read_is_refused(home: Path) -> None:
    own_key()
    (home / "key.pem").chmod(0o640)
    with pytest.raises(UsageError, match="mode 0640"):
        own_key()


def test_what_is_no_key_is_refused_and_kept(home: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    home.mkdir()
    elliptic = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"not a key", elliptic):
        (home / "key.pem").write_bytes(content)
        (home / "key.pem").chmod(0o600)
        with pytest.raises(DataError):
            own_key()
        assert (home / "key.pem").read_bytes() == content


def test_a_key_made_meanwhile_by_another_process_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from truing.share import keys

    first = own_key()
    monkeypatch.setattr(keys, "load_key", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(FileNotFoundError):
        own_key()
    assert load_key(home / "key.pem").public == first.public


def test_no_place_for_a_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="key"):
        own_key(tmp_path / "file" / "key.pem")


def test_public_keys_as_text() -> None:
    assert PublicKey.from_pem(KEY.public.pem.encode()) == KEY.public
    assert KEY.public.id == KEY.signer.public_key.keyid
    with pytest.raises(UsageError, match="no public key"):
        PublicKey.from_pem(b"nothing")
