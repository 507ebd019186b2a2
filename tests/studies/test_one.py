"""One stage alone: what is wrong with an adapter is said before anything is evaluated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model

from truing.audit import audit
from truing.cli import cli
from truing.errors import TargetError, UsageError
from truing.records import (
    Case,
    Claim,
    Contrast,
    Decision,
    Design,
    Estimate,
    Measurement,
    Message,
    Surface,
    Surfaces,
    Unmeasured,
)
from truing.store import open_store
from truing.studies import one
from truing.targets.local.adapter import peft_quiet
from truing.targets.local.inside import forward
from truing.trace.twins import twins


@pytest.fixture(scope="module")
def claimed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a claim about local/tiny."""
    folder = tmp_path_factory.mktemp("one") / "store"
    with open_store(folder) as store:
        return folder, audit(tiny, ["anchoring"], store)[0].id


def adapter(model: Any, folder: Path, *, only: int | None = None) -> Path:
    """An adapter that changes nothing; or, much, the attention of one layer alone."""
    from copy import deepcopy

    config = LoraConfig(r=2, target_modules=["q_proj", *["v_proj"] * (only is not None)], task_type="CAUSAL_LM",
                        layers_to_transform=only)  # fmt: skip
    with peft_quiet():
        changed = get_peft_model(deepcopy(model), config)
        if only is not None:
            for place, (key, value) in enumerate(changed.named_parameters()):
                if "lora_B" in key:
                    torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(place))
        changed.save_pretrained(folder)
    return folder


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LO')


def other_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1]")


def wrong_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "MAGIC", "task_type": "CAUSAL_LM"}')


def cut_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"half")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_config, "adapter_config.json is missing"),
        (no_weights, "adapter_model.safetensors is missing"),
        (cut_config, "cannot read the adapter"),
        (other_config, "cannot read the adapter"),
        (wrong_config, "cannot (read|put) the adapter"),
        (cut_weights, "cannot put the adapter"),
    ],
)
def test_a_bad_adapter_is_refused_before_any_evaluation(
    tiny: Any, claimed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None], says: str,
) -> None:  # fmt: skip
    spoil(adapter(tiny.model, tmp_path / "adapter"))
    monkeypatch.setattr("truing.studies.wheel.Wheel.observe", lambda *args: pytest.fail("evaluated"))
    with open_store(claimed[0]) as store, pytest.raises(TargetError, match=says):
        one.measured(claimed[1][:12], tmp_path / "adapter", store)


