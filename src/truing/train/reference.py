"""Log-probabilities of the untrained model, computed once for all steps and kept by what determines them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from safetensors.torch import save as pack_tensors

from truing.records import Arrays, Pair, digest_of
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.train.batches import Path, tokens_of
from truing.train.losses import Sides

AT_ONCE = 64
"""Pairs of a unit of work."""


def reference(
    target: LocalTarget, pairs: Sequence[Pair], store: Store, *, most: int = 0, watcher: Watcher | None = None
) -> Sides:
    """Of every pair, summed over its replies' tokens, nats, fp32; scored as one tree, which shares what prompts share.

    What is kept belongs to this target (weights, tokenizer, template, number format) and to these tokens.

    `most`: as for `tokens_of`.
    """

    def work(item: tuple[str, list[Path]]) -> list[Arrays]:
        key, paths = item
        blob = store.put_blob(pack_tensors({"sums": _sums(target, paths)}), "safetensors")
        return [
            Arrays(name="reference", target=target.card.id, plot=key, cases=(), blob=blob, parents=(target.card.id,))
        ]

    units = []
    for start in range(0, len(pairs), AT_ONCE):
        paths = _paths(target, pairs[start : start + AT_ONCE], most)
        key = digest_of(paths)
        units.append(Unit(item=(key, paths), stage="reference", inputs={"target": target.card.id, "tokens": key}))
    found = run(units, work, ledger=store, watcher=watcher, label="train: reference")
    arrays = [record for records in found for record in records if isinstance(record, Arrays)]
    sums = torch.cat([load_file(store.blob_path(one.blob))["sums"] for one in arrays if one.blob])
    return Sides(sums[0::2], sums[1::2])


def scored(target: LocalTarget, pairs: Sequence[Pair], *, most: int = 0) -> Sides:
    """The same, computed now."""
    sums = _sums(target, _paths(target, pairs, most))
    return Sides(sums[0::2], sums[1::2])


def _paths(target: LocalTarget, pairs: Sequence[Pair], most: int) -> list[Path]:
    return [path for pair in pairs for path in tokens_of(target, pair, most=most)]


def _sums(target: LocalTarget, paths: Sequence[Path]) -> torch.Tensor:
    values, _ = target.log_probs(paths)
    return torch.stack([value.double().sum() for value in values]).float()
