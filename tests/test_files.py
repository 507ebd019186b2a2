"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from truing import files
from truing.errors import StoreError

pytestmark = pytest.mark.base


def test_a_file_is_written_with_its_folder_and_replaces_the_former(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.html"
    for data in (b"one", b"two"):
        files.write_whole(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"former")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match=r"report\.html: No space left on device.*Nothing was left behind"):  # noqa: PT012, SIM117
        with files.whole(path) as file:
            file.write(b"half")
            if call == "write":
                full()
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_leaves_nothing_and_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.whole(tmp_path / "x"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(StoreError, match=r"file is a file. Give another folder"):
            files.write_whole(path, b"")
        with pytest.raises(StoreError, match=r"file is a file"):
            files.check_folder(path)
    with pytest.raises(StoreError, match="not an ordinary file"):
        files.write_whole(tmp_path, b"")
    files.check_folder(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="may not write"):
        files.check_folder(tmp_path / "new")
