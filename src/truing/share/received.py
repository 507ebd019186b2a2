"""The graph of a case in a file from anywhere, whichever program wrote it; a case of Truing's own is kept in a store.

Graphs of other programs are no records: they do not say which weights were read, nor what was checked. None is made up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from truing.errors import RecordError
from truing.records import Id, Record
from truing.share.exported import MOST_BYTES
from truing.share.graphs import Imported, Traced, from_neuronpedia, read_bounded, read_case
from truing.store import Store, open_store
from truing.text import short


class _Any(BaseModel):
    """A file of either kind."""

    model_config = ConfigDict(extra="ignore")

    format: Any = None


def read_graph(path: Path) -> Traced | Imported:
    """A graph from a file: Truing's own, beside which its arrays stand, or one of Neuronpedia or circuit-tracer.

    DataError where it cannot be read, RecordError where it is neither, or not whole; nothing in it is executed.
    """
    data = read_bounded(path, MOST_BYTES)
    try:
        said = _Any.model_validate_json(data).format
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise RecordError(f"{path.name} holds no graph, of Truing's or of Neuronpedia's: {short(first)}") from error
    if isinstance(said, str) and said.startswith("truing-case/"):
        return read_case(path)
    return from_neuronpedia(data)


def records_of(traced: Traced) -> tuple[Record, ...]:
    """What a file holds, parents first: the target, the case, and what it was before it had labels.

    Labels and names are added to a case and change nothing in it, so that the earlier one can be told from the later,
    and its id says whether it is that one.
    """
    case, before = traced.case, traced.case.parents[:-1]
    plain = [case.unlabelled(before), case.unlabelled(tuple(one for one in before if one != case.named_by))]
    earlier = [one for one in plain if case.parents and one.id == case.parents[-1]][:1]
    return (traced.target, *earlier, case)


def absent(records: tuple[Record, ...], folder: Path) -> list[Id]:
    """On which records these rest that are neither among them nor in the store of a folder, if there is one."""
    lost = {parent for record in records for parent in record.parents} - {record.id for record in records}
    if lost and folder.exists():
        with open_store(folder, mode="read") as store:
            lost -= {entry.id for entry in store.ls()}
    return sorted(lost)


def keep(traced: Traced, store: Store) -> tuple[Id, ...]:
    """Keep a case with its graph and its target; gives the ids, parents first. Nothing that was there is altered."""
    store.put_blob(traced.data, traced.case.graph.media)
    return tuple(store.add(record) for record in records_of(traced))


__all__ = ["absent", "keep", "read_graph", "records_of"]
