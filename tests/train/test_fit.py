"""Fitting an adapter: it learns, it can be killed, and it stops where going on would be wrong."""

from __future__ import annotations

import json
import math
import random
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from truing import open_store
from truing.audit import family, lay_out
from truing.errors import StoreError, TargetError, TrainingError, UsageError
from truing.records import Message, Pair, Pairs, Record, Training
from truing.runner import Silent
from truing.store import Store
from truing.targets import resolve
from truing.targets.local import LocalTarget, tree
from truing.targets.local.adapter import Adapter
from truing.train import Settings, adapter, export, fit, from_surfaces, gather, how, train
from truing.train import fit as fit_function
from truing.train.batches import batches, tokens_of
from truing.train.batches import lay_out as lay
from truing.train.losses import Sides, dpo
from truing.train.policy import Policy
from truing.train.reference import reference
from truing.train.settings import EVERY_LAYER, Method, Schedule

SETTINGS = Settings(lr=3e-3, rank=4, alpha=8, batch=8, epochs=3, beta=0.5, checkpoint_every=3, seed=4)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    battery = lay_out("anchoring", most=1)
    carry = family("anchoring").carry
    return gather("C1", from_surfaces(battery.surfaces, fix=carry.fix, keep=carry.keep)[:24], parents=())


class Dies(Exception):
    """What the process does in the middle of its work."""


class Mortal:
    """A store that can keep so many units of work and no more."""

    def __init__(self, store: Store, lives: int) -> None:
        self._store, self.lives = store, lives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def keep(self, key: str, stage: str, records: Sequence[Record], *, seconds: float) -> None:
        if not self.lives:
            raise Dies
        self.lives -= 1
        self._store.keep(key, stage, records, seconds=seconds)


