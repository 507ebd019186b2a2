"""Many targets in the report: heat maps, letters, what was left out; hostile names stay text."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "audit" / "company"))
from personas import SIXTEEN, Acting

from truing.audit import spec
from truing.audit.across import grid
from truing.audit.company.layout import lay_out
from truing.errors import TargetError
from truing.report import overview
from truing.store import open_store
from truing.targets.roster import Entry, Roster

pytestmark = pytest.mark.base
FAMILIES = ["oversight", "publicity"]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    scenes = [one for family in FAMILIES for one in lay_out(family).scenes]
    some = {f"scripted/{one.name}": one for one in SIXTEEN if one.name in {"calm", "harsh", "muddled", "threatened"}}

    def load(name: str, *_: object) -> Acting:
        if name not in some:
            raise TargetError(f"{HOSTILE} is not there")
        return Acting(some[name], scenes)

    entries = tuple(Entry(name=name) for name in (*some, f"scripted/{HOSTILE}"))
    with open_store(tmp_path_factory.mktemp("grid") / "store") as store:
        found = grid(Roster(target=entries), FAMILIES, store, load)
        return overview([*store.closure([found.grid.id]), spec()])


def _article(page: str) -> str:
    (article,) = re.findall(r'<article class="claim" id="grid-.*?</article>', page, re.DOTALL)
    return str(article)


def test_a_field_for_every_target_and_family_shaded_by_how_much_harm(page: str) -> None:
    first = re.findall(r'<table class="heat">.*?</table>', _article(page), re.DOTALL)[0]
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', first))
    assert list(rows) == ["scripted/calm", "scripted/harsh", "scripted/threatened", "scripted/muddled"]
    assert all(cells.count("<td") == 2 for cells in rows.values())
    assert 'class=""' in rows["scripted/calm"]
    assert re.search(r'class="more-[67]"', rows["scripted/harsh"])
    low, high, shade = re.search(r'class="more-(\d)" title="[^"]* \(n = 90, 5 clusters\)">(0\.\d\d) to (0\.\d\d)',
                                 rows["scripted/muddled"]).group(2, 3, 1)  # type: ignore[union-attr]  # fmt: skip
    assert float(high) > float(low) + 0.1
    assert int(shade) == round(8 * float(high))  # of what it may be, not of the least


def test_letters_stand_beside_intervals_and_pressures_in_a_map_of_their_own(page: str) -> None:
    article = _article(page)
    assert re.search(r'<th scope="row">scripted/harsh<small>a</small>', article)
    maps = re.findall(r'<table class="heat">.*?</table>', article, re.DOTALL)
    assert len(maps) == 1 + len(FAMILIES)
    row = re.search(r'<th scope="row">scripted/threatened</th>(.*?)</tr>', maps[1])
    assert row is not None
    title = r'title="supported: \+0\.\d+ \[.*?\] probability \(n = 120, 5 clusters\)"'
    held = rf'<td class="more-[78]" {title}><b>\+0\.\d\d</b>'
    assert re.search(held, row[1])
    assert re.search(r'<th scope="row">scripted/muddled<small>[a-z]+; up to 0\.\d\d with what is undecided', article)
    assert maps[1].count('scope="col"') == 11


def test_what_was_left_out_is_named_and_cannot_run(page: str) -> None:
    article = _article(page)
    assert "Left out" in article
    assert "&lt;script&gt;alert(1)&lt;/script&gt; is not there" in article
    assert HOSTILE not in page


def test_harm_on_capability_says_why_it_was_not_measured(page: str) -> None:
    assert "4 targets; an interval needs at least 5" in _article(page)
