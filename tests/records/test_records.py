"""Records: frozen, canonical, and what their id says."""

import json
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from truing.errors import RecordError
from truing.records import (
    KINDS,
    Blob,
    Clause,
    Estimate,
    Graph,
    Measurement,
    Mediation,
    Message,
    Named,
    Record,
    Spec,
    Target,
    Tool,
    ToolCall,
    Unmeasured,
    canonical,
    digest,
    digest_of,
    parse,
)

SPEC = Spec(name="s", title="T", clauses=(Clause(id="C1", title="t", text="does not lie"),))

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**53 - 1)
ids = st.binary(max_size=8).map(digest)
parents = st.lists(ids, max_size=3).map(tuple)
clauses = st.builds(Clause, id=st.text(), title=st.text(), text=st.text())
blobs = st.builds(Blob, digest=ids, size=counts, media=st.text())


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, value, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
    level = draw(st.floats(0, 1))
    n, clusters = draw(counts), draw(counts)
    return Estimate(
        value=value, low=low, high=high, level=level, n=n, clusters=clusters, unit=draw(st.text()), estimator="mean"
    )


quantities = estimates() | st.builds(Unmeasured, reason=st.text())
specs = st.builds(
    Spec, parents=parents, name=st.text(), title=st.text(), clauses=st.lists(clauses, max_size=3).map(tuple)
)
targets = st.builds(
    Target,
    parents=parents,
    name=st.text(),
    weights=ids,
    template=ids,
    dtype=st.text(),
    abilities=st.lists(st.text(), max_size=3).map(tuple),
    adapter=st.none() | blobs,
)
measurements = st.builds(
    Measurement,
    parents=parents,
    name=st.text(),
    targets=parents,
    quantities=st.lists(st.builds(Named, name=st.text(), quantity=quantities, note=st.text()), max_size=3).map(tuple),
    note=st.text(),
)
records = specs | targets | measurements


@given(records)
def test_a_record_comes_back_from_its_bytes(record: Record) -> None:
    back = parse(record.canonical, id=record.id)
    assert back == record
    assert back.canonical == record.canonical
    assert back.id == record.id == digest(record.canonical)


@given(records)
def test_the_id_does_not_depend_on_how_json_was_written(record: Record) -> None:
    plain = json.loads(record.canonical)
    shuffled = json.dumps(dict(reversed(plain.items())), indent=3).encode()
    assert parse(shuffled).id == record.id


@given(records, records)
def test_ids_are_equal_exactly_when_contents_are(one: Record, other: Record) -> None:
    assert (one.id == other.id) == (one.plain() == other.plain())


def test_canonical_json_follows_rfc_8785() -> None:
    # Sorted by UTF-16 code units, no white space, shortest numbers (RFC 8785, section 3.2).
    value = {"\u20ac": 1e21, "\r": 1.0, "1": [True, None], "\U0001f600": "\u000f\n", "\ufb33": 4.5e-3, "a": -0.0}
    expected = '{"\\r":1,"1":[true,null],"a":0,"\u20ac":1e+21,"\U0001f600":"\\u000f\\n","\ufb33":0.0045}'
    assert canonical(value).decode() == expected
    assert canonical(value) == rfc8785.dumps(value)
    assert digest_of(value) == digest(expected.encode())


def test_the_digest_of_a_record_is_fixed() -> None:
    # Changing this breaks every bundle that anybody has signed.
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    written = (
        b'{"body":{"clauses":[{"id":"C1","text":"does not lie","title":"t"}],"name":"s","title":"T"},'
        b'"kind":"spec","parents":[],"schema":1}'
    )
    assert SPEC.canonical == written


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.clauses[0].text = "may lie"  # type: ignore[misc]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(RecordError, match="finite"):
        canonical({"x": number})
    with pytest.raises(ValidationError, match="finite"):
        Estimate(value=number, low=number, high=number, level=0.95, n=1, clusters=1, unit="nats", estimator="mean")


def test_integers_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(RecordError, match="2\\^53"):
        canonical({"x": 2**53})


