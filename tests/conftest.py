"""Tests keep to themselves: one thread, no network, and their own folders for the model cache and the user's key."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import settings

# The first example of a test may load a library, on a machine that does something else besides.
settings.register_profile("truing", deadline=None)
settings.load_profile("truing")

# Read when the packages are loaded, so they are set before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRUING_DEVICE", "cpu")  # what is expected is computed there, on a machine with a GPU too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole loops take longest: begun first, they leave no worker alone at the end."""
    items.sort(key=lambda item: "studies" not in item.path.parts)


def pytest_collection_finish() -> None:
    """What was imported so far is for good: garbage is not looked for in it again, where memory is said to run out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees or changes what belongs to the user."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUING_CACHE", str(cache))
        patch.setenv("TRUING_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield
    shutil.rmtree(cache)  # the bundled model takes half a gigabyte


@pytest.fixture(autouse=True)
def heard() -> None:
    """Evaluations of Inspect's leave the root's level where hardly anything is heard."""
    logging.root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """`local/tiny`, loaded once; a LocalTarget is never changed in place."""
    pytest.importorskip("torch")
    from truing.targets import resolve

    return resolve("local/tiny")


SMALL = {
    "vocab_size": 1536, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def random_target(tiny: Any, name: str, kind: str, *, spread: float = 0.0, **settings: Any) -> Any:
    """A random decoder with the tokenizer of `tiny`; `spread`: of its matrices, if not that of its architecture."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from truing.targets.local import LocalTarget
    from truing.targets.local.probe import probe

    state = torch.get_rng_state()
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **settings)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if spread and parameter.dim() == 2:
            parameter.normal_(0, spread)
    torch.set_rng_state(state)
    probe(model)
    return LocalTarget(f"local/{name}", model, tiny.tokenizer, weights="0" * 64)


@pytest.fixture(scope="session")
def wild(tiny: Any) -> Any:
    """A random Llama with larger weights: unlike `tiny` it minds every position and writes something else each time."""
    return random_target(tiny, "wild", "llama", spread=0.15, head_dim=12)


@pytest.fixture(scope="session")
def hybrid(tiny: Any) -> Any:
    """A random Jamba: state-space layers between layers with attention, which take no trees."""
    from truing.targets.local.tree import takes_trees

    found = random_target(
        tiny, "hybrid", "jamba", num_experts=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4
    )
    assert not takes_trees(found.model)
    return found


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def there(request: pytest.FixtureRequest, wild: Any) -> Any:
    """The same on a device of its own; on an accelerator where there is one."""
    import torch

    from truing.targets.local import LocalTarget

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    model = deepcopy(wild.model).to(request.param)
    return LocalTarget("local/there", model, wild.tokenizer, weights="0" * 64)
