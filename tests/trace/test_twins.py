"""Twins: two cells of a surface, position against position."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.audit import FAMILIES, family, lay_out
from truing.errors import DesignError, UsageError
from truing.records import Decision
from truing.targets.local import LocalTarget
from truing.trace.twins import FRAME, REPLY, _align, by_plot, case_of, spread, twins

ids = st.lists(st.integers(0, 2), max_size=9)


@given(ids, ids, ids, ids)
def test_prompts_of_unequal_length_align_by_beginning_and_end(
    start: list[int], left: list[int], right: list[int], end: list[int]
) -> None:
    a, b = [*start, *left, *end], [*start, *right, *end]
    onto, taken = _align(a, b)
    assert [a[i] for i in onto] == [b[i] for i in taken] or len(a) == len(b)
    assert len(onto) == len(taken)
    assert onto == sorted(set(onto))
    assert taken == sorted(set(taken))
    if len(a) == len(b):
        assert onto == taken == list(range(len(a)))
    else:
        # Never less than what is known to be common, and nothing is used twice where one is the other's part.
        assert len(onto) >= min(len(start) + len(end), len(a), len(b))
        common = len(onto)
        gap = [i for i in range(len(a)) if i not in onto]
        assert gap == list(range(gap[0], gap[0] + len(gap))) if gap else common == len(a)


def test_a_reply_that_joins_with_the_prompt_is_refused_in_either_cell(tiny: Any) -> None:
    """An effect, of a claim or planted, is read in tokens that the model would see."""
    battery = lay_out("anchoring", most=1)
    cells = battery.family.carry.twins
    plain = tiny.prompt_text(case_of(battery.surfaces[0], cells[1]).messages)
    word = next(word for word in ("the", "and", "you") if len(tiny.encoded(word)) == 1)

    class Joining:
        """Ends the prompt of one cell with the beginning of a word."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny.tokenizer, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tiny.tokenizer(*args, **kwargs)

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
            text: str = tiny.tokenizer.apply_chat_template(*args, **kwargs)
            return f"{text}{word[:-1]}" if text == plain else text

    joining = LocalTarget("local/joining", tiny.model, Joining(), weights="7" * 64)
    ends = Decision(actions=(word[-1],), alternatives=("no",))
    altered = [surface.model_copy(update={"decision": ends}) for surface in battery.surfaces]
    twins(tiny, altered, cells, per_plot=1)
    with pytest.raises(UsageError, match=rf"'{word[-1]}' does not begin .* the token '{word}' there, which is made of"):
        twins(joining, altered, cells, per_plot=1)


def test_a_plain_case_of_alignment() -> None:
    assert _align([1, 2, 3, 9, 9], [1, 7, 7, 7, 9, 9]) == ([0, 3, 4], [0, 4, 5])
    assert _align([1, 1], [1, 1, 1]) == ([0, 1], [0, 1])  # no position of the longer one is taken twice
    assert _align([1, 2], [3, 4]) == ([0, 1], [0, 1])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_twins_that_it_names(tiny: Any, name: str) -> None:
    battery = lay_out(name, most=1)
    found, skipped = twins(tiny, battery.surfaces, battery.family.carry.twins, per_plot=1)
    assert skipped < len(battery.surfaces)
    assert len(found) == len({twin.plot for twin in found}) >= 5
    for twin in found:
        surface = next(s for s in battery.surfaces if s.name == twin.name)
        for side, cell in zip((twin.first, twin.second), battery.family.carry.twins, strict=True):
            case = next(c for c in surface.cases if set(c.cell.split()) == set(cell.split()))
            assert side.functional.tree.ids_N[: side.functional.prompt].tolist() == tiny.prompt_ids(case.messages)
        replies = [side.functional.tree.ids_N[side.functional.prompt :] for side in (twin.first, twin.second)]
        assert torch.equal(*replies)
        assert twin.onto_T[-len(replies[0]) :].tolist() == list(
            range(twin.first.functional.prompt, len(twin.first.functional.tree))
        )


