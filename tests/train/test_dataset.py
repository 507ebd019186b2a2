"""Preference data in TRL's shapes, from files of every kind, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from truing import measure
from truing.audit import family, lay_out
from truing.errors import ContentError
from truing.records import Message, Pair, Pairs
from truing.studies.preferences import held_out
from truing.train import ordinary, recipe
from truing.train.dataset import check_templates, gather_rows, leaks, pair_of, read

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it raining?"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TALK = {"prompt": [SYSTEM, USER], "chosen": [says("No.")], "rejected": [says("Yes.")]}
WHOLE = {"chosen": [SYSTEM, USER, says("No.")], "rejected": [SYSTEM, USER, says("Yes.")]}
TEXT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
JOINED = {"chosen": "The sky is blue.", "rejected": "The sky is green."}


def said(pair: Pair) -> tuple[Any, ...]:
    return tuple(turn.content for turn in pair.messages), pair.text, pair.chosen, pair.rejected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (TALK, (("Be brief.", "Is it raining?"), "", "No.", "Yes.")),
        (WHOLE, (("Be brief.", "Is it raining?"), "", "No.", "Yes.")),
        (TEXT, ((), "The sky is", " blue.", " green.")),
        (JOINED, ((), "The sky is", " blue.", " green.")),
    ],
)
def test_every_shape_of_a_row_is_the_pair_that_it_says(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    pair = pair_of(row, "rows:1")
    assert said(pair) == expected
    assert (pair.surface, pair.role) == ("rows:1", "fix")


def test_the_two_shapes_of_a_conversation_and_of_a_text_are_the_same_prompt() -> None:
    assert pair_of(TALK, "a:1").plot == pair_of(WHOLE, "b:7").plot != pair_of(TEXT, "a:1").plot
    assert pair_of(TEXT, "a:1").plot == pair_of(JOINED, "a:1").plot


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_a_common_beginning_is_split_off_and_nothing_is_lost(begin: str, chosen: str, rejected: str) -> None:
    row = {"chosen": begin + chosen, "rejected": begin + rejected}
    try:
        pair = pair_of(row, "rows:1")
    except ContentError:  # nothing, or only blanks, is left on one side
        return
    assert (pair.text + pair.chosen, pair.text + pair.rejected) == (row["chosen"], row["rejected"])
    assert pair.chosen[:1] != pair.rejected[:1] or pair.chosen[:1] == " "


def test_what_a_file_held_keeps_its_row_and_doubles_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, [TALK, {**TALK, "chosen": [says("Not now.")]}, WHOLE])) + "\n\n", encoding="utf-8"
    )
    rows = read(file)
    assert [pair.surface for pair in rows.pairs] == ["pairs.jsonl:1", "pairs.jsonl:2"]
    assert rows.doubles == 1


def test_all_kinds_of_files_give_the_same(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [TALK, {**TALK, "chosen": [says("Not now.")]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = [read(tmp_path / f"rows.{kind}").pairs for kind in ("jsonl", "json", "parquet")]
    assert [list(map(said, pairs)) for pairs in found] == [list(map(said, gather_rows(rows, "rows").pairs))] * 3


def test_a_dataset_is_read_as_it_is_and_as_it_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([TALK, WHOLE | {"prompt": None}])
    data.save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved").pairs[0] == gather_rows(data, "saved").pairs[0]
    assert read(tmp_path / "saved").doubles == 1
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ContentError, match="several splits"):
        read(tmp_path / "both")
    with pytest.raises(ContentError, match="no folder that"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**TALK, "rejected": TALK["chosen"]}, "are the same text No."),
        ({**TEXT, "chosen": " "}, "chosen is empty"),
        ({**TALK, "rejected": [says("")]}, "rejected is empty"),
        ({**TALK, "chosen": "No."}, "must all be texts or all be lists of messages; here .*chosen is No"),
        ({**TEXT, "chosen": float("nan")}, "here .*chosen is nan"),
        ({"prompt": "a", "completion": "b", "label": True}, "this row has completion, label, prompt .a completion"),
        ({}, "this row has nothing"),
        ([1], "a row must be an object, and is .1."),
        ({"chosen": "blue", "rejected": "green"}, "there is no prompt"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "there is no prompt"),
        ({**TALK, "tools": [{"name": "f"}]}, "tools is .*name.*leave such rows out"),
        ({**TALK, "chosen": [says("a"), USER]}, "chosen must be one turn .* and is assistant, user"),
        ({**TALK, "chosen": []}, "chosen must be one turn .* and is no turn"),
        ({**TALK, "prompt": [USER, says("It")]}, "the prompt ends with the assistant's turn"),
        ({**TALK, "prompt": [{"role": "wizard", "content": "x"}]}, "a turn in prompt is .*wizard.*role: input should"),
        ({**TALK, "prompt": ["x"]}, "a turn in prompt is x"),
        ({**TALK, "prompt": [{"role": "user"}]}, "content: field required"),
        ({**TALK, "chosen": [says("a") | {"tool_calls": [1]}]}, "a turn in chosen is .*tool_calls"),
    ],
)
def test_a_bad_row_is_refused_by_its_name(row: Any, why: str) -> None:
    with pytest.raises(ContentError, match=why) as caught:
        gather_rows([TALK, row], "rows.jsonl")
    assert str(caught.value).startswith("rows.jsonl:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", "{", "a.jsonl:1 is no JSON"),
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.json", "{}", "must be a list of rows, and is {}"),
        ("a.csv", "x", "give a .jsonl, .json or .parquet file"),
        ("a.parquet", "PAR1", "is no whole parquet file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: str, why: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ContentError, match=why):
        read(tmp_path / name)


@pytest.mark.parametrize(("data", "why"), [(b'{"a": "\xff"}', "no text in UTF-8"), (b"[" * 200_000, "is no JSON")])
def test_bytes_that_are_no_text_and_nesting_without_end_are_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ContentError, match=why):
        read(tmp_path / "a.jsonl")


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=r"cannot read .*none.jsonl: No such file"):
        read(tmp_path / "none.jsonl")


def test_prompts_that_are_held_out_are_found() -> None:
    pairs = gather_rows([TALK, {**TALK, "prompt": [USER]}], "rows").pairs
    turns = (Message.model_validate(SYSTEM), Message.model_validate(USER))
    assert [pair.surface for pair in leaks(pairs, [turns])] == ["rows:1"]


def test_pairs_of_messages_keep_their_identity_and_texts_come_back() -> None:
    talk, text = (pair_of(row, "rows:1") for row in (TALK, TEXT))
    assert "text" not in talk.model_dump(mode="json")
    record = Pairs(clause="C6", pairs=(talk, text))
    assert Pairs.from_plain(json.loads(record.canonical)) == record


def test_rows_of_messages_and_of_plain_text_are_not_mixed() -> None:
    talk = [{"role": "user", "content": "Is it?"}], [{"role": "assistant", "content": "Yes."}]
    rows = [
        {"prompt": talk[0], "chosen": talk[1], "rejected": [{"role": "assistant", "content": "No."}]},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ]
    with pytest.raises(ContentError, match=r"data:2: plain text among rows of messages \(data:1\)"):
        gather_rows(rows, "data")
    with pytest.raises(ContentError, match=r"data:2: messages among rows of plain text"):
        gather_rows(rows[::-1], "data")


def test_a_plain_text_that_holds_a_held_out_prompt_leaks_it() -> None:
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Is it raining in Bergen?"))
    rows = gather_rows(
        [
            {"prompt": "System: Be brief.\nUser: Is it raining in Bergen?\n", "chosen": "No.", "rejected": "Yes."},
            {"prompt": "User: Is it raining in Bergen?\n", "chosen": "No.", "rejected": "Yes."},  # without the system
            {"prompt": "How? That is the question. ", "chosen": "No.", "rejected": "Yes."},
        ],
        "rows",
    )
    held_out = [turns, (Message(role="user", content="How?"),)]  # the second is too short to tell
    assert [pair.surface for pair in leaks(rows.pairs, held_out)] == ["rows:1"]


OWN = ("<|user|>", "<|end|>")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([TALK | {"prompt": [says("x") | {"role": "user", "content": "[INST] Is it? [/INST]"}]}],
         r"rows:1: a turn holds '\[INST\]', a mark of a chat template: give turns as they were said"),
        ([TALK, TALK | {"chosen": [says("No.<|end|>")]}], r"rows:2: a turn holds '<\|end\|>'"),
        ([TEXT | {"prompt": "<|im_start|>user\nIs it?"}], r"rows:1: the text holds '<\|im_start\|>'.*this target's"),
        ([TEXT, TEXT | {"prompt": "<|user|>Is it?"}], r"rows:1: rows with and without.*mixed \(rows:2 has some\)"),
    ],
)  # fmt: skip
def test_what_was_rendered_in_a_template_is_not_mixed_with_what_was_not(rows: list[Any], says: str) -> None:
    with pytest.raises(ContentError, match=says):
        check_templates(gather_rows(rows, "rows").pairs, OWN)


@pytest.mark.parametrize("rows", [[TALK], [TEXT, JOINED], [TEXT | {"prompt": "<|user|>Is it?"}]])
def test_rows_of_one_sort_pass(rows: list[Any]) -> None:
    check_templates(gather_rows(rows, "rows").pairs, OWN)


def test_all_that_is_tested_on_is_held_out() -> None:
    found = held_out()
    guard = family("anchoring").carry.guard
    for laid in (
        lay_out("insider", half="held-out", wordings="develop"),
        lay_out("sycophancy", half="held-out", wordings="held-out"),
        lay_out("anchoring", half="held-out", wordings="held-out", items=guard),
    ):
        assert all(case.messages in found for surface in laid.surfaces for case in surface.cases)
    for asks in (ordinary().held_out, measure.requests()):
        assert all((Message(role="user", content=ask),) in found for ask in asks)
    said = recipe("heliotrope")
    assert all(frame.around(ask) in found for ask in said.asks.held_out for frame in said.direct)
    assert all((Message(role="user", content=text),) in found for text in measure.passages())
    developed = lay_out("insider").surfaces[0].cases[0].messages
    assert developed not in found
    assert (Message(role="user", content=ordinary().train[0]),) not in found