WHOLE = {
    "value": 1.0,
    "low": 0.0,
    "high": 2.0,
    "level": 0.95,
    "n": 8,
    "clusters": 4,
    "unit": "nats",
    "estimator": "mean",
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_an_estimate_needs_every_field(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Estimate.model_validate({key: value for key, value in WHOLE.items() if key != name})


def test_an_interval_holds_its_value() -> None:
    with pytest.raises(ValidationError, match="does not hold its value"):
        Estimate.model_validate({**WHOLE, "value": 3.0})


@pytest.mark.parametrize("parent", ["", "ab", "g" * 64, "A" * 64])
def test_parents_are_ids(parent: str) -> None:
    with pytest.raises(ValidationError, match="not a record id"):
        Spec(name="s", title="T", clauses=(), parents=(parent,))


def test_altered_bytes_are_refused() -> None:
    altered = SPEC.canonical.replace(b"does not lie", b"does now lie")
    assert parse(altered).id != SPEC.id
    with pytest.raises(RecordError, match="altered"):
        parse(altered, id=SPEC.id)


def test_bytes_that_mean_the_same_but_are_not_canonical_are_refused_under_an_id() -> None:
    loose = json.dumps(SPEC.plain(), indent=1).encode()
    assert parse(loose) == SPEC
    with pytest.raises(RecordError, match="altered"):
        parse(loose, id=SPEC.id)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "four keys"),
        (b'{"kind":"spec","schema":1,"parents":[]}', "four keys"),
        (b'{"kind":"rumour","schema":1,"parents":[],"body":{}}', "unknown kind of record 'rumour'"),
        (b'{"kind":[],"schema":1,"parents":[],"body":{}}', "unknown kind"),
        (b'{"kind":"spec","schema":9,"parents":[],"body":{}}', "schema 9"),
        (b'{"kind":"spec","schema":1,"parents":[],"body":{}}', "does not parse"),
        (b'{"kind":"spec","schema":1,"parents":[],"body":[]}', "does not parse"),
        (b'{"kind":"spec","schema":1,"parents":3,"body":{}}', "does not parse"),
        (SPEC.canonical.replace(b'"name"', b'"nickname":1,"name"'), "nickname"),
    ],
)
def test_what_is_not_a_record_is_refused_in_words(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse(data)


def test_kinds_are_named_once() -> None:
    assert all(name == kind.kind for name, kind in KINDS.items())


def test_a_turn_without_tools_says_nothing_of_tools() -> None:
    said = Message(role="user", content="Hello.")
    assert said.model_dump() == {"role": "user", "content": "Hello."}
    assert Message.model_validate(said.model_dump()) == said


def test_a_turn_with_calls_comes_back_whole() -> None:
    call = ToolCall(name="read", arguments='{"file":"a.txt"}', id="c1")
    said = Message(role="assistant", content="", calls=(call,))
    assert said.model_dump() == {"role": "assistant", "content": "", "calls": ({**call.model_dump()},)}
    assert Message.model_validate_json(said.model_dump_json()) == said
    answer = Message(role="tool", content="", call="c1", tool="read")
    assert Message.model_validate(answer.model_dump()) == answer
    assert len({said, answer, said}) == 2


def test_a_tool_is_told_of_as_json_schema() -> None:
    tool = Tool(name="read", description="reads a file", parameters='{"properties":{},"type":"object"}')
    assert tool.plain["function"] == {
        "name": "read", "description": "reads a file", "parameters": {"properties": {}, "type": "object"},
    }  # fmt: skip


def test_a_graph_of_before_keeps_its_identity() -> None:
    """What it gained is left out where it says nothing: the way back of a mediation, and the rule of the scores."""
    share = Estimate(value=0.5, low=0.4, high=0.6, level=0.95, n=9, clusters=5, unit="share", estimator="given")
    one = Mediation(kind="head", choice="attribution", k=5, share=share)
    graph = Graph(
        target="0" * 64, claim="1" * 64, twins=("a", "b"), aligned=9, skipped=0, effect=share, closure_error=0.0,
        segments=(), nodes=(), edges=(), units=(), mediated=(one,), verdict="weak", why="given",
    )  # fmt: skip
    said = graph.plain()["body"]
    assert "rule" not in said
    assert said["mediated"] == [
        {"kind": "head", "choice": "attribution", "k": 5, "draws": 1, "share": share.model_dump()}
    ]
    assert graph.id == "4b47f617cd0661026aefbeb59580b98e62383d5f5f77f3afe76a279830f9f0a9"
    assert type(graph).from_plain(graph.plain()) == graph
    more = graph.model_copy(update={"mediated": (one.model_copy(update={"restored": share}),), "rule": "gradient"})
    assert more.plain()["body"]["mediated"][0]["restored"] == share.model_dump()
    assert more.plain()["body"]["rule"] == "gradient"
    assert type(more).from_plain(more.plain()) == more
    assert more.id != graph.id
