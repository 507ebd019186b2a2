"""Labels and supernodes of a case: those of the pieces, for the right neurons, and done once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import DesignError, StoreError, TargetError, UsageError
from truing.measure import passages
from truing.records import Blob, CaseGraph, Circuit, Estimate, Message, Replies, Said, Target, parse
from truing.store import Store
from truing.studies.reading import LONGEST, MOST, reading
from truing.targets.local import LocalTarget
from truing.targets.protocols import Reply
from truing.trace import CaseSettings, Naming, between, trace_case
from truing.trace import case as cases
from truing.trace import named as naming_module
from truing.trace.contexts import Context
from truing.trace.labels import label
from truing.trace.named import grouped, influential, labelled
from truing.trace.supernodes import supernodes

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)
FEW = CaseSettings(neurons=24, check=False)
NAMING = Naming(passages()[:10], neurons=4, words=5, places=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("named")) as opened:
        yield opened


@pytest.fixture(scope="module")
def bare(tiny: LocalTarget, store: Store) -> CaseGraph:
    return trace_case(tiny, between(tiny, ASKED, ("True.",), ("False.",)), store, settings=FEW)


def traced(tiny: LocalTarget, store: Store, naming: Naming = NAMING) -> CaseGraph:
    context = between(tiny, ASKED, ("True.",), ("False.",))
    return trace_case(tiny, context, store, settings=FEW, naming=naming)


@pytest.fixture(scope="module")
def whole(tiny: LocalTarget, store: Store) -> CaseGraph:
    return traced(tiny, store)


class Namer:
    """A target that can be asked, and says the same of everything."""

    def __init__(self, *abilities: str) -> None:
        self.card = Target(name="namer", weights="", template="", dtype="", abilities=abilities)
        self.asked = 0

    def reply(self, conversations: Sequence[Any], *, max_tokens: int, tools: Any = ()) -> list[Reply]:
        self.asked += len(conversations)
        said = ["Short words.\nAnd more" if one[0].content.startswith("Each") else "no" for one in conversations]
        return [Reply(text, 1, True) for text in said]


def test_a_target_names_the_first_neurons_once(
    tiny: LocalTarget, store: Store, whole: CaseGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming_module, "CALLED", 2)
    context, namer = between(tiny, ASKED, ("True.",), ("False.",)), Namer("Chat")
    with pytest.raises(TargetError, match="has no ability Chat"):
        trace_case(tiny, context, store, settings=FEW, naming=NAMING, namer=Namer())
    found = trace_case(tiny, context, store, settings=FEW, naming=NAMING, namer=namer)
    assert [one.unit for one in found.names] == [one.unit for one in whole.labels[:2]]
    assert {one.name for one in found.names} == {"Short words"}
    for one in found.names:
        assert isinstance(one.score, Estimate)
        assert one.score.value == 0.5  # who says no to all, whatever texts strong places share
        assert 0 <= one.score.low < 0.4
        assert one.unclear == 0
    assert found.named_by == namer.card.id
    assert namer.card.id in found.parents
    assert found.model_copy(update={"names": (), "named_by": None, "parents": whole.parents}).id == whole.id
    asked = namer.asked
    assert trace_case(tiny, context, store, settings=FEW, naming=NAMING, namer=namer).id == found.id
    assert namer.asked == asked > 4


def circuit_in(store: Store, graph: Blob) -> Circuit:
    return Circuit.unpacked(store.blob_bytes(graph))


def test_the_strongest_neurons_have_the_labels_that_they_would_have_by_themselves(
    tiny: LocalTarget, store: Store, bare: CaseGraph, whole: CaseGraph
) -> None:
    circuit = circuit_in(store, whole.graph)
    neurons = circuit.of("neuron").nonzero()[0]
    influence: dict[str, float] = {}
    for node in neurons:
        unit = f"{circuit.layer_N[node]}.{circuit.index_N[node]}"
        influence[unit] = max(influence.get(unit, 0.0), float(circuit.influence_N[node]))
    best = sorted(influence, key=lambda unit: -influence[unit])[:4]
    assert len(influence) > 4
    assert [one.unit for one in whole.labels] == best
    alone = label(tiny, [(one.layer, one.index) for one in whole.labels], NAMING.texts, top=5)
    for kept, one in zip(whole.labels, alone, strict=True):
        assert (kept.score, kept.shuffled) == (one.score, one.shuffled)
        assert kept.tokens == one.tokens
        assert [place.activation for place in kept.strongest] == [c.activation for c in one.strongest[:3]]
        assert [place.token for place in kept.weakest] == [c.token for c in one.weakest[:3]]
        assert kept.strongest[0].activation > kept.weakest[0].activation
    assert bare.labels == bare.supernodes == ()
    assert (
        whole.model_copy(update={"labels": (), "labelled_from": None, "supernodes": (), "parents": bare.parents})
        == bare
    )
    assert whole.parents == (*bare.parents, bare.id)


def test_supernodes_are_those_of_the_graph_and_hold_every_neuron_once(
    store: Store, whole: CaseGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = circuit_in(store, whole.graph)
    neurons = int(circuit.of("neuron").sum())
    expected = supernodes(circuit, whole.segments, count=min(12, neurons // 4))
    assert len(expected) > 1
    assert [(one.name, one.nodes) for one in whole.supernodes] == [(one.name, one.members) for one in expected]
    members = sorted(node for one in whole.supernodes for node in one.nodes)
    assert members == circuit.of("neuron").nonzero()[0].tolist()
    assert len(grouped(whole, circuit, 1)) == 1
    monkeypatch.setattr(naming_module, "GROUPED", len(members) - 1)
    assert grouped(whole, circuit, 12) == ()


def test_labels_are_made_once_and_other_texts_ablate_nothing_again(
    tiny: LocalTarget, store: Store, whole: CaseGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise StoreError("done again")

    monkeypatch.setattr(cases, "account", gone)
    other = traced(tiny, store, Naming(passages()[:8], neurons=4, words=5, places=3))
    assert other.id != whole.id
    assert other.parents == whole.parents
    monkeypatch.setattr(naming_module, "label", gone)
    assert traced(tiny, store) == whole
    with pytest.raises(StoreError, match="done again"):
        traced(tiny, store, Naming(passages()[:6]))


def test_progress_is_shown_by_text(tiny: LocalTarget) -> None:
    class Watching:
        def __init__(self) -> None:
            self.begun: list[tuple[str, int]] = []
            self.done = 0

        def start(self, name: str, total: int) -> None:
            self.begun.append((name, total))

        def step(self, count: int = 1) -> None:
            self.done += count

        def say(self, line: str) -> None:
            raise AssertionError(line)

    watcher = Watching()
    label(tiny, [(0, 1)], passages()[:4], top=2, watcher=watcher)
    assert watcher.begun == [("trace: labels of neurons", watcher.done)]
    assert watcher.done >= 4


def test_a_record_from_before_there_were_labels_keeps_its_identity(bare: CaseGraph, whole: CaseGraph) -> None:
    assert not {"labels", "supernodes"} & bare.plain()["body"].keys()
    for one in (bare, whole):
        assert parse(one.canonical, id=one.id) == one


def test_what_texts_say_is_cut(tiny: LocalTarget) -> None:
    (one,) = label(tiny, [(0, 1)], passages()[:4], top=2)
    long = Context(0, "b" * 1000 + "end", "t" * 1000, "a" * 1000, 3.0)
    changed = type(one)(**{
        **{name: getattr(one, name) for name in type(one).__dataclass_fields__},
        "tokens": (("w" * 1000, 1.0),), "strongest": (long, long), "weakest": (long,),
    })  # fmt: skip
    kept = labelled(changed, 1)
    assert (len(kept.strongest), len(kept.tokens[0][0]), kept.tokens[0][0][-1]) == (1, 40, "…")
    assert kept.strongest[0].before == "b" * 57 + "end"
    assert (len(kept.strongest[0].token), len(kept.strongest[0].after)) == (40, 30)


@pytest.mark.parametrize("wrong", [{"neurons": 0}, {"neurons": 1025}, {"words": 17}, {"places": 9}, {"groups": 65}])
def test_naming_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"can be had"):
        Naming(("a", "b"), **wrong)


def test_too_few_texts_are_a_design_error(tiny: LocalTarget, store: Store, bare: CaseGraph) -> None:
    with pytest.raises(DesignError, match="give at least 2"):
        traced(tiny, store, Naming(("One.",)))
    assert influential(circuit_in(store, bare.graph), 3) == influential(circuit_in(store, bare.graph), 99)[:3]


def test_a_short_window_is_kept_to(tiny: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = label(tiny, [(0, 1)], passages()[:4], top=2)
    monkeypatch.setitem(tiny._limits, next(iter(tiny._limits)), 64)
    (found,) = label(tiny, [(0, 1)], passages()[:4], top=2)
    assert found != expected[0]


def test_the_first_of_what_targets_wrote_is_read_as_far_as_there_is_room(tmp_path: Path) -> None:
    def said(*texts: str) -> Replies:
        rows = tuple(Said(surface="s", cell="c", reply=text, outcome="o") for text in texts)
        return Replies(target="0" * 64, plot="p", rows=rows, tokens=3)

    with open_store(tmp_path) as store:
        bundled = reading(store)
        store.add(said("first", "x" * 3 * LONGEST))
        assert reading(store) == (*bundled, "first", "x" * LONGEST)
        store.add(said(*(f"{n:03d}" + "y" * LONGEST for n in range(50))))
        found = reading(store)
        assert sum(map(len, found[len(bundled) :])) == MOST
        store.add(said("last"))
        assert reading(store) == found
    assert len(bundled) >= 64
