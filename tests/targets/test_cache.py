"""The cache of built models: a folder appears whole or not at all, and damage is found."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from truing.errors import CacheError, TargetError
from truing.targets import resolve
from truing.targets.local import cache, tiny

# The module alone, without the packages that its siblings load: these processes start at once.
STANDALONE = f"""
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("cache", {str(cache.__file__)!r})
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
marks = pathlib.Path(sys.argv[1])
def wait_for(count):
    while len(list(marks.iterdir())) < count:
        time.sleep(0.005)
def build(place):
    (place / "a.bin").write_bytes(b"a" * 1000)
    (marks / sys.argv[2]).touch()
    wait_for(int(sys.argv[3]))
    (place / "b.bin").write_bytes(b"b" * 1000)
print(cache.built("model", build))
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_file(place: Path) -> None:
    (place / "a.bin").write_bytes(b"a" * 1000)


def process(marks: Path, name: str, until: int) -> subprocess.Popen[str]:
    marks.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", STANDALONE, str(marks), name, str(until)], stdout=subprocess.PIPE, text=True
    )


def test_it_is_built_once(root: Path) -> None:
    calls = []
    for _ in range(2):
        place = cache.built("model", lambda draft: (calls.append(draft), one_file(draft))[1])
        assert place == root / "model"
        assert sorted(file.name for file in place.iterdir()) == ["a.bin", cache.SEAL]
    assert len(calls) == 1
    assert calls[0].parent == root  # a rename from elsewhere would not be atomic
    assert list(root.iterdir()) == [place]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_builder_that_raises_leaves_nothing(root: Path, error: BaseException) -> None:
    def breaks(draft: Path) -> None:
        one_file(draft)
        raise error

    with pytest.raises(type(error)):
        cache.built("model", breaks)
    assert list(root.iterdir()) == []
    assert cache.built("model", one_file).is_dir()


def test_a_builder_that_is_killed_leaves_no_broken_place(root: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    child = process(marks, "killed", 99)  # waits for ever with half of its files written
    while not (marks / "killed").exists():
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.communicate()
    assert not (root / "model").exists()
    done = process(marks, "second", 2)
    assert done.communicate(timeout=30)[0].strip() == str(root / "model")
    assert sorted(cache.sealed(root / "model")) == ["a.bin", "b.bin"]


def test_two_at_once_both_get_a_good_folder(root: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    # Each waits inside its build until the other is there too, so both have built and both rename.
    children = [process(marks, name, 2) for name in ("one", "two")]
    said = [child.communicate(timeout=30)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert said == [str(root / "model")] * 2
    assert [path.name for path in root.iterdir()] == ["model"]
    assert cache.built("model", one_file) == root / "model"  # whole: its files are what the seal says


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
def test_a_flipped_byte_is_found(root: Path, part: str, at: float) -> None:
    resolve("local/tiny")
    file = root / tiny.FOLDER / part
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheError, match=rf"damaged.*Delete the folder {root / tiny.FOLDER}; it is built again"):
        resolve("local/tiny")
    shutil.rmtree(root / tiny.FOLDER)
    resolve("local/tiny")


def test_large_weights_are_checked_when_they_are_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are left to `_checked_weights`; here the small ones are, so that it is seen to work."""
    from truing.targets import local

    resolve("local/tiny")
    file = root / tiny.FOLDER / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(cache, "_check", lambda place: None)
    with pytest.raises(CacheError, match=rf"{root / tiny.FOLDER} are damaged"):
        local.load("tiny")


def test_a_seal_that_names_no_weights_is_damage(root: Path) -> None:
    resolve("local/tiny")
    (root / tiny.FOLDER / cache.SEAL).write_text("{}")
    with pytest.raises(CacheError, match=r"seal\.json names another digest, or none.* it is built again"):
        resolve("local/tiny")


def test_a_lost_or_cut_file_is_found(root: Path) -> None:
    place = cache.built("model", one_file)
    (place / "a.bin").write_bytes(b"a" * 999)
    with pytest.raises(CacheError, match="damaged"):
        cache.built("model", one_file)
    (place / "a.bin").unlink()
    with pytest.raises(CacheError, match="damaged"):
        cache.built("model", one_file)


def test_any_damage_to_the_seal_is_a_cache_error(root: Path) -> None:
    place = cache.built("model", one_file)
    sound = (place / cache.SEAL).read_bytes()
    said = json.loads(sound)
    others = [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"a.bin": 3}',
        b"\xff",
        json.dumps({"a.bin": {**said["a.bin"], "size": "x"}}),
    ]
    flipped = [sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in range(len(sound))]
    for data in [*others, *flipped]:
        (place / cache.SEAL).write_bytes(data.encode() if isinstance(data, str) else data)
        with pytest.raises(CacheError, match=f"{place}"):
            cache.built("model", one_file)
    (place / cache.SEAL).unlink()
    with pytest.raises(CacheError, match=f"{place}"):
        cache.built("model", one_file)


def test_a_cache_that_cannot_be_written_is_a_target_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TargetError, match=r"cannot write the cache folder .* Set TRUING_CACHE to another place"):
        cache.built("model", one_file)
    monkeypatch.setenv("TRUING_CACHE", str(root))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refused)
        with pytest.raises(TargetError, match=f"cannot write the cache folder {root}.*Permission denied"):
            cache.built("model", one_file)
    assert list(root.iterdir()) == []


def test_a_full_disk_is_a_target_error_and_leaves_nothing(root: Path) -> None:
    """Writes beyond a limit fail, as on a full disk: of Python's own files, and of the weights' writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        with pytest.raises(TargetError, match=f"cannot build .* in {root}.* Free space or set TRUING_CACHE"):
            cache.built("tiny", tiny.build)
        with pytest.raises(TargetError, match="Free space or set TRUING_CACHE"):
            cache.built("plain", lambda draft: (draft / "a.bin").write_bytes(b"a" * 400_000) and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(root.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "chosen"))
    assert cache.root() == tmp_path / "chosen"
    monkeypatch.delenv("TRUING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "truing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "truing"