@pytest.fixture(scope="module")
def trained(tiny: LocalTarget, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    """An undisturbed run, and its adapter as a folder."""
    folder = tmp_path_factory.mktemp("trained")
    with open_store(folder / "store") as store:
        training = fit(tiny, pairs, store, settings=SETTINGS)
        return training, export(training, store, folder / "adapter")


def adapter_bytes(training: Training, store: Store) -> bytes:
    return store.blob_path(training.state).read_bytes()


def test_training_lowers_the_loss_and_raises_the_margin(tiny: LocalTarget, trained: tuple[Training, Path]) -> None:
    training, _ = trained
    assert training.finished
    assert [step.step for step in training.steps] == list(range(9))  # 24 pairs, 8 a batch, 3 epochs
    assert training.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert training.steps[0].margin == pytest.approx(0, abs=1e-6)
    assert training.steps[-1].loss < 0.9 * math.log(2)
    assert training.steps[-1].margin > 0.2
    for step in training.steps:
        assert step.grad_norm > 0


def test_the_trained_target_prefers_what_was_chosen(
    tiny: LocalTarget, pairs: Pairs, trained: tuple[Training, Path]
) -> None:
    target = resolve(f"local/tiny@{trained[1]}")
    batch = lay(tiny, pairs.pairs)
    before, after = batch.log_probs(tiny.model), batch.log_probs(target.model)
    gap = (after.chosen - after.rejected) - (before.chosen - before.rejected)
    assert float(gap.mean()) > 0.5
    assert target.card.adapter is not None
    assert target.card.adapter.digest == trained[0].state.digest


def test_the_target_itself_is_not_changed(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    state = torch.get_rng_state()
    with open_store(tmp_path / "store") as store:
        fit(tiny, pairs, store, settings=Settings(most_steps=1))
    after = tiny.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_not_trained_is_shared_with_the_target(tiny: LocalTarget) -> None:
    held = {weight.data_ptr() for weight in tiny.model.parameters()}
    made = Policy(tiny, Settings())
    frozen, trained = ([p for p in made.peft.parameters() if p.requires_grad == wanted] for wanted in (False, True))
    assert {weight.data_ptr() for weight in frozen} == held
    assert trained
    assert not held & {weight.data_ptr() for weight in trained}
    assert not any("lora" in name for name, _ in tiny.model.named_modules())


@pytest.mark.parametrize("lives", [1, 2])
def test_killed_and_rerun_it_ends_with_the_same_bytes(
    tiny: LocalTarget, pairs: Pairs, trained: tuple[Training, Path], tmp_path: Path, lives: int
) -> None:
    with open_store(tmp_path / "store") as store:
        with pytest.raises(Dies):
            fit(tiny, pairs, Mortal(store, 1 + lives), settings=SETTINGS)  # type: ignore[arg-type]  # the reference first
        kept = [r for r in store.of_kind("training") if isinstance(r, Training)]
        assert [(len(r.steps), r.finished) for r in kept] == [(3 * n, False) for n in range(1, lives + 1)]
        # What it did not keep is computed again, in what might be another process: nothing is left of the first.
        counting = Mortal(store, 99)
        training = fit(tiny, pairs, counting, settings=SETTINGS)  # type: ignore[arg-type]
        assert 99 - counting.lives == 3 - lives
        assert training == trained[0]
        assert adapter_bytes(training, store) == (trained[1] / "adapter_model.safetensors").read_bytes()
        assert fit(tiny, pairs, Mortal(store, 0), settings=SETTINGS) == training  # type: ignore[arg-type]


def test_checkpoints_change_nothing(
    tiny: LocalTarget, pairs: Pairs, trained: tuple[Training, Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    with open_store(tmp_path / "store") as store:
        whole = fit(tiny, pairs, store, settings=replace(SETTINGS, checkpoint_every=100))
        assert adapter_bytes(whole, store) == (trained[1] / "adapter_model.safetensors").read_bytes()
        other = fit(tiny, pairs, store, settings=replace(SETTINGS, seed=5, checkpoint_every=100))
        assert other.state.digest != whole.state.digest


def test_peft_reads_the_exported_adapter(tiny: LocalTarget, trained: tuple[Training, Path]) -> None:
    from copy import deepcopy

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft = PeftModel.from_pretrained(deepcopy(tiny.model), str(trained[1])).eval()
    merged = resolve(f"local/tiny@{trained[1]}")
    ids = torch.tensor([tiny.prompt_ids((Message(role="user", content="What is the word for a baby cat?"),))])
    with torch.no_grad():
        theirs, ours, base = (m(ids).logits for m in (peft, merged.model, tiny.model))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert float((ours - base).abs().max()) > 0.01
    config = peft.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (SETTINGS.rank, SETTINGS.alpha, 0.0)


def test_an_unfinished_training_is_not_exported(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        with pytest.raises(Dies):
            fit(tiny, pairs, Mortal(store, 2), settings=SETTINGS)  # type: ignore[arg-type]
        (record,) = store.of_kind("training")
        assert isinstance(record, Training)
        with pytest.raises(TrainingError, match=r"is not finished \(3 steps\); run it to its end"):
            export(record, store, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_is_written_whole_and_always_the_same_or_not_at_all(
    tiny: LocalTarget, pairs: Pairs, trained: tuple[Training, Path], tmp_path: Path
) -> None:
    written = json.loads((trained[1] / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(written["target_modules"])
    (tmp_path / "file").write_text("in the way")
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=Settings(most_steps=1))
        with pytest.raises(StoreError, match="file is a file"):
            export(training, store, tmp_path / "file" / "adapter")
    assert (tmp_path / "file").read_text() == "in the way"


def test_sft_teaches_what_is_chosen(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=Settings(method="sft", lr=3e-3, batch=24, epochs=5))
    first, last = training.steps[0], training.steps[-1]
    assert first.loss == pytest.approx(-first.chosen, rel=1e-6)
    assert last.loss < first.loss - 1
    assert last.chosen > first.chosen + 1


# -- where it stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_learning_rate_that_breaks_the_model_is_stopped(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, method: Any
) -> None:
    """Norms turn weights without bounds into outputs without content: the loss stays finite, the gradient is gone."""
    with open_store(tmp_path / "store") as store:
        with pytest.raises(TrainingError, match=r"at step 1 is (nan|inf|0\.0); lower the learning rate \(1e\+30\)"):
            fit(tiny, pairs, store, settings=Settings(method=method, lr=1e30))
        assert store.of_kind("training") == []


def test_weights_that_are_not_numbers_are_stopped(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    from copy import deepcopy

    model = deepcopy(tiny.model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")
    broken = LocalTarget("local/broken", model, tiny.tokenizer, weights="2" * 64)
    for method in ("dpo", "sft"):
        with open_store(tmp_path / "store") as store, pytest.raises(TrainingError, match="the loss at step 0 is nan"):
            fit(broken, pairs, store, settings=Settings(method=method))


def test_a_policy_that_is_not_the_reference_is_stopped(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that is not fresh: its second factor is not zero at the start."""
    import peft

    fresh = peft.get_peft_model

    def stale(*args: Any, **kwargs: Any) -> Any:
        model = fresh(*args, **kwargs)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2)
        return model

    monkeypatch.setattr(peft, "get_peft_model", stale)
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(
            TrainingError, match=r"before the first step policy and reference differ by .* not be ln 2 = 0\.693147"
        ),
    ):
        fit(tiny, pairs, store, settings=SETTINGS)


@pytest.mark.parametrize(
    ("method", "start"),
    [
        ("dpo", math.log(2)), ("robust", math.log(2)), ("ipo", 1.0), ("ipo-per-token", 1.0), ("kto", 0.5),
        ("simpo", None), ("sft", None),
    ],
)  # fmt: skip
def test_every_method_starts_where_it_should_and_learns(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, method: Method, start: float | None
) -> None:
    how = Settings.of(method, lr=3e-3, beta=2.0 if method == "simpo" else 0.5, batch=8, epochs=3, seed=4)
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=how)
        target = tiny.with_adapter(Adapter.read(export(training, store, tmp_path / "adapter")))
    assert (training.steps[0].margin is None) == (start is None)  # without a reference none is measured
    if start is not None:
        assert training.steps[0].loss == pytest.approx(start, abs=1e-4)
    assert training.steps[-1].loss < training.steps[0].loss
    before, after = (lay(tiny, pairs.pairs).log_probs(t.model) for t in (tiny, target))
    gap = (after.chosen - after.rejected) - (before.chosen - before.rejected)
    if method == "sft":
        assert float((after.chosen - before.chosen).mean()) > 0.1
    else:
        assert float(gap.mean()) > 0.1


def test_the_likelihood_of_what_is_chosen_is_held_up_by_its_own_term(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path
) -> None:
    with open_store(tmp_path / "store") as store:
        plain, held = (fit(tiny, pairs, store, settings=replace(SETTINGS, nll=nll)) for nll in (0.0, 1.0))
    assert held.steps[0].loss > plain.steps[0].loss
    assert held.steps[-1].chosen > plain.steps[-1].chosen


class Hears(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.parametrize(("most", "says"), [(-99.0, True), (99.0, False)])
def test_it_is_said_where_what_is_chosen_became_less_likely(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float, says: bool
) -> None:
    module, hears = sys.modules["truing.train.fit"], Hears()  # the function has the same name
    monkeypatch.setattr(module, "FALL", most)
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=SETTINGS, watcher=hears)
    assert training.steps[0].drift == pytest.approx(0, abs=1e-4)
    drift = sum(step.drift or 0.0 for step in training.steps[-5:]) / 5
    warned = [place for place, line in enumerate(hears.said) if "less likely by" in line]
    assert len(warned) == int(says)  # once, and as soon as it is so
    if says:
        assert any(line.startswith("after step 9") for line in hears.said[warned[0] :])
    assert module.fall(training.steps) == pytest.approx(-drift)
    without = [step.model_copy(update={"drift": None}) for step in training.steps]
    assert module.fall(without) is None
    assert "drift" not in without[0].model_dump(mode="json")


def test_kto_needs_another_pair_in_the_batch(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(TrainingError, match="of 24 pairs in batches of 1 one is alone"),
    ):
        fit(tiny, pairs, store, settings=Settings(method="kto", batch=1))
    with open_store(tmp_path / "store") as store:
        with pytest.raises(TrainingError, match="one is alone"):
            fit(tiny, pairs, store, settings=Settings(method="kto", batch=23))  # the last batch, before the first step
        assert store.ls() == []


def test_the_reference_is_computed_once_for_a_target_and_its_tokens(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        first = reference(tiny, pairs.pairs, store)
        plain = lay(tiny, pairs.pairs).log_probs(tiny.model)
        for ours, theirs in zip(first, plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        asked: list[int] = []
        real = LocalTarget.log_probs
        monkeypatch.setattr(LocalTarget, "log_probs", lambda self, paths: asked.append(1) or real(self, paths))
        again = reference(tiny, pairs.pairs, store)
        assert not asked
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        reference(tiny, pairs.pairs[:-1], store)
        assert asked


def test_a_reference_of_another_model_is_stopped(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*args: Any, **kwargs: Any) -> Sides:
        found = reference(*args, **kwargs)
        return Sides(found.chosen - 0.1, found.rejected)

    module = sys.modules["truing.train.fit"]  # the function has the same name
    monkeypatch.setattr(module, "reference", stale)
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(TrainingError, match=r"differ by 0\.0\d+ nats per token"),
    ):
        fit(tiny, pairs, store, settings=SETTINGS)


@pytest.mark.parametrize("lives", [0, 1])
def test_a_unit_of_the_reference_that_is_stale_is_found_before_a_step_and_on_going_on(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int
) -> None:
    """Of pairs that the first batch does not hold."""
    module = sys.modules["truing.train.fit"]
    monkeypatch.setattr(module, "AT_ONCE", 8)
    first = set(batches(range(24), SETTINGS)[0])
    start = next(start for start in (0, 8, 16))
    some = [place for place in range(start, start + 8) if place not in first]

    def stale(*args: Any, **kwargs: Any) -> Sides:
        found = reference(*args, **kwargs)
        rejected = found.rejected.clone()
        rejected[some] += 0.1
        return Sides(found.chosen, rejected)

    class Picks(random.Random):
        def choice(self, places: Any) -> Any:
            return next((place for place in places if place in some), places[0])

    with open_store(tmp_path / "store") as store:
        if lives:
            with pytest.raises(Dies):
                fit(tiny, pairs, Mortal(store, 2), settings=SETTINGS)  # type: ignore[arg-type]
            assert any(isinstance(one, Training) for one in store.of_kind("training"))
        monkeypatch.setattr(module, "reference", stale)
        monkeypatch.setattr(module.random, "Random", Picks)
        with pytest.raises(
            TrainingError, match=r"reference that was kept .* differ by 0\.0\d+ nats per token: the store"
        ):
            fit(tiny, pairs, store, settings=SETTINGS)


def test_the_gradient_is_clipped(tiny: LocalTarget, pairs: Pairs) -> None:
    policy = Policy(tiny, replace(SETTINGS, clip=0.01))
    (lay(tiny, pairs.pairs[:4]).log_probs(policy.model).chosen.sum()).backward()
    before = math.sqrt(sum(float(weight.grad.square().sum()) for weight in policy.named.values()))
    assert before > 0.02
    assert policy.norm() == pytest.approx(before, rel=1e-5)
    after = math.sqrt(sum(float(weight.grad.square().sum()) for weight in policy.named.values()))
    assert after == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"beta": 0.0}, "beta is 0.0; give a number above 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"nll": -1.0}, "nll is -1.0; give 0"),
        ({"flipped": 0.5}, "flipped is 0.5; give the share"),
        ({"warmup": 1.0}, "warmup is 1.0; give a share"),
        ({"held_out": -0.1}, "held_out is -0.1; give a share"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"max_length": -1}, "max_length is -1; give 0"),
        ({"schedule": "steps"}, "unknown schedule 'steps'; there are constant, linear, cosine"),
        ({"modules": "q_proj,"}, "modules is 'q_proj,'; name layers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Settings.of("dpo", **said)


def test_no_pairs_and_pairs_that_say_nothing_are_refused(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    same = pairs.pairs[0].model_copy(update={"rejected": pairs.pairs[0].chosen})
    assert isinstance(same, Pair)
    with open_store(tmp_path / "store") as store:
        with pytest.raises(TrainingError, match="no pairs to train on"):
            fit(tiny, gather("C1", [], parents=()), store)
        with pytest.raises(TrainingError, match="the same text"):
            fit(tiny, gather("C1", [same], parents=()), store)
        assert store.ls() == []


def test_only_what_can_be_trained_is_trained(pairs: Pairs, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, pytest.raises(TargetError, match="no ability Trainable"):
        fit_function(resolve("scripted/honest"), pairs, store)


# -- how it is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * done / 6)) / 2 for done in range(6))]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule: Schedule, rates: list[float]) -> None:
    settings = Settings(lr=0.5, schedule=schedule, warmup=0.25)
    assert [settings.rate(step, 8) for step in range(8)] == pytest.approx([0.5 * rate for rate in rates])


def trained_with(tiny: LocalTarget, pairs: Pairs, folder: Path, **how: Any) -> tuple[Training, dict[str, torch.Tensor]]:
    with open_store(folder / "store") as store:
        training = fit(tiny, pairs, store, settings=replace(SETTINGS, **how))
        return training, load_file(export(training, store, folder / training.id) / "adapter_model.safetensors")


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("how", [{"accumulate": 3}, {"gradient_checkpointing": True}])
def test_what_saves_memory_changes_no_step(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, how: dict[str, Any]
) -> None:
    plain, saving = (trained_with(tiny, pairs, tmp_path, most_steps=2, **more) for more in ({}, how))
    assert saving[0].steps[0].grad_norm == pytest.approx(plain[0].steps[0].grad_norm, rel=1e-4)
    assert saving[0].steps[1].loss == pytest.approx(plain[0].steps[1].loss, rel=1e-4)
    assert saving[0].settings != plain[0].settings


def test_activations_are_not_kept_where_they_are_computed_again(tiny: LocalTarget, pairs: Pairs) -> None:
    def held(again: bool) -> int:
        policy, sizes = Policy(tiny, replace(SETTINGS, gradient_checkpointing=again)), []
        batch = lay(tiny, pairs.pairs)
        with saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            batch.log_probs(policy.model)
        assert not any(layer.self_attn.training or layer.mlp.training for layer in policy.model.model.layers)
        return sum(sizes)

    assert held(True) < held(False) / 3


def test_the_learning_rate_of_a_step_is_that_of_the_schedule(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    (_, flat), (_, falling) = (
        trained_with(tiny, pairs, tmp_path, most_steps=2, schedule=kind) for kind in ("constant", "linear")
    )
    start = Policy(tiny, SETTINGS)
    before = {name.replace(".default", ""): weight.detach() for name, weight in start.named.items()}
    assert 1.2 < apart(flat, before) / apart(falling, before) < 1.5  # AdamW: 1 + 1 steps of lr against 1 + 1/2


def test_every_linear_layer_can_have_an_adapter(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    how = Settings.of(lr=1e-3, most_steps=1, modules="all-linear")
    assert how.modules == EVERY_LAYER
    with open_store(tmp_path / "store") as store:
        folder = export(fit(tiny, pairs, store, settings=how), store, tmp_path / "adapter")
    names = {name.split(".")[-3] for name in load_file(folder / "adapter_model.safetensors")}
    assert names == set(EVERY_LAYER.split(","))
    assert resolve(f"local/tiny@{folder}").card.adapter is not None


def test_layers_that_there_are_not_are_refused(tiny: LocalTarget) -> None:
    with pytest.raises(UsageError, match=r"no linear layers named gate, c_attn; it has .*gate_proj, .*q_proj"):
        Policy(tiny, Settings(modules="gate,q_proj,c_attn"))


EARLY = {"held_out": 0.3, "patience": 1, "checkpoint_every": 2, "epochs": 12, "lr": 0.05, "batch": 4}


def test_it_stops_where_what_is_held_out_gets_worse_and_keeps_the_best(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path
) -> None:
    hears = Hears()
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=replace(SETTINGS, **EARLY), watcher=hears)  # type: ignore[arg-type]
        looks = {step.step: step.held for step in training.steps if step.held is not None}
        best = min(looks, key=lambda step: looks[step])
        assert training.finished
        assert list(looks) == list(range(1, len(training.steps), 2))
        assert best == len(training.steps) - 3  # and then one look without a lower loss
        target = tiny.with_adapter(Adapter.read(export(training, store, tmp_path / "adapter")))
    assert f"stopped after {len(training.steps)} of" in " ".join(hears.said)
    assert f"lowest after {best + 1}, whose adapter is kept" in " ".join(hears.said)
    # The loss that was lowest is that of the adapter which was kept, on plots that were not trained on.
    plots = sorted({pair.plot for pair in pairs.pairs})
    aside = set(random.Random(SETTINGS.seed).sample(plots, math.ceil(0.3 * len(plots))))
    held = [pair for pair in pairs.pairs if pair.plot in aside]
    assert 0 < len(held) < len(pairs.pairs)
    with torch.no_grad():
        before, after = (lay(tiny, held).log_probs(one.model) for one in (tiny, target))
    assert float(dpo(after, before, beta=SETTINGS.beta).mean()) == pytest.approx(looks[best], abs=1e-4)


def test_killed_it_stops_at_the_same_step_with_the_same_bytes(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    how = replace(SETTINGS, **EARLY)  # type: ignore[arg-type]
    with open_store(tmp_path / "one") as store:
        whole = fit(tiny, pairs, store, settings=how)
    with open_store(tmp_path / "other") as store:
        for _ in range(len(whole.steps) // 2):
            with pytest.raises(Dies):
                fit(tiny, pairs, Mortal(store, 1), settings=how)  # type: ignore[arg-type]
        assert fit(tiny, pairs, store, settings=how) == whole


def test_what_was_trained_before_it_broke_is_kept(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, norms = Policy.norm, iter([1.0] * 4 + [math.nan])
    monkeypatch.setattr(Policy, "norm", lambda self: (real(self), next(norms))[1])
    with open_store(tmp_path / "store") as store:
        with pytest.raises(
            TrainingError, match=r"gradient norm at step 4 is nan.* after 3 steps is kept as training"
        ) as why:
            fit(tiny, pairs, store, settings=replace(SETTINGS, checkpoint_every=7))
        (kept,) = (one for one in store.of_kind("training") if isinstance(one, Training))
        assert kept.id[:12] in str(why.value)
        assert (len(kept.steps), kept.finished) == (3, True)
        monkeypatch.undo()
        good = fit(tiny, pairs, store, settings=replace(SETTINGS, most_steps=3))
        assert adapter_bytes(kept, store) == adapter_bytes(good, store)


def test_not_everything_can_be_held_out(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    one = gather("C1", [pair for pair in pairs.pairs if pair.plot == pairs.pairs[0].plot], parents=())
    with open_store(tmp_path / "store") as store, pytest.raises(TrainingError, match="all of 1 plots are held out"):
        fit(tiny, one, store, settings=Settings(held_out=0.1))


def test_an_adapter_can_be_trained_on(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    how = Settings(method="sft", lr=3e-3, batch=24, most_steps=3)
    with open_store(tmp_path / "store") as store:
        first = fit(tiny, pairs, store, settings=how)
        then = fit(tiny, pairs, store, settings=how, begin=first)
        # The adapter goes on from where it was; only the optimiser begins anew.
        target = tiny.with_adapter(Adapter.read(export(first, store, tmp_path / "first")))
        assert then.steps[0].loss == pytest.approx(-float(lay(tiny, pairs.pairs).log_probs(target.model).chosen.mean()))
        assert then.steps[0].loss < first.steps[0].loss
        assert then.steps[0].rejected is None
        assert then.parents == (tiny.card.id, pairs.id, first.id)
        with pytest.raises(TrainingError, match="before the first step policy and reference differ"):
            fit(tiny, pairs, store, settings=replace(how, method="dpo"), begin=first)
        with pytest.raises(UsageError, match="the adapter to go on from is not one of q_proj alone"):
            fit(tiny, pairs, store, settings=replace(how, modules="q_proj"), begin=first)


WHOLE = replace(SETTINGS, modules="all-weights", lr=3e-4)


@pytest.fixture(scope="module")
def whole(tiny: LocalTarget, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    """All weights trained, and the checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    with open_store(folder / "store") as store:
        training = fit(tiny, pairs, store, settings=WHOLE)
        return training, export(training, store, folder / "model", target=tiny)


def test_all_weights_are_trained_and_written_as_a_checkpoint(
    tiny: LocalTarget, pairs: Pairs, whole: tuple[Training, Path], tmp_path: Path
) -> None:
    training, folder = whole
    assert training.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert training.steps[-1].loss < 0.9 * math.log(2)
    with open_store(folder.parent / "store") as store:
        put = tiny.with_adapter(adapter(training, store)).checked()
        with pytest.raises(TrainingError, match="need their target to be written"):
            export(training, store, tmp_path / "nowhere")
    loaded, mixed = resolve(f"local/{folder}"), resolve(f"local/tiny@{folder}")
    weights = [target.model.state_dict() for target in (put, loaded, mixed)]
    before = tiny.model.state_dict()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
        assert torch.equal(weight, weights[2][name])
    assert not torch.equal(before["model.embed_tokens.weight"], weights[0]["model.embed_tokens.weight"])
    assert all(not parameter.requires_grad for parameter in put.model.parameters())
    found = [lay(tiny, pairs.pairs).log_probs(target.model).chosen for target in (put, loaded)]
    assert torch.equal(*found)


def test_all_weights_killed_and_rerun_end_with_the_same_bytes(
    tiny: LocalTarget, pairs: Pairs, whole: tuple[Training, Path], tmp_path: Path
) -> None:
    with open_store(tmp_path / "store") as store:
        with pytest.raises(Dies):
            fit(tiny, pairs, Mortal(store, 2), settings=WHOLE)  # type: ignore[arg-type]
        assert fit(tiny, pairs, store, settings=WHOLE) == whole[0]


def test_all_weights_take_the_steps_that_torch_takes(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    """Each pair by itself, with the logits of every token, and AdamW as it ships: no tree, no head of ours."""
    from copy import deepcopy

    how = Settings(modules="all-weights", lr=1e-3, batch=4, most_steps=2, seed=3)
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, pairs, store, settings=how)
    model = deepcopy(tiny.model).requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def log_p(some: Any, path: tuple[list[int], list[int]]) -> torch.Tensor:
        prompt, reply = path
        ids = torch.tensor([[*prompt, *reply]])
        found = some(ids).logits[0].log_softmax(-1)
        return found[len(prompt) - 1 : -1].gather(-1, torch.tensor(reply)[:, None]).sum()

    for step, places in zip(training.steps, batches(range(len(pairs.pairs)), how), strict=True):
        sides = [tokens_of(tiny, pairs.pairs[place]) for place in places]
        policy, reference = (
            Sides(*(torch.stack([log_p(some, side[at]) for side in sides]) for at in (0, 1)))
            for some in (model, tiny.model)
        )
        loss = dpo(policy, reference, beta=how.beta).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimiser.step()
        optimiser.zero_grad()
        assert step.loss == pytest.approx(loss.item(), abs=1e-5)
        assert step.grad_norm == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize(("name", "says"), [("model.norm.weight", "has no weights for"), ("", "has the shape")])
def test_weights_that_are_not_all_there_or_of_another_shape_are_refused(
    tiny: LocalTarget, tmp_path: Path, name: str, says: str
) -> None:
    from safetensors.torch import save_file

    weights = {key: value.clone() for key, value in tiny.model.named_parameters() if key != name}
    if not name:
        weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(TargetError, match=f"in place of those of LlamaForCausalLM: .*{says}"):
        tiny.with_adapter(Adapter.read(tmp_path)).checked()


def test_a_checkpoint_is_not_written_over_anything(tiny: LocalTarget, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(StoreError, match="is not empty"):
        tiny.save(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        tiny.save(tmp_path / "file" / "model")
    tiny.save(tmp_path / "new" / "model")
    assert resolve(f"local/{tmp_path / 'new' / 'model'}").card.template == tiny.card.template
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_the_divergence_is_followed_on_chosen_replies(tiny: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    one = gather("C1", pairs.pairs[:1], parents=())
    hears, how = Hears(), replace(SETTINGS, epochs=6, checkpoint_every=3)
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, one, store, settings=how, watcher=hears)  # type: ignore[arg-type]
        fixed = tiny.with_adapter(adapter(training, store))
    found = [step.kl for step in training.steps]
    assert [kl is not None for kl in found] == [False, False, True, False, False, True]
    prompt, reply = tokens_of(tiny, one.pairs[0])[0]
    ids = torch.tensor([[*prompt, *reply]])
    p, q = (target.model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for target in (fixed, tiny))
    assert found[-1] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert found[-1] > found[2] > 0  # type: ignore[operator]
    curves = r"after step 6: loss 0\.\d+, margin \d\.\d+, chosen -\d+\.\d+, rejected -\d+\.\d+, KL 0\.\d+"
    assert any(re.fullmatch(curves, line) for line in hears.said)


def test_a_model_that_takes_no_trees_is_trained_all_the_same(hybrid: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    few = Pairs(clause="C1", pairs=pairs.pairs[:8])
    with open_store(tmp_path / "store") as store:
        training = fit(hybrid, few, store, settings=replace(SETTINGS, batch=4, gradient_checkpointing=True))
        target = hybrid.with_adapter(Adapter.read(export(training, store, tmp_path / "adapter")))
    assert training.steps[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert training.steps[-1].loss < 0.9 * math.log(2)
    before, after = (lay(hybrid, few.pairs).log_probs(one.model) for one in (hybrid, target))
    assert float(((after.chosen - after.rejected) - (before.chosen - before.rejected)).mean()) > 0.2


@pytest.mark.parametrize("method", ["dpo", "kto", "sft", "rlhf"])
def test_prompts_that_are_cut_off_are_counted_and_no_sequence_is_longer(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Replies of several lengths, so that what is trained on with replies to others is cut off once more.
    wordy = 0 if method == "rlhf" else 3
    pairs = Pairs(
        clause="", pairs=tuple(
            pair.model_copy(update={"rejected": f"{pair.rejected}, I think. " * (1 + number % 3)} if wordy else {})
            for number, pair in enumerate(pairs.pairs)
        ),
    )  # fmt: skip
    more = 5 if method == "rlhf" else 0  # what is written, and its end

    def length(pair: Pair) -> int:
        (prompt, chosen), (_, rejected) = tokens_of(tiny, pair)
        return len(prompt) + (more or len(chosen) if method in ("rlhf", "sft") else max(len(chosen), len(rejected)))

    longest = sorted(map(length, pairs.pairs))
    most = longest[len(longest) // 2]
    over = sum(size > most for size in longest)
    assert 0 < over < len(longest)
    few = {"max_tokens": 4} if method == "rlhf" else {"checkpoint_every": 2}
    depths: list[int] = []
    planted = tree.plant

    def noted(paths: Sequence[Sequence[int]]) -> Any:
        depths.extend(map(len, paths))
        return planted(paths)

    for module in ("batches", "reward"):
        monkeypatch.setattr(sys.modules[f"truing.train.{module}"], "plant", noted)
    said = Hears()
    with open_store(tmp_path / "store") as store:
        found = train(tiny, pairs, store, how(method, max_length=most, most_steps=3, **few), watcher=said)
        assert found.truncated == over
        assert any(
            line.startswith(f"{over} of 24 prompts lose their beginning, to be within {most}") for line in said.said
        )
        assert dict(found.settings)["max_length"] == most
        assert most - 2 <= max(depths) <= most
        whole = train(tiny, pairs, store, how(method, max_length=4000, most_steps=1, **few))
        assert whole.truncated is None
        plain = train(tiny, pairs, store, how(method, most_steps=1, **few))
        assert "max_length" not in dict(plain.settings)


@pytest.mark.parametrize("method", ["dpo", "kto", "rlhf"])
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    tiny: LocalTarget, pairs: Pairs, tmp_path: Path, method: str
) -> None:
    context = tiny.model.config.max_position_embeddings
    ask = "Which is it? " * 600
    long = pairs.pairs[0].model_copy(update={"messages": (Message(role="user", content=ask),)})
    room = context - len(tiny.encoded(tiny.prompt_text(long.messages)))
    wordy = pairs.pairs[1].model_copy(update={"rejected": " It is red." * room})
    some = Pairs(clause="", pairs=(long, wordy, *pairs.pairs[2:8]))
    assert room > 0
    if method == "rlhf":
        way = how(method, max_tokens=room)
    else:
        way = how(method, batch=8)
        if method == "dpo":
            some = Pairs(clause="", pairs=(long.model_copy(update={"chosen": " It is red." * room}), *some.pairs[2:]))
    with (
        open_store(tmp_path / "store") as store,
        pytest.raises(TrainingError, match=r"longer than the context.*--max-length"),
    ):
        train(tiny, some, store, way)
    with open_store(tmp_path / "store") as store:
        assert store.ls() == []