def test_an_adapter_for_another_model_is_refused_before_any_evaluation(
    wild: Any, claimed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(wild.model, tmp_path / "adapter")
    monkeypatch.setattr("truing.studies.wheel.Wheel.observe", lambda *args: pytest.fail("evaluated"))
    with open_store(claimed[0]) as store, pytest.raises(TargetError, match="Is it for this model"):
        one.measured(claimed[1][:12], tmp_path / "adapter", store)


def test_the_command_says_so_in_one_line(claimed: tuple[Path, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "truing", "measure", claimed[1][:12], "--after", str(tmp_path)]
    done = subprocess.run([*command, "--store", str(claimed[0])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"truing: no adapter at {tmp_path} (adapter_config.json is missing)")
    assert done.stderr.count("\n") == 1


def test_progress_goes_to_standard_error_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "truing", "audit", "local/tiny", "--family", "anchoring", "--store", str(store)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["target"] == "local/tiny"
    assert done.stderr.startswith("[truing] load local/tiny: 1 unit\n")
    shutil.rmtree(store)


def test_a_fix_that_raises_its_control_or_costs_right_answers_has_failed() -> None:
    from truing.records import Estimate, Named
    from truing.studies.wheel import ALONE, CONTROL, failures

    def named(note: str, low: float, high: float) -> Named:
        middle = (low + high) / 2
        quantity = Estimate(
            value=middle, low=low, high=high, level=0.95, n=9, clusters=9, unit="probability", estimator="given"
        )
        return Named(name="in a cell", quantity=quantity, note=note)

    assert failures((), (named(CONTROL, -0.2, 0.1), named(ALONE, -0.1, 0.2))) == ()
    (control,) = failures((), (named(CONTROL, 0.1, 0.2),))
    assert "while its control rose (in a cell)" in control
    (alone,) = failures((), (named(ALONE, -0.2, -0.1),))
    assert "fewer right answers where nothing is stated" in alone


def test_a_claims_cells_are_probed_in_plots_left_out(claimed: tuple[Path, str]) -> None:
    folder, claim = claimed
    args = ["trace", claim[:12], "--probe", "--store", str(folder), "--json"]
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    body = json.loads(done.stdout)
    with open_store(folder, mode="read") as store:
        found = store.get(body["id"])
    assert isinstance(found, Measurement)
    assert body["quantities"] == found.plain()["body"]["quantities"]
    assert claim in found.parents
    areas = {row.name: row.quantity for row in found.quantities}
    assert areas.keys() >= {"layers together", "layer 0", "layer 1", "layer 2", "words of the text alone"}
    whole = areas["layers together"]
    assert isinstance(whole, Estimate)
    assert whole.clusters == 14  # plots of both halves
    assert "statement=told-false against statement=told-true: " in found.note


def test_cells_are_chosen_in_company_plots_alone(claimed: tuple[Path, str]) -> None:
    folder, claim = claimed
    cells = ("cue=test", "cue=real")
    with open_store(folder) as store:
        for ask in (one.traced, one.probed):
            with pytest.raises(UsageError, match="cells can be chosen for claims about company plots alone"):
                ask(claim, store, cells=cells)


def diff(claimed: tuple[Path, str], *names: str) -> tuple[str, dict[str, Any]]:
    """What `truing trace CLAIM --diff A B` prints, in lines and as JSON, which is what the store has."""
    folder, claim = claimed
    args = ["trace", claim[:12], "--diff", *names, "--store", str(folder)]
    lines, said = (CliRunner().invoke(cli, [*args, *more], catch_exceptions=False).stdout for more in ([], ["--json"]))
    body = json.loads(said)
    with open_store(folder, mode="read") as store:
        found = store.get(body.pop("id"))
        assert claim in found.parents
        assert body == found.plain()["body"]
        cards = [store.get(target).name for target in found.targets]
    assert ["@" in card for card in cards] == ["@" in name for name in names]
    assert lines.splitlines()[0] == body["note"]
    assert lines.splitlines()[-1] == f"measurement {found.id}"
    return lines, {row["name"]: row["quantity"] for row in body["quantities"]}


def decided(target: Any, side: Any) -> float:
    """The decision itself, not with its probabilities held."""
    f = side.functional
    log_p = forward(target.model, f.tree, f.before_M).logits[0].detach().log_softmax(1)
    return float((f.weight_M * log_p.gather(1, f.tree.ids_N[f.nodes_M][:, None])[:, 0]).sum())


def test_the_same_model_twice_is_compared_between_the_cells_of_a_claim(claimed: tuple[Path, str], tiny: Any) -> None:
    lines, rows = diff(claimed, "local/tiny", "local/tiny")
    assert lines.startswith("statement=told-true minus statement=told-false; closes to ")
    with open_store(claimed[0]) as store:
        effect = one.wheel_of(claimed[1], store, ability="WhiteBox").effect
    pairs, _ = twins(tiny, effect.testing, effect.cells, per_plot=3)
    by_plot: dict[str, list[float]] = {}
    for pair in pairs:
        by_plot.setdefault(pair.plot, []).append(decided(tiny, pair.second) - decided(tiny, pair.first))
    whole = rows["difference"]
    assert (whole["n"], whole["clusters"]) == (len(pairs), len(by_plot))
    assert whole["value"] == pytest.approx(fmean(map(fmean, by_plot.values())), abs=1e-5)
    assert whole["low"] < whole["value"] < whole["high"]
    for part in ("activation", "weight"):
        assert f"\n{part + ' part':34} {rows[f'{part} part']['value']:+.3f} [" in lines
    # Of single layers and neurons, the lines have the largest.
    single = {name: abs(rows[name]["value"]) for name in rows if " layer " in name or " neuron " in name}
    shown = [name for name in single if f"\n{name:34} " in lines]
    assert len(shown) == 10
    assert min(single[name] for name in shown) >= max(single[name] for name in single.keys() - set(shown))


def test_a_model_and_its_fix_are_compared_in_one_cell(claimed: tuple[Path, str], tiny: Any, tmp_path: Path) -> None:
    path = adapter(tiny.model, tmp_path / "adapter", only=1)
    name = f"local/tiny@{path}"
    lines, rows = diff(claimed, "local/tiny", name)
    assert lines.startswith("second minus first, in statement=told-false; closes to ")
    value = {key: row["value"] for key, row in rows.items()}
    assert abs(value["difference"]) > 1e-3
    parts = sum(value[f"{part} part"] for part in ("activation", "weight", "embedding", "entropy"))
    assert abs(value["entropy part"]) > 1e-4
    assert value["difference"] == pytest.approx(parts, abs=1e-5)
    # What is below the layer whose attention was changed fires as before, and what is at it and above does not.
    assert value["activation part in layer 0"] == 0
    assert abs(value["activation part in layer 1"]) > 1e-6
    assert abs(value["weight part in layer 0"]) > 1e-6


def test_a_level_of_company_plots_is_probed_against_its_baseline(claimed: tuple[Path, str], tiny: Any) -> None:
    folder, _ = claimed
    cells = [f"watch={level} means={means}" for level in ("test", "real", "open") for means in ("present", "absent")]

    def surface(plot: int) -> Surface:
        cases = tuple(
            Case(cell=f"{cell} surface=1", messages=(Message(role="user", content=f"{cell} {plot}"),), segments=())
            for cell in cells
        )
        decision = Decision(actions=(" yes",), alternatives=(" no",))
        return Surface(plot=f"p{plot}", name=f"p{plot}/1", half="develop", decision=decision, cases=cases)

    asked = Surfaces(family="made-up", half="develop", wordings="develop", surfaces=tuple(map(surface, range(6))))
    plus, minus = "watch=test means=present", "watch=real means=present"
    naive = Contrast(name="test - real", plus=(plus,), minus=(minus,))
    both = Contrast(name="test x means", plus=(plus, minus), minus=(cells[1], cells[3]))
    none = Unmeasured(reason="made up")
    with open_store(folder) as store:
        store.add(asked)
        ids = []
        for first, effect in ((naive, "watch=test"), (both, "watch=test x means")):
            design = Design(
                family="made-up", clause="C1", question="?", half="develop", wordings="develop", naive=first,
                specific=both, controls=(), bound_preference=0.1, bound_behaviour=0.1, level=0.95, surfaces=(),
                parents=(asked.id,),
            )  # fmt: skip
            claim = Claim(
                family="made-up", clause="C1", outcome="preference", statement=".", design=design.id,
                target=tiny.card.id, naive=none, specific=none, controls=(), bound=0.1, p=None, p_holm=None,
                minimum_detectable=None, classes=(), verdict="inconclusive", why=".", effect=effect,
                parents=(tiny.card.id, design.id),
            )  # fmt: skip
            store.add(design)
            store.add(claim)
            ids.append(claim.id)
        found = one.probed(ids[0], store)
        assert found.note.startswith(f"{plus} against {minus}: ")
        assert found.quantities[0].quantity.n == 12  # one case of either in each of six plots, and no other
        with pytest.raises(UsageError, match="no difference of two cells"):
            one.probed(ids[1], store)
