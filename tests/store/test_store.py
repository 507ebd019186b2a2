"""The store: what is kept stays, whole or not at all, and damage is found."""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from truing import open_store
from truing.errors import RecordError, StoreError, UsageError
from truing.records import Blob, Estimate, Id, Loop, Measurement, Named, Record, Spec, Target, Unmeasured, digest
from truing.runner import Unit, run
from truing.store import Store, export, schema
from truing.store import blobs as blob_files


def spec(name: str, *parents: Id) -> Spec:
    return Spec(name=name, title="T", clauses=(), parents=parents)


def target(name: str, adapter: Blob | None = None, *parents: Id) -> Target:
    return Target(
        name=name, weights="w", template="t", dtype="f32", abilities=("chat",), adapter=adapter, parents=parents
    )


def tampered(folder: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "truing.db")
    with connection:
        connection.execute(sql, values)
    connection.close()


def names(records: list[Record]) -> list[str]:
    return [record.name for record in records if isinstance(record, Spec)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a store?#%"  # a name that is not also a URI


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(folder) as opened:
        yield opened


# Records


def test_records_come_back_in_the_order_in_which_they_were_added(store: Store) -> None:
    added = [spec("b"), spec("a"), target("t"), spec("c")]
    assert [store.add(record) for record in added] == [record.id for record in added]
    assert store.get(added[2].id) == added[2]
    assert names(store.of_kind("spec")) == ["b", "a", "c"]
    assert store.latest("spec") == added[3]
    assert store.latest("claim") is None
    assert store.of_kind("claim") == []
    assert [(entry.kind, entry.size) for entry in store.ls()] == [(r.kind, len(r.canonical)) for r in added]


def test_adding_twice_is_adding_once(store: Store) -> None:
    store.add(spec("a"))
    store.add(spec("b"))
    before = store.ls()
    store.add(spec("a"))
    assert store.ls() == before
    assert store.latest("spec") == spec("b")


@settings(max_examples=10)
@given(texts=st.lists(st.text(), max_size=4))
def test_any_record_survives_closing_and_opening(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    added = [spec(text) for text in texts]
    with open_store(folder) as store:
        ids = [store.add(record) for record in added]
    with open_store(folder, mode="read") as store:
        assert [store.get(one) for one in ids] == added
        assert store.check() == []


def test_an_absent_record_is_a_store_error(store: Store) -> None:
    with pytest.raises(StoreError, match="no record 000000000000"):
        store.get("0" * 64)


@pytest.mark.parametrize("ask", [lambda s: s.of_kind("rumour"), lambda s: s.latest("rumour"), lambda s: s.ls("rumour")])
def test_an_unknown_kind_is_wrong_use(store: Store, ask: Callable[[Store], object]) -> None:
    with pytest.raises(UsageError, match=r"unknown kind of record 'rumour'; known: .*claim"):
        ask(store)


def test_a_prefix_finds_one_record_or_says_why_not(store: Store) -> None:
    by_first: dict[str, Spec] = {}
    for number in range(100):  # until two ids share their first digit
        record = spec(str(number))
        store.add(record)
        if record.id[0] in by_first:
            break
        by_first[record.id[0]] = record
    twin = by_first[record.id[0]]
    assert store.find(record.id) == record
    assert store.find(record.id[:16].upper()) == record
    with pytest.raises(UsageError, match="several records begin with") as caught:
        store.find(record.id[0])
    assert record.id[:16] in str(caught.value)
    assert twin.id[:16] in str(caught.value)
    with pytest.raises(UsageError, match="no claim in the store"):
        store.find(record.id, "claim")
    with pytest.raises(UsageError, match="no record in the store"):
        store.find("f" * 64)
    for wrong in ("", "loop", "%"):
        with pytest.raises(UsageError, match="not the beginning of a record id"):
            store.find(wrong)


def test_a_closure_has_every_ancestor_before_its_children(store: Store) -> None:
    root, other, stranger = spec("root"), spec("other"), spec("stranger")
    left, right = spec("left", root.id), spec("right", root.id, other.id)
    top = spec("top", left.id, right.id, root.id)
    for record in (stranger, top, right, left, other, root):  # children may come first
        store.add(record)
    closure = store.closure([top.id, left.id])
    assert {record.id for record in closure} == {r.id for r in (root, other, left, right, top)}
    places = {record.id: place for place, record in enumerate(closure)}
    assert all(places[parent] < places[record.id] for record in closure for parent in record.parents)
    assert store.closure([left.id, top.id]) == closure
    assert store.closure([]) == []


def test_the_order_of_a_closure_depends_on_the_records_alone(tmp_path: Path) -> None:
    roots = [spec(str(number)) for number in range(6)]
    top = spec("top", *(root.id for root in roots))
    orders = []
    for name, added in {"a": [*roots, top], "b": [top, *reversed(roots)]}.items():
        with open_store(tmp_path / name) as store:
            for record in added:
                store.add(record)
            orders.append(store.closure([top.id]))
    assert orders[0] == orders[1]


def test_a_closure_with_an_absent_ancestor_is_refused(store: Store) -> None:
    child = spec("child", spec("never added").id)
    store.add(child)
    with pytest.raises(StoreError, match="no record"):
        store.closure([child.id])


# Finished work


def test_finished_work_comes_back_in_its_order(store: Store) -> None:
    outputs = (spec("z"), spec("a"), spec("z"))
    assert store.done("key") is None
    store.keep("key", "audit", outputs, seconds=1.5)
    assert store.done("key") == outputs
    assert [(entry.stage, entry.seconds) for entry in store.ls()] == [("audit", 1.5)] * 2
    store.keep("nothing", "audit", (), seconds=0.1)
    assert store.done("nothing") == ()


def test_work_that_is_done_stays_as_it_was(store: Store) -> None:
    store.keep("key", "audit", [spec("first")], seconds=1.0)
    store.keep("key", "audit", [spec("second")], seconds=2.0)
    assert store.done("key") == (spec("first"),)
    assert names(store.of_kind("spec")) == ["first"]


def test_a_rerun_does_only_what_is_missing(folder: Path) -> None:
    calls: list[int] = []

    def work(number: int) -> list[Record]:
        calls.append(number)
        return [spec(str(number))]

    units = [Unit(number, {"number": number}, "test") for number in range(5)]
    with open_store(folder) as store:
        run(units[:3], work, ledger=store)
    with open_store(folder) as store:
        results = run(units, work, ledger=store)
    assert calls == [0, 1, 2, 3, 4]
    assert results == [(spec(str(number)),) for number in range(5)]


def test_a_failing_transaction_leaves_nothing(store: Store) -> None:
    store._database._connection.execute("DROP TABLE outputs")  # so that the last statement of `keep` fails
    with pytest.raises(StoreError):
        store._insert([spec("a")], key="key", stage="audit", seconds=1.0)
    assert store._database.rows("SELECT count(*) FROM records") == [(0,)]
    assert store._database.rows("SELECT count(*) FROM work") == [(0,)]
    store.add(spec("b"))  # and the store goes on


def test_threads_share_a_store(store: Store) -> None:
    def work(start: int) -> None:
        for number in range(start, start + 20):
            store.keep(str(number), "test", [spec(str(number))], seconds=0.0)
            assert store.done(str(number)) == (spec(str(number)),)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.of_kind("spec")) == 50
    assert store.check() == []


# Writers and readers

WRITER = """
import itertools, sys
from truing import open_store
from truing.records import Spec, Target
with open_store(sys.argv[1]) as store:
    print("ready", flush=True)
    for n in itertools.count(len(store.ls())):
        blob = store.put_blob(str(n).encode() * 5000, "text")
        first = Spec(name=str(n), title="", clauses=())
        second = Target(
            name=str(n), weights="", template="", dtype="", abilities=(), adapter=blob, parents=(first.id,)
        )
        store.keep(f"key {n}", "test", [first, second], seconds=0.0)
        print(n, flush=True)
"""


def writer(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def killed(process: subprocess.Popen[str]) -> list[int]:
    """Kill a writer in the middle of whatever it does; the numbers that it had said were kept."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    said = [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.stdout.close()
    process.wait()
    return said


def test_what_was_kept_survives_a_kill_at_any_instant(folder: Path) -> None:
    said: list[int] = []
    for delay in (0.0, 0.011, 0.037, 0.083, 0.151):
        process = writer(folder)
        assert process.stdout is not None
        said.append(int(process.stdout.readline()))
        time.sleep(delay)
        said += killed(process)
        with open_store(folder, mode="read") as store:  # before any writer has cleaned up
            assert store.check() == []
            for number in said:
                assert store.done(f"key {number}") is not None
    assert said == sorted(set(said))
    with open_store(folder) as store:  # the dead writer's lock is no obstacle
        store.gc()
        assert store.check() == []
        assert len(store._blobs.sizes()) == len(store.of_kind("target"))
        assert not list((folder / "tmp").iterdir())


def test_a_second_writer_is_told_who_the_first_is(folder: Path) -> None:
    process = writer(folder)
    try:
        with pytest.raises(StoreError, match=f"written by process {process.pid}"):
            open_store(folder)
    finally:
        killed(process)
    open_store(folder).close()


def test_a_writer_excludes_itself_too(store: Store, folder: Path) -> None:
    with pytest.raises(StoreError, match=f"written by process {os.getpid()}"):
        open_store(folder)
    store.close()
    store.close()
    open_store(folder).close()


def test_a_store_that_fails_to_open_is_not_left_locked(folder: Path) -> None:
    folder.mkdir()
    (folder / "truing.db").write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            open_store(folder)


def test_readers_see_whole_units_while_a_writer_writes(folder: Path) -> None:
    process = writer(folder)
    try:
        seen = []
        deadline = time.monotonic() + 20
        while len(set(seen)) < 4 and time.monotonic() < deadline:
            with open_store(folder, mode="read") as one, open_store(folder, mode="read") as two:
                seen.append(len(one.of_kind("target")))
                assert two.check() == []
                assert len(two.of_kind("target")) >= seen[-1]
        assert len(set(seen)) >= 4
        assert seen == sorted(seen)
    finally:
        killed(process)


def test_readers_bear_writers_that_come_and_go(folder: Path) -> None:
    open_store(folder).close()
    with open_store(folder, mode="read") as reader:
        for number in range(8):
            with open_store(folder) as store:
                store.add(spec(str(number)))
                assert len(reader.ls()) == number + 1
            assert len(reader.ls()) == number + 1
            with open_store(folder, mode="read") as other:
                assert len(other.ls()) == number + 1
    with open_store(folder) as store:
        assert store.check() == []


def test_a_writer_is_in_wal_mode_and_leaves_one_plain_file(store: Store, folder: Path) -> None:
    store.add(spec("a"))
    assert store._database.rows("PRAGMA journal_mode") == [("wal",)]
    store.close()
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "truing.db"]


def test_reading_changes_no_file(store: Store, folder: Path) -> None:
    store.add(target("a", store.put_blob(b"x", "text")))
    store.close()
    before = snapshot(folder)
    with open_store(folder, mode="read") as reader:
        assert reader.check() == []
        reader.gc(dry_run=True)
        for write in (
            lambda: reader.add(spec("b")),
            lambda: reader.keep("key", "test", [], seconds=0.0),
            lambda: reader.put_blob(b"y", "text"),
            lambda: reader.put_file(folder / "lock", "text"),
            reader.gc,
        ):
            with pytest.raises(StoreError, match="opened for reading"):
                write()
        assert snapshot(folder) == before
    assert snapshot(folder) == before


def test_reading_a_missing_store_makes_nothing(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*truing loop local/tiny --store"):
        open_store(folder, mode="read")
    assert not folder.exists()


def test_a_file_in_the_place_of_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="File exists"):
        open_store(tmp_path / "file")


# Schema versions

FIRST_SCHEMA = """
CREATE TABLE records (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, body TEXT NOT NULL,
    created TEXT NOT NULL, host TEXT NOT NULL);
CREATE TABLE parents (
    child TEXT NOT NULL, place INTEGER NOT NULL, parent TEXT NOT NULL, PRIMARY KEY (child, place)) WITHOUT ROWID;
CREATE TABLE work (key TEXT PRIMARY KEY, stage TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outputs (
    key TEXT NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (key, place)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


@pytest.fixture(params=["DELETE", "WAL"])
def old(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A store of schema 1 with one unit of work."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "truing.db")
    connection.execute(f"PRAGMA journal_mode = {request.param}")
    connection.executescript(FIRST_SCHEMA)
    row = (spec("old").id, "spec", spec("old").canonical.decode(), "2025-01-01T00:00:00.000+00:00", "host")
    connection.execute("INSERT INTO records (id, kind, body, created, host) VALUES (?, ?, ?, ?, ?)", row)
    connection.execute("INSERT INTO work VALUES ('key', 'audit', '2025-01-01T00:00:00.000+00:00')")
    connection.execute("INSERT INTO outputs VALUES ('key', 0, ?)", (spec("old").id,))
    connection.commit()
    connection.close()
    return folder


def test_an_older_store_is_migrated(old: Path) -> None:
    with open_store(old) as store:
        assert store.done("key") == (spec("old"),)
        store.keep("new", "audit", [spec("new")], seconds=2.5)
        assert [(entry.created[:4] == "2025", entry.seconds) for entry in store.ls()] == [(True, None), (False, 2.5)]
        assert store.check() == []
        assert store._database.rows("PRAGMA user_version") == [(schema.VERSION,)]


def test_an_older_store_is_read_without_being_changed(old: Path) -> None:
    before = (old / "truing.db").read_bytes()
    with open_store(old, mode="read") as store:
        assert store.done("key") == (spec("old"),)
        assert store.ls()[0].seconds is None
        assert store.check() == []
    assert (old / "truing.db").read_bytes() == before


def test_a_migration_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (schema.FIRST, (*schema.SECONDS, "CREATE TABLE work (key TEXT)"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="already exists"):
            open_store(old)
    connection = sqlite3.connect(old / "truing.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert "seconds" not in [row[1] for row in connection.execute("PRAGMA table_info(work)")]
    connection.close()
    test_an_older_store_is_migrated(old)


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_newer_store_is_refused(store: Store, folder: Path, mode: str) -> None:
    store.close()
    tampered(folder, f"PRAGMA user_version = {schema.VERSION + 1}")
    before = snapshot(folder)
    with pytest.raises(StoreError, match=f"has schema {schema.VERSION + 1}.*pip install -U truing"):
        open_store(folder, mode=mode)  # type: ignore[arg-type]
    assert snapshot(folder) == before


def test_a_store_that_was_killed_while_being_made_is_made_again(folder: Path) -> None:
    folder.mkdir()
    (folder / "truing.db").touch()
    with pytest.raises(StoreError, match="never finished"):
        open_store(folder, mode="read")
    with open_store(folder) as store:
        store.add(spec("a"))


# Files


def test_files_are_named_by_their_content(store: Store, folder: Path, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    blob = store.put_blob(data, "safetensors")
    assert blob == Blob(digest=digest(data), size=len(data), media="safetensors")
    assert store.put_file(tmp_path / "file", "safetensors") == blob
    assert store.blob_path(blob) == folder / "blobs" / blob.digest[:2] / blob.digest
    assert store.blob_path(blob.digest).read_bytes() == data
    assert not list((folder / "tmp").iterdir())


def test_putting_a_damaged_file_again_repairs_it(store: Store) -> None:
    blob = store.put_blob(b"content", "text")
    store.blob_path(blob).write_bytes(b"CONTENT")
    assert store.put_blob(b"content", "text") == blob
    assert store.blob_path(blob).read_bytes() == b"content"


def test_a_missing_or_shortened_file_is_a_store_error(store: Store) -> None:
    with pytest.raises(StoreError, match="missing"):
        store.blob_path("0" * 64)
    blob = store.put_blob(b"content", "text")
    store.blob_path(blob).write_bytes(b"con")
    with pytest.raises(StoreError, match="3 bytes, not 7"):
        store.blob_path(blob)
    with pytest.raises(StoreError, match="No such file"):
        store.put_file("/nowhere/at/all", "text")


def test_a_file_is_read_wholly_before_it_is_used_but_not_each_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.put_blob(b"content", "text")
    read: list[str] = []
    whole = blob_files.Blobs._read
    monkeypatch.setattr(
        blob_files.Blobs, "_read", lambda self, path, digest: (read.append(digest), whole(self, path, digest))
    )
    (path,) = {store.blob_path(blob) for _ in range(3)}
    assert read == [blob.digest]
    path.write_bytes(b"cOntenT")
    os.utime(path, ns=(0, 0))  # whatever the clock of the disk says
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is damaged: its content .* Run the work that makes it again"):
            store.blob_path(blob)
        with pytest.raises(StoreError, match="is damaged"):
            store.blob_path(blob.digest)
    store.put_blob(b"content", "text")
    assert store.blob_path(blob).read_bytes() == b"content"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-2][::-1] + path.read_bytes()[-2:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_work_whose_file_is_damaged_or_gone_is_done_again(full: Path, damage: str) -> None:
    with open_store(full) as store:
        before = store.done("key")
        assert before is not None
    with open_store(full) as store:
        (path,) = [path for path in (full / "blobs").glob("??/*") if path.is_file()]
        DAMAGE[damage](path)
        assert store.done("key") is None
        store.put_blob(b"adapter", "text")
        store.keep("key", "audit", before, seconds=1.0)
        assert store.done("key") == before
        assert store.check() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", "A" * 64, "0" * 63])
def test_a_digest_cannot_name_another_file(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="not the digest of a file"):
        store.blob_path(name)
    with pytest.raises(ValidationError, match="digest"):
        Blob(digest=name, size=1, media="text")


def test_the_files_of_a_record_are_found_in_its_fields(store: Store) -> None:
    blob = store.put_blob(b"adapter", "safetensors")
    assert store.blobs_of(target("with", blob)) == [blob]
    assert store.blobs_of(target("without")) == []


# Damage


@pytest.fixture
def full(store: Store, folder: Path) -> Path:
    """A closed store with a parent, a child that names a file, and a unit of work."""
    parent = spec("does not lie")
    child = target("child", store.put_blob(b"adapter", "text"), parent.id)
    store.keep("key", "audit", [parent, child], seconds=1.0)
    assert store.check() == []
    store.close()
    return folder


ALTERED = "UPDATE records SET body = replace(body, 'does not lie', 'does now lie') WHERE kind = 'spec'"


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        (
            ALTERED,
            "does not have the content",
        ),
        ("UPDATE records SET body = CAST(replace(body, 'T', 'U') AS BLOB) WHERE kind = 'spec'", "altered"),
        ("UPDATE records SET body = substr(body, 1, 20) WHERE kind = 'spec'", "not JSON"),
        ("UPDATE records SET body = x'ff' WHERE kind = 'spec'", "not JSON"),
        ("DELETE FROM records WHERE kind = 'spec'", "its parent .* is missing"),
        ("DELETE FROM records WHERE kind = 'spec'", r"work key \(audit\): its record .* is missing"),
        ("DELETE FROM parents", "table of parents"),
        ("UPDATE records SET kind = 'claim' WHERE kind = 'spec'", "listed under another kind"),
    ],
)
def test_check_finds_altered_tables(full: Path, sql: str, problem: str) -> None:
    tampered(full, sql)
    with open_store(full, mode="read") as store:
        assert any(re.search(problem, line) for line in store.check())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(b"ADAPTER"), "not what its digest names"),
        (lambda path: path.write_bytes(b"adapt"), "5 bytes, not 7"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_check_finds_damaged_files(full: Path, damage: Callable[[Path], object], problem: str) -> None:
    with open_store(full, mode="read") as store:
        damage(store.blob_path(digest(b"adapter")))
        (line,) = store.check()
    assert problem in line


def test_a_damaged_record_is_refused_and_repaired_by_adding_it(full: Path) -> None:
    tampered(full, ALTERED)
    with open_store(full) as store:
        for ask in (store.get, store.find, lambda one: store.closure([one])):
            with pytest.raises(RecordError, match="altered"):
                ask(spec("does not lie").id)
        with pytest.raises(RecordError, match="altered"):
            store.done("key")
        store.add(spec("does not lie"))
        assert store.check() == []


def test_a_damaged_database_is_a_store_error(full: Path) -> None:
    data = bytearray((full / "truing.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (full / "truing.db").write_bytes(data)
    with open_store(full, mode="read") as store, pytest.raises(StoreError, match=r"damaged.*recover") as caught:
        store.ls()
    assert caught.value.exit_code == 4


# Upkeep


def test_gc_removes_what_nothing_refers_to(full: Path) -> None:
    with open_store(full) as store:
        orphan = store.put_blob(b"orphan", "text")
        used = store.blob_path(digest(b"adapter"))
        (full / "tmp" / "left.tmp").write_bytes(b"1234")
        (full / "blobs" / "README").write_text("not a blob")
        planned = store.gc(dry_run=True)
        assert store.blob_path(orphan).exists()
        assert store.gc() == planned
        assert (planned.blobs, planned.temporary, planned.work) == ((orphan.digest,), ("left.tmp",), ())
        assert planned.size == 10
        assert used.exists()
        assert (full / "blobs" / "README").exists()
        assert store.gc().size == 0
        assert store.check() == []


def test_work_whose_records_are_gone_is_done_again(full: Path) -> None:
    tampered(full, "DELETE FROM records WHERE kind = 'spec'")
    with open_store(full) as store:
        assert store.done("key") is None
        assert store.gc().work == ("key",)
        store.keep("key", "audit", [spec("does not lie")], seconds=2.0)
        assert store.done("key") == (spec("does not lie"),)
        assert store.check() == []


def test_gc_removes_nothing_while_a_record_is_damaged(full: Path) -> None:
    tampered(full, "UPDATE records SET body = '{}' WHERE kind = 'target'")  # the one that names the file
    with open_store(full) as store:
        with pytest.raises(RecordError):
            store.gc()
        assert store.blob_path(digest(b"adapter")).exists()


def test_du_counts_bytes_by_kind(full: Path) -> None:
    with open_store(full, mode="read") as store:
        sizes = store.du()
        assert sizes == {"spec": store.ls()[0].size, "target": store.ls()[1].size, "blobs": 7}


# A full disk


class Full:
    """Bytes of which the last do not fit."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *_: object) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_no_half_file(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = store.put_blob(b"before", "text")
    with monkeypatch.context() as patch:
        patch.setattr(blob_files.os, "fsync", Full(number))
        with pytest.raises(StoreError, match=r"is full.*Nothing was half-written.*truing store gc"):
            store.put_blob(b"x" * 100_000, "text")
    assert list(store._blobs.sizes()) == [before.digest]
    assert not list((folder / "tmp").iterdir())


def test_a_database_that_fills_up_takes_whole_units_only(store: Store) -> None:
    store.keep("first", "test", [spec("first")], seconds=0.0)
    (pages,) = store._database.rows("PRAGMA page_count")[0]
    store._database._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own stand-in for a full disk
    with pytest.raises(StoreError, match=r"is full.*finished work is kept"):
        store.keep("large", "test", [spec("small"), spec("x" * 500_000)], seconds=0.0)
    assert store.done("large") is None
    assert names(store.of_kind("spec")) == ["first"]
    store._database._connection.execute("PRAGMA max_page_count = 1000000")
    store.keep("large", "test", [spec("small"), spec("x" * 500_000)], seconds=0.0)
    assert store.check() == []


ON_A_SMALL_DISK = """
import pathlib, sys
from truing import open_store
from truing.errors import StoreError
from truing.records import Spec
folder = pathlib.Path(sys.argv[1])
kept, told = [], 0
with open_store(folder / "store") as store:
    for n in range(200):
        try:
            store.put_blob(str(n).encode() * 3000, "text")
        except StoreError as error:
            assert "is full" in str(error), error
            told += 1
            break
    for n in range(200):
        try:
            store.keep(f"key {n}", "test", [Spec(name="x" * 9000, title=str(n), clauses=())], seconds=0.0)
            kept.append(n)
        except StoreError as error:
            assert "is full" in str(error), error
            told += 1
            break
assert told == 2, told
with open_store(folder / "store") as store:
    assert store.check() == []
    assert [n for n in range(200) if store.done(f"key {n}") is not None] == kept
    assert store.gc().blobs
    store.keep("after", "test", [Spec(name="x" * 9000, title="after", clauses=())], seconds=0.0)
    assert store.check() == []
print("held", len(kept))
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    # A tmpfs of 1 MiB in a mount namespace of its own, which ends with the process.
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1"'
    private = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*private, mount, "sh", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a tmpfs")
    script = f'{mount} && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*private, script, "sh", str(tmp_path), sys.executable, ON_A_SMALL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held")


# Parquet


def test_parquet_tables_hold_the_records(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    estimate = Estimate(value=1.5, low=1, high=2, level=0.95, n=8, clusters=4, unit="nats", estimator="mean")
    some = Measurement(
        name="some", targets=(), quantities=(Named(name="q", quantity=estimate),), parents=(spec("a").id,)
    )
    blob = store.put_blob(b"adapter", "text")
    for record in (spec("a"), spec("b"), some, target("with", blob), target("without")):
        store.add(record)
    files = store.export_parquet(tmp_path / "tables")
    assert [file.name for file in files] == ["measurement.parquet", "spec.parquet", "target.parquet"]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [file.name for file in files]
    tables = {file.stem: parquet.read_table(file).to_pylist() for file in files}
    assert [row["name"] for row in tables["spec"]] == ["a", "b"]
    assert [row["adapter.digest"] for row in tables["target"]] == [blob.digest, None]
    assert [row["adapter.size"] for row in tables["target"]] == [7, None]
    for kind, rows in tables.items():
        for row in rows:
            body = json.loads(row["body"])
            back = type(store.get(row["id"])).from_plain({"parents": row["parents"], "body": body})
            assert back == store.get(row["id"])
            assert back.kind == kind
    assert {row["id"]: row["created"] for row in tables["spec"]} == {e.id: e.created for e in store.ls("spec")}


def test_a_column_of_several_types_becomes_text(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": "1", "x": 1, "y": 1}, {"id": "2", "x": "one", "y": 0.5}, {"id": "3", "x": None, "y": None}]
    table = parquet.read_table(export.write(tmp_path, "spec", rows)).to_pydict()
    assert table["x"] == ["1", '"one"', None]
    assert table["y"] == [1.0, 0.5, None]


def test_an_unmeasured_quantity_is_a_column_of_its_own(store: Store) -> None:
    row = export.row(Loop(target="t", claims=(), claim=None, why="w", gate=Unmeasured(reason="no gate yet")), "now")
    assert row["gate.reason"] == "no gate yet"
    assert row["claim"] is None
    assert "claims" not in row


def test_a_full_disk_leaves_the_former_table(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    store.add(spec("a"))
    (file,) = store.export_parquet(tmp_path)
    before = file.read_bytes()
    store.add(spec("b"))
    monkeypatch.setattr(blob_files.os, "fsync", Full(errno.ENOSPC))
    with pytest.raises(StoreError, match="is full"):
        store.export_parquet(tmp_path)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.*")] == ["spec.parquet"]


def test_without_pyarrow_the_extra_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(spec("a"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'truing\[parquet\]'"):
        store.export_parquet(tmp_path)
