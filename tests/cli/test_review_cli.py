"""`truing audit sample` and `truing audit labels`: there and back."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "audit" / "company"))
from personas import Acting, Persona

from truing.audit.claims import judged
from truing.audit.company.effects import behaviours
from truing.audit.company.layout import lay_out
from truing.audit.company.run import episodes
from truing.audit.run import write_down
from truing.cli.audit import command
from truing.errors import ContentError, StoreError, TruingError, UsageError
from truing.records import Sample
from truing.store import open_store

pytestmark = pytest.mark.base


def run(*words: object) -> Result:
    """A command in this process; Truing's own errors come as they are."""
    done = CliRunner().invoke(command, list(map(str, words)), standalone_mode=False)
    if isinstance(done.exception, TruingError):
        raise done.exception
    assert done.exception is None, done.exception
    return done


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    laid = lay_out("oversight")
    target = Acting(Persona("wild", adds={"threat=replacement": 2.5}, refuses=0.1, confused=0.1), laid.scenes)
    path: Path = tmp_path_factory.mktemp("audited") / "store"
    with open_store(path) as store:
        write_down(laid, store)
        for claim in judged(target.card, behaviours(laid, episodes(target, laid.scenes, store))):
            store.add(claim)
    return path


@pytest.fixture
def store(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "store"))


def size(store: Path) -> int:
    with open_store(store, mode="read") as kept:
        return len(kept.ls())


def drawn(store: Path, file: Path, *more: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("sample", "--for-review", file, "--store", store, "--json", *more).stdout)
    return found


def label(store: Path, file: Path, say: Callable[[int, str], str]) -> None:
    """Label a sheet as a person would, line by line. `say`: by the item's number, and the machine's class."""
    with open_store(store, mode="read") as kept:
        (sample,) = (one for one in kept.of_kind("sample") if f"sample: {one.id}" in file.read_text())
        assert isinstance(sample, Sample)
        classes = {one.id: kept.get(one.episodes).rows[one.row].ending for one in sample.items}  # type: ignore[attr-defined]
    parts = re.split(r"^- id: ", file.read_text(), flags=re.MULTILINE)
    for number, part in enumerate(parts[1:], start=1):
        said = say(number, classes[part.split("\n", 1)[0]])
        parts[number] = re.sub(r"^  label:.*\Z", f"  label: {said}", part.rstrip("\n"), flags=re.MULTILINE) + "\n"
    file.write_text("- id: ".join(parts))


def as_the_machine(_: int, ending: str) -> str:
    return "harmful" if ending == "harmful" else "harmless"


def test_there_and_back(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.yaml"
    told = drawn(store, file, "--n", "60", "--target", "scripted/wild", "--family", "company")
    assert told["items"] == 60 == sum(one["drawn"] for one in told["strata"])
    assert told["episodes"] == 180 == sum(one["size"] for one in told["strata"])
    label(store, file, as_the_machine)
    found = json.loads(run("labels", file, "--reader", "anna", "--store", store, "--json").stdout)
    assert (found["read"], found["drawn"], found["sample"]) == (60, 60, told["sample"])
    assert [row["name"] for row in found["measured"]] == [
        "sensitivity of the verdict, oversight", "specificity of the verdict, oversight"
    ]  # fmt: skip
    assert found["measured"][0]["value"] == 1.0
    assert found["measured"][0]["low"] < 0.9
    assert len(found["before"]) == len(found["claims"]) == 11
    for before, after in zip(found["before"], found["claims"], strict=True):
        assert before["effect"] == after["effect"]
        assert "labels" not in before
        assert after["labels"] == found["labels"]
        assert after["specific"]["value"] == pytest.approx(before["specific"]["value"])
    text = run("labels", file, "--reader", "anna", "--store", store).stdout
    lines = text.splitlines()
    assert "By labels of anna, who read 60 of 180 episodes." in lines[0]
    place = next(n for n, line in enumerate(lines) if "threat=replacement" in line)
    assert "corrected by labels" not in lines[place]
    assert lines[place + 3].startswith(
        "INCONCLUSIVE   oversight threat=replacement as behaviour (C5), corrected by labels"
    )


def test_a_second_reader_is_compared_with_the_first(store: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    assert drawn(store, one)["sample"] == drawn(store, two)["sample"]
    assert one.read_bytes() == two.read_bytes()
    label(store, one, as_the_machine)
    label(store, two, lambda number, ending: "unclear" if number == 3 else as_the_machine(number, ending))
    assert "kappa" not in run("labels", one, "--reader", "anna", "--store", store).stdout
    text = run("labels", two, "--reader", "ben", "--store", store).stdout
    assert "agreement with anna: +0.975" in text
    assert "Cohen's kappa with anna: +0.9" in text
    assert "unclear labels left out: 1" in text


def test_a_sheet_is_not_written_over(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.yaml"
    file.write_text("mine")
    before = size(store)
    with pytest.raises(UsageError, match="exists, perhaps with labels in it"):
        run("sample", "--for-review", file, "--store", store)
    assert (file.read_text(), size(store)) == ("mine", before)


def test_a_sheet_that_is_not_finished_keeps_nothing_but_its_beginning_may(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.yaml"
    drawn(store, file)
    label(store, file, lambda number, ending: as_the_machine(number, ending) if number <= 30 else "")
    before = size(store)
    with pytest.raises(ContentError, match=r"has no label \(10 lack one\)"):
        run("labels", file, "--store", store)
    assert size(store) == before
    found = json.loads(run("labels", file, "--partial", "--store", store, "--json").stdout)
    assert (found["read"], found["drawn"], found["reader"]) == (30, 40, "reader")
    label(store, file, lambda number, _: "" if number == 5 else "harmful")
    with pytest.raises(ContentError, match="skipped at random"):
        run("labels", file, "--partial", "--store", store, "--reader", "ben")


@pytest.mark.parametrize(
    ("said", "says"),
    [("bad", "label: Input should be 'harmful', 'harmless' or 'unclear'"), ("[", "is not YAML")],
)
def test_a_label_that_is_none_is_named(said: str, says: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.yaml"
    drawn(store, file)
    label(store, file, lambda *_: said)
    before = size(store)
    with pytest.raises(ContentError, match=re.escape(says)):
        run("labels", file, "--store", store)
    assert size(store) == before


def test_a_store_without_the_sample_or_without_episodes_says_so(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.yaml"
    drawn(store, file)
    label(store, file, as_the_machine)
    other = tmp_path / "other"
    open_store(other).close()
    with pytest.raises(StoreError, match="lacks the sample"):
        run("labels", file, "--store", other)
    with pytest.raises(UsageError, match="holds no episodes of these to read"):
        run("sample", "--for-review", tmp_path / "new.yaml", "--store", other)
    with pytest.raises(StoreError, match="no store at"):
        run("sample", "--for-review", tmp_path / "new.yaml", "--store", tmp_path / "typo")
    with pytest.raises(UsageError, match="--n 3: 3 are too few for 4 strata, which take at least 8"):
        run("sample", "--for-review", tmp_path / "new.yaml", "--store", store, "--n", 3)
    assert not (tmp_path / "new.yaml").exists()
