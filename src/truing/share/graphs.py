"""Graphs of cases as two files beside each other: NAME.json, the record and its target; NAME.safetensors, the graph.

No file says where the other is: the name does. What is read is compared with the digests in it, and fits together, or
is refused; nothing in it is executed. The JSON of other programs is at hand here too. Bundles are verified without this
module, which needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from truing.errors import BundleError, DataError, RecordError, StoreError, UsageError
from truing.files import write_whole
from truing.records import CaseGraph, Circuit, Record, Target, Value, canonical, check_size, circuit_of, parse
from truing.share.exported import neuronpedia, write_neuronpedia
from truing.share.imported import Imported, from_neuronpedia
from truing.share.manifest import check_depth
from truing.text import short

FORMAT: Literal["truing-case/1"] = "truing-case/1"
MOST_JSON = 64 << 20
"""Bytes of the record's file; a case of a million tokens stays below."""
R = TypeVar("R", bound=Record)
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


class Ids(Value):
    """What both records must hash to."""

    case: Digest
    target: Digest


class Envelope(Value):
    """The record's file."""

    format: Literal["truing-case/1"] = FORMAT
    ids: Ids
    case: dict[str, Any]
    target: dict[str, Any]


@dataclass(frozen=True)
class Traced:
    """A case that was read: its record, its target's card, and its graph, also as it stands in the file."""

    case: CaseGraph
    target: Target
    circuit: Circuit
    data: bytes = field(repr=False)


def write_case(path: Path, case: CaseGraph, target: Target, graph: bytes) -> tuple[Path, Path]:
    """Write both files; the record's comes last, so that a pair is there whole or is not one. Gives their paths.

    UsageError where `path` does not end in .json, RecordError where `graph` is not what the case names, StoreError, and
    no new file, where the disk refuses.
    """
    arrays = beside(path)
    circuit_of(case, graph)
    if case.target != target.id:
        raise RecordError(f"the case is about target {case.target[:12]}, not about {target.name} ({target.id[:12]})")
    whole = Envelope(ids=Ids(case=case.id, target=target.id), case=case.plain(), target=target.plain())
    new = not arrays.exists()
    write_whole(arrays, graph)
    try:
        write_whole(path, canonical(whole.model_dump(mode="json")))
    except StoreError:
        if new:
            arrays.unlink(missing_ok=True)
        raise
    return path, arrays


def read_case(path: Path) -> Traced:
    """Both files, from anywhere. DataError where one is missing or too large, RecordError where they do not fit."""
    arrays = beside(path)
    data = read_bounded(path, MOST_JSON)
    try:
        check_depth(data, name=path.name)
        whole = Envelope.model_validate_json(data)
    except (ValidationError, BundleError) as error:
        raise RecordError(f"{path.name} is no record of a case ({FORMAT}): {short(error)}") from error
    case = _record(whole.case, whole.ids.case, CaseGraph)
    target = _record(whole.target, whole.ids.target, Target)
    if case.target != target.id:
        raise RecordError(f"{path.name}: its case is about target {case.target[:12]}, its card is of {target.id[:12]}")
    check_size(case)
    graph = read_bounded(arrays, case.graph.size)
    return Traced(case, target, circuit_of(case, graph), graph)


def read_bounded(path: Path, most: int) -> bytes:
    """A file of at most so many bytes. DataError where it is larger, or cannot be read."""
    try:
        if not path.is_file():
            raise DataError(f"cannot read {path}: there is no such file. Both files of a case stand in one folder")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > most:
        raise DataError(f"{path} has more than {most} bytes, the most that is read here")
    return data


def beside(path: Path) -> Path:
    """The file of the graph, which stands beside that of the record. UsageError for a name that is not NAME.json."""
    if path.suffix != ".json":
        raise UsageError(f"the file of a case is NAME.json, its graph NAME.safetensors beside it; got {path.name}")
    return path.with_suffix(".safetensors")


def _record(plain: dict[str, Any], wanted: str, kind: type[R]) -> R:
    record = parse(canonical(plain), id=wanted)
    if not isinstance(record, kind):
        raise RecordError(f"a record of kind {record.kind} stands where one of kind {kind.kind} belongs")
    return record


__all__ = [
    "Imported", "Traced", "beside", "from_neuronpedia", "neuronpedia", "read_case", "write_case", "write_neuronpedia",
]  # fmt: skip
