"""The mean attribution over twins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from safetensors.torch import save as pack_tensors
from torch import Tensor

from truing.records import Arrays
from truing.runner import Watcher
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace.attribute import Attribution, Scoring, attribute
from truing.trace.plotwise import arrays, units_of_work
from truing.trace.twins import FRAME, REPLY, Twin, by_plot


def averaged(
    target: LocalTarget,
    pairs: Sequence[Twin],
    segments: tuple[str, ...],
    store: Store,
    watcher: Watcher | None,
    *,
    name: str,
    rule: Scoring = "relp",
) -> tuple[Attribution, list[Arrays]]:
    """The mean attribution over twins. One unit of work is one plot."""
    plots = by_plot(pairs)

    def work(item: tuple[str, list[Twin]]) -> list[Arrays]:
        plot, members = item
        found = [attribute(target.model, twin, segments, rule) for twin in members]
        sums = {part: torch.stack([getattr(a, part) for a in found]).sum(0) for part in Attribution.__slots__}
        blob = store.put_blob(pack_tensors({part: tensor.contiguous() for part, tensor in sums.items()}), "safetensors")
        return [arrays(target, name, plot, members, blob=blob)]

    more = {"segments": list(segments), "name": name, "parts": list(Attribution.__slots__)} | (
        {} if rule == "relp" else {"rule": rule}
    )
    records = units_of_work("attribute", target, plots, more, work, store, watcher)
    total: dict[str, Tensor] = {}
    for record in records:
        assert record.blob is not None
        for part, tensor in load_file(store.blob_path(record.blob)).items():
            total[part] = total[part] + tensor if part in total else tensor
    return Attribution(**{part: tensor / len(pairs) for part, tensor in total.items()}), records


def segments_of(pairs: Sequence[Twin]) -> tuple[str, ...]:
    """Labels of the nodes of twins: the frame first, the reply last."""
    labels = {s: None for twin in pairs for side in (twin.first, twin.second) for s in side.segment_T}
    middle = [label for label in labels if label not in (FRAME, REPLY)]
    return (FRAME, *middle, REPLY)
