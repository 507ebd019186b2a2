"""`truing train` on preferences in a file."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing import open_store, train
from truing.audit import lay_out
from truing.cli.train import METHODS, SCHEDULES
from truing.records import Training

from ..command import truing  # noqa: TID252 - tests are no package

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"Question {number}: is it red?"}],
        "chosen": [{"role": "assistant", "content": "It is red."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for number in range(6)
]


TRUING = (sys.executable, "-m", "truing", "train")


def training(*args: str) -> subprocess.CompletedProcess[str]:
    return truing("train", *args)


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_choices_are_those_of_training() -> None:
    assert ((*train.METHODS, "rlhf"), train.SCHEDULES) == (METHODS, SCHEDULES)


def test_how_it_is_trained_can_be_said(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", ROWS)
    how = ("--modules", "all-linear", "--schedule", "cosine", "--warmup", "0.1", "--accumulate", "2",
           "--gradient-checkpointing", "--held-out", "0.3", "--patience", "3", "--method", "robust",
           "--flipped", "0.2", "--alpha", "32", "--clip", "0.5", "--gamma", "1.5")  # fmt: skip
    done = training("--data", str(data), "--target", "local/tiny", "--store", str(tmp_path / "store"),
                  "--out", str(tmp_path / "adapter"), "--json", *how)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    said = dict(told["settings"])
    assert said["modules"] == train.EVERY_LAYER
    names = ("schedule", "warmup", "accumulate", "gradient_checkpointing", "held_out", "patience")
    assert [said[name] for name in names] == ["cosine", 0.1, 2, 1, 0.3, 3]
    assert [said[name] for name in ("flipped", "alpha", "clip", "gamma")] == [0.2, 32, 0.5, 1.5]
    assert told["steps"][-1]["held"] > 0


def test_prompts_that_are_too_long_are_an_error_or_cut_off_and_counted(tmp_path: Path) -> None:
    long = {**ROWS[0], "prompt": [{"role": "user", "content": "Is it red? " * 3000}]}
    data = written(tmp_path / "pairs.jsonl", [*ROWS, long])
    common = ("--data", str(data), "--target", "local/tiny", "--store", str(tmp_path / "store"))
    done = training(*common, "--out", str(tmp_path / "adapter"))
    assert done.returncode == 3
    assert re.search(r"pairs.jsonl:7: a text of \d+ tokens is longer than the context of local/tiny", done.stderr)
    assert "--max-length" in done.stderr
    done = training(*common, "--out", str(tmp_path / "adapter"), "--max-length", "60")
    assert done.returncode == 0, done.stderr
    assert "1 of 7 prompts lose their beginning, to be within 60 tokens with a reply" in done.stderr
    assert ", prompts cut off: 1\n" in done.stdout


def test_a_file_becomes_an_adapter_that_a_target_takes(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", [*ROWS, ROWS[0]])
    out, store = tmp_path / "adapter", tmp_path / "store"
    common = ("--data", str(data), "--target", "local/tiny", "--clause", "C1", "--store", str(store))
    done = training(*common, "--out", str(out), "--method", "ipo", "--epochs", "2", "--batch", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: 6 pairs (rows that said the same as one before: 1)" in done.stderr
    told = json.loads(done.stdout)
    said = dict(told["settings"])
    assert (told["method"], len(told["steps"]), said["epochs"], said["batch"]) == ("ipo", 4, 2, 3)
    assert told["steps"][0]["loss"] == pytest.approx(1 / (4 * said["beta"] ** 2), rel=1e-4)
    assert {file.name for file in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = training(*common, "--out", str(out), "--method", "ipo", "--epochs", "2", "--batch", "3")
    assert again.returncode == 0, again.stderr
    assert f"use it   truing audit local/tiny@{out}" in again.stdout


def held_out() -> dict[str, Any]:
    surface = lay_out("sycophancy", half="held-out", wordings="held-out").surfaces[0]
    return ROWS[0] | {"prompt": [{"role": turn.role, "content": turn.content} for turn in surface.cases[0].messages]}


def rendered() -> dict[str, Any]:
    return ROWS[0] | {"prompt": [{"role": "user", "content": "<|im_start|>user\nIs it red?<|im_end|>"}]}


@pytest.mark.parametrize(
    ("args", "rows", "code", "says"),
    [
        (["--target", "local/tiny"], [*ROWS, {"text": "x"}], 2, "pairs.jsonl:7: preferences have chosen and rejected"),
        (["--target", "local/tiny"], [held_out()], 2, "1 of 1 prompts are held out to test fixes on"),
        (["--target", "local/tiny"], [rendered()], 2, "a turn holds '<|im_start|>', a mark of a chat template"),
        (["--target", "local/tiny", "--clause", "C99"], ROWS, 2, "has no clause 'C99'"),
        (["--target", "local/tiny", "--lr", "0"], ROWS, 2, "lr is 0.0; give a number above 0"),
        (["--target", "scripted/honest"], ROWS, 3, "no ability Trainable"),
        ([], ROWS, 2, "--target goes with --data"),
        (["abcd", "--target", "local/tiny"], ROWS, 2, "give either a CLAIM or --data"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_line(
    tmp_path: Path, args: list[str], rows: list[Any], code: int, says: str
) -> None:
    data = written(tmp_path / "pairs.jsonl", rows)
    out, store = tmp_path / "adapter", tmp_path / "store"
    done = training("--data", str(data), "--out", str(out), "--store", str(store), *args)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_file_that_is_no_data_makes_no_store(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", [{"text": "x"}])
    done = training("--data", str(data), "--target", "local/tiny", "--out", str(tmp_path / "a"),
                  "--store", str(tmp_path / "store"))  # fmt: skip
    assert done.returncode == 2
    assert not (tmp_path / "store").exists()


def test_rlhf_on_a_file_becomes_an_adapter(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", ROWS)
    common = ("--data", str(data), "--target", "local/tiny", "--store", str(tmp_path / "store"),
              "--out", str(tmp_path / "adapter"))  # fmt: skip
    done = training(*common, "--method", "rlhf", "--samples", "3", "--reply-tokens", "6", "--batch", "3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    said = dict(told["settings"])
    assert (told["method"], said["samples"], said["max_tokens"], said["batch"]) == ("rloo", 3, 6, 3)
    assert all(step["reward"] is not None and step["cut"] is not None for step in told["steps"])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    wrongs = ((("--method", "rlhf", "--nll", "1"), "rlhf has no nll"), (("--samples", "3"), "dpo has no samples"))
    for wrong, says in wrongs:
        refused = training(*common, *wrong)
        assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr


def test_all_weights_become_a_checkpoint_and_so_does_what_is_exported(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", ROWS)
    common = ("--data", str(data), "--target", "local/tiny", "--store", str(tmp_path / "store"))
    done = training(*common, "--out", str(tmp_path / "model"), "--modules", "all-weights", "--lr", "1e-4")
    assert done.returncode == 0, done.stderr
    assert f"model    {tmp_path / 'model'}" in done.stdout
    assert (tmp_path / "model" / "model.safetensors").is_file()
    command = [sys.executable, "-m", "truing", "target", "export", f"local/tiny@{tmp_path / 'model'}"]
    exported = subprocess.run(
        [*command, "--out", str(tmp_path / "merged")], capture_output=True, text=True, check=False
    )
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "merged" / "config.json").is_file()
    again = subprocess.run([*command, "--out", str(tmp_path / "merged")], capture_output=True, text=True, check=False)
    assert (again.returncode, "is not empty" in again.stderr) == (4, True), again.stderr


def limited() -> None:
    """What a disk does that is full after so many bytes of a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def test_a_full_disk_at_a_checkpoint_ends_in_a_line_and_loses_nothing(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", ROWS)

    def command(name: str) -> list[str]:
        how = ("--rank", "64", "--modules", "all-linear", "--epochs", "9", "--store", str(tmp_path / name))
        out = str(tmp_path / f"{name}-adapter")
        return [*TRUING, "--data", str(data), "--target", "local/tiny", *how, "--out", out]

    assert subprocess.run(command("whole"), capture_output=True, check=False).returncode == 0
    full = subprocess.run(command("full"), capture_output=True, text=True, check=False, preexec_fn=limited)
    assert (full.returncode, "Traceback" in full.stderr) == (4, False), full.stderr
    assert "File too large" in full.stderr
    assert not (tmp_path / "full-adapter").exists()
    with open_store(tmp_path / "full", mode="read") as store:
        assert store.check() == []
    assert subprocess.run(command("full"), capture_output=True, check=False).returncode == 0
    files = [tmp_path / f"{name}-adapter" / "adapter_model.safetensors" for name in ("whole", "full")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = written(tmp_path / "pairs.jsonl", ROWS)

    def command(name: str) -> list[str]:
        where = ("--store", str(tmp_path / name), "--out", str(tmp_path / f"{name}-adapter"))
        return [*TRUING, "--data", str(data), "--target", "local/tiny", "--epochs", "400", *where]

    assert subprocess.run(command("whole"), capture_output=True, check=False).returncode == 0
    chance, live, kept = random.Random(4), 0, []
    for _ in range(12):
        with subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            assert any("after step" in line for line in run.stderr)  # steps are being made
            time.sleep(chance.uniform(0, 0.5))
            run.kill()
        live += run.returncode == -signal.SIGKILL
        with open_store(tmp_path / "killed", mode="read") as store:
            found = list(store.of_kind("training"))
        live -= any(one.finished for one in found if isinstance(one, Training))
        kept.append(len(found))
    assert live >= 8, kept  # in the midst of training
    assert len(set(kept)) >= 4, kept  # at different chunks
    assert subprocess.run(command("killed"), capture_output=True, check=False).returncode == 0
    files = [tmp_path / f"{name}-adapter" / "adapter_model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with open_store(tmp_path / "killed", mode="read") as store:
        assert store.check() == []