def test_segments_name_the_parts_of_the_prompt(tiny: Any) -> None:
    battery = lay_out("anchoring", most=1)
    (twin, *_), _ = twins(tiny, battery.surfaces, battery.family.carry.twins, per_plot=1)
    surface = next(s for s in battery.surfaces if s.name == twin.name)
    case = next(c for c in surface.cases if c.cell == battery.family.carry.twins[0])
    side = twin.first
    assert len(side.segment_T) == len(side.functional.tree)
    (statement, said), (ask, asked) = case.segments
    whole, content = tiny.prompt_text(case.messages), case.messages[-1].content
    assert content == said + asked
    begin = whole.index(content)
    spans = {
        FRAME: [(0, begin)],
        statement: [(begin, begin + len(said))],
        ask: [(begin + len(said), begin + len(content))],
        REPLY: [(begin + len(content), len(whole))],
    }
    # A token that holds the blank between two parts may count to either, so it must touch the part that it counts to.
    for (start, end), label in zip(tiny.prompt_offsets(case.messages), side.segment_T, strict=False):
        assert any(start < right and left < end for left, right in spans[label])
    assert set(side.segment_T) == set(spans)
    assert set(side.segment_T[side.functional.prompt :]) == {REPLY}


def test_twins_of_equal_length_come_first(tiny: Any) -> None:
    battery = lay_out("anchoring")
    found, skipped = twins(tiny, battery.surfaces, battery.family.carry.twins, per_plot=3)
    assert all(twin.same_length for twin in found)
    plots = [twin.plot for twin in found]
    assert max(plots.count(plot) for plot in plots) == 3
    assert skipped > 0
    unequal = [s for s in battery.surfaces if not _equal(tiny, s, battery.family.carry.twins)]
    assert skipped == len(unequal)
    # Where none are of equal length, those that align by beginning and end are taken, and none is skipped.
    others, none = twins(tiny, unequal, battery.family.carry.twins, per_plot=1)
    assert none == 0
    assert others
    for twin in others:
        a, b = twin.first.functional.tree.ids_N, twin.second.functional.tree.ids_N
        assert not twin.same_length
        assert torch.equal(a[twin.onto_T], b[twin.from_T])
        assert 0 < len(twin.onto_T) < max(len(a), len(b))


def test_the_twins_of_a_plot_are_spread_over_its_facts() -> None:
    held = lay_out("anchoring", half="held-out", wordings="held-out")
    for members in by_plot(held.surfaces).values():
        two = spread(members, 2)
        assert two == [members[0], members[-1]]
        assert two[0].name.rsplit("/", 1)[0] != two[1].name.rsplit("/", 1)[0]  # two facts, not one in two wordings
        assert spread(members, 1) == [members[0]]
        assert spread(members, len(members) + 1) == list(members)
        for count in range(2, len(members) + 1):
            places = [members.index(one) for one in spread(members, count)]
            assert len(places) == count
            assert places == sorted(set(places))
            gaps = {b - a for a, b in pairwise(places)}
            assert max(gaps) - min(gaps) <= 1


def _equal(target: Any, surface: Any, cells: tuple[str, str]) -> bool:
    lengths = {len(target.prompt_ids(next(c for c in surface.cases if c.cell == cell).messages)) for cell in cells}
    return len(lengths) == 1


def test_too_few_plots_are_a_design_error(tiny: Any) -> None:
    battery = lay_out("anchoring", most=1)
    four = sorted({s.plot for s in battery.surfaces})[:4]
    some = [s for s in battery.surfaces if s.plot in four]
    with pytest.raises(DesignError, match="twins in 4 plots; tracing an effect needs at least 5"):
        twins(tiny, some, battery.family.carry.twins, per_plot=3)


def test_an_unknown_cell_is_a_design_error(tiny: Any) -> None:
    battery = lay_out("anchoring", most=1)
    with pytest.raises(DesignError, match="no cell 'statement=never'; it has 'statement=none'"):
        twins(tiny, battery.surfaces, ("statement=never", "statement=told-true"), per_plot=1)
    assert family("insider").carry.twins  # its twins name their factors in another order than its cells do
