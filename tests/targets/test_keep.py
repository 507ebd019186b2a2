"""A target is made again from a store: from its base's name, and from adapters that the store holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing.audit import audit, family, lay_out
from truing.errors import StoreError, TargetError
from truing.records import Claim
from truing.store import open_store
from truing.studies.one import wheel_of
from truing.targets import keep, made_again, resolve
from truing.targets.local.adapter import Adapter
from truing.train import Settings, export, fit, from_surfaces, gather


@pytest.fixture(scope="module")
def adapter(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that one step of training gave."""
    place = tmp_path_factory.mktemp("adapter")
    carry = family("anchoring").carry
    pairs = from_surfaces(lay_out("anchoring", most=1).surfaces, fix=carry.fix, keep=carry.keep)[:4]
    with open_store(place / "store") as store:
        training = fit(tiny, gather("C6", pairs, parents=()), store, settings=Settings(most_steps=1))
        return export(training, store, place / "adapter")


def test_a_target_with_adapters_is_made_again_without_their_folders(adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    targets = [resolve("local/tiny"), resolve(f"local/tiny@{folder}"), resolve(f"local/tiny@{folder}@{folder}")]
    shutil.rmtree(folder)
    surfaces = lay_out("anchoring", most=1).surfaces[:1]
    with open_store(tmp_path / "store") as store:
        keep(targets[-1], store)
        assert {record.id for record in store.of_kind("target")} == {target.card.id for target in targets}
        assert store.check() == []
        for target in targets:
            again: Any = made_again(target.card, store)
            assert again.card == target.card
            assert again.decide(surfaces) == target.decide(surfaces)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_target_is_made_again_in_its_own_dtype(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    targets = [resolve(name, dtype=dtype) for name in ("local/tiny", f"local/tiny@{adapter}")]
    monkeypatch.setenv("TRUING_DTYPE", "bf16" if dtype == "fp32" else "fp32")
    with open_store(tmp_path / "store") as store:
        keep(targets[-1], store)
        for target in targets:
            assert made_again(target.card, store).card == target.card


def test_a_scripted_target_is_made_again_by_its_name(tmp_path: Path) -> None:
    target = resolve("scripted/anchored?seed=3")
    with open_store(tmp_path / "store") as store:
        keep(target, store)
        assert made_again(target.card, store).card == target.card


def test_a_card_without_its_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    card = resolve(f"local/tiny@{adapter}").card
    with open_store(tmp_path / "store") as store, pytest.raises(StoreError, match="no base: audit it anew"):
        made_again(card.model_copy(update={"parents": ()}), store)


def test_a_claim_about_a_target_with_an_adapter_is_carried_on(adapter: Path, tmp_path: Path) -> None:
    """By the claim's id alone: the folder of the adapter is gone, and the name of the target is not its path."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    with open_store(tmp_path / "store") as store:
        target = resolve(f"local/tiny@{folder}")
        (claim, _) = audit(target, ["anchoring"], store)
        shutil.rmtree(folder)
        wheel = wheel_of(claim.id, store)
        assert wheel.target.card == target.card
        pairs = wheel.pairs().model_copy(update={"pairs": wheel.pairs().pairs[:8]})
        store.add(pairs)
        training = fit(wheel.target, pairs, store, settings=Settings(most_steps=1))
        fixed = wheel.adapted(wheel.target, training)
        assert fixed.card.name.startswith(f"{target.card.name}@")
        assert [record.id for record in store.closure([fixed.card.id])][:1] == [resolve("local/tiny").card.id]
        assert store.check() == []


def test_a_fix_made_in_the_loop_is_what_its_exported_folder_is(tiny: Any, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        (claim, _) = audit(tiny, ["anchoring"], store)
        wheel = wheel_of(claim.id, store)
        pairs = wheel.pairs()
        training = fit(tiny, pairs, store, settings=Settings(most_steps=1))
        fixed = wheel.adapted(tiny, training)
        folder = export(training, store, tmp_path / "adapter")
        assert resolve(f"local/tiny@{folder}").card == fixed.card
        assert Adapter.read(folder).blob == training.state


def test_a_base_that_has_changed_is_found(tiny: Any, adapter: Path, tmp_path: Path) -> None:
    from truing.targets.local import cache
    from truing.targets.local import tiny as recipe

    base = shutil.copytree(cache.root() / recipe.FOLDER, tmp_path / "base")
    with open_store(tmp_path / "store") as store:
        (claim, _) = audit(resolve(f"local/{base}@{adapter}"), ["anchoring"], store)
        assert isinstance(claim, Claim)
        config = base / "config.json"
        config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.001'))
        with pytest.raises(TargetError, match="is not what it was when claim"):
            wheel_of(claim.id, store)
