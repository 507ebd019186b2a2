"""The content that ships lays out; content that is wrong is refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import product
from math import isclose
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.audit import FAMILIES, battery, clause, family, lay_out, narrowed, spec
from truing.errors import ContentError, DesignError, UsageError
from truing.records import Design, digest_of
from truing.records.content import folder, read_all
from truing.share.container import MAX_RECORD
from truing.stats import MIN_CLUSTERS, contrast, has

HALVES = ("develop", "held-out")
Edit = Callable[[str, str, str], None]


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the content that ships, which the loader reads instead."""
    copy = tmp_path / "content"
    shutil.copytree(folder(battery.PACKAGE), copy)
    monkeypatch.setattr(battery, "folder", lambda _package, *parts: copy.joinpath(*parts))
    return copy


@pytest.fixture
def edit(content: Path) -> Edit:
    """Replace the first place that a pattern matches in a content file."""

    def replace(name: str, pattern: str, by: str) -> None:
        path = content / name
        text, count = re.subn(pattern, lambda _: by, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} is not in {name}"
        path.write_text(text, encoding="utf-8")

    return replace


# -- what ships --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "half", "wordings"), list(product(FAMILIES, HALVES, HALVES)))
def test_every_family_lays_out_in_both_halves_with_both_wordings(name: str, half: str, wordings: str) -> None:
    laid = lay_out(name, half=half, wordings=wordings)
    assert len({surface.plot for surface in laid.surfaces}) >= MIN_CLUSTERS
    assert {surface.half for surface in laid.surfaces} == {half}
    assert len({surface.name for surface in laid.surfaces}) == len(laid.surfaces)
    prompts = [(case.messages, surface.decision.actions) for surface in laid.surfaces for case in surface.cases]
    assert len(set(prompts)) == len(prompts)
    assert laid.design.surfaces == tuple(digest_of(s.model_dump(mode="json")) for s in laid.surfaces)
    assert laid.asked.surfaces == laid.surfaces
    assert laid.design.parents == (laid.asked.id,)
    assert len(laid.asked.canonical) < MAX_RECORD  # it goes into bundles
    for surface in laid.surfaces:
        actions = (*surface.decision.actions, *surface.decision.alternatives)
        assert len(set(actions)) == len(actions)
        for case in surface.cases:
            assert "".join(text for _, text in case.segments) == case.messages[-1].content
            assert not re.search(r"\{\w*\}|^\s|\s$|  ", case.messages[-1].content), f"{surface.name} {case.cell}"
        assert not any(re.search(r"[{}]", text) for text in actions)
        for rule in (laid.design.naive, laid.design.specific, *laid.design.controls):
            contrast({case.cell: 0.0 for case in surface.cases}, rule)  # every term agrees with some cell
    assert (
        any(laid.family.carry.twins[0] == case.cell for case in laid.surfaces[0].cases) or laid.family.kind == "plots"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_laying_out_again_gives_the_same_design_and_the_halves_share_nothing(name: str) -> None:
    designs: dict[tuple[str, str], Design] = {}
    plots: dict[str, set[str]] = {}
    for half, wordings in product(HALVES, HALVES):
        laid = lay_out(name, half=half, wordings=wordings)
        designs[half, wordings] = laid.design
        plots.setdefault(half, set()).update(surface.plot for surface in laid.surfaces)
        assert lay_out(name, half=half, wordings=wordings).design.id == laid.design.id
    assert len({design.id for design in designs.values()}) == 4
    assert not plots["develop"] & plots["held-out"]
    surfaces = [surface for design in designs.values() for surface in design.surfaces]
    assert len(set(surfaces)) == len(surfaces)


def test_there_is_enough_content() -> None:
    topics = read_all(folder(battery.PACKAGE, "facts"), battery.Topic, schema="topic/1")
    facts = [fact for topic in topics for fact in topic.facts]
    assert len(topics) >= 12
    assert len(facts) >= 150
    assert len({fact.subject for fact in facts}) == len(facts)
    for fact in facts:
        right, wrong = {fact.answer, *fact.also}, {fact.wrong, *fact.also_wrong}
        assert not {word.lower() for word in right} & {word.lower() for word in wrong}, fact.subject
    plots = read_all(folder(battery.PACKAGE, "insider"), battery.Plot, schema="plot/1")
    assert len(plots) >= 6
    made_up = read_all(folder(battery.PACKAGE, "made_up"), battery.Topic, schema="topic/1")
    for group in (topics, plots, made_up):
        assert len({item.id for item in group}) == len(group)
        for half in HALVES:
            assert sum(item.half == half for item in group) >= MIN_CLUSTERS


@pytest.mark.parametrize("name", FAMILIES)
def test_families_cite_clauses_that_the_spec_has(name: str) -> None:
    rules = family(name)
    assert rules.id == name
    assert clause(spec(), rules.clause).id == rules.clause
    assert rules.bounds.preference > 0
    assert rules.bounds.behaviour > 0
    if rules.carry.guard:
        for half in HALVES:
            assert lay_out(name, half=half, items=rules.carry.guard).surfaces


def test_fewer_facts_on_request_and_a_statement_about_something_else() -> None:
    laid = lay_out("anchoring", most=2)
    assert len(laid.groups) == 2 * len({surface.plot for surface in laid.surfaces})
    for surface in laid.surfaces:
        cells = {case.cell: case.messages[-1].content for case in surface.cases}
        unrelated = cells["statement=unrelated"].removesuffix(cells["statement=none"])
        assert unrelated != cells["statement=unrelated"]
        assert unrelated not in cells["statement=told-false"]


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_a_battery_in_some_of_its_cells() -> None:
    whole = lay_out("anchoring")
    some = lay_out("anchoring", cells=("statement=none", "statement=told-false"))
    for surface, narrow in zip(whole.surfaces, some.surfaces, strict=True):
        assert narrow.cases == tuple(c for c in surface.cases if c.cell in {"statement=none", "statement=told-false"})
        assert len(narrow.cases) == 2
        assert narrow.digest != surface.digest
    assert some.design.specific == whole.design.specific
    assert {rule.name for rule in whole.design.controls} > {rule.name for rule in some.design.controls}
    assert all(has({case.cell: 0.0 for case in some.surfaces[0].cases}, rule) for rule in some.design.controls)
    # A term names some factors; every cell that agrees with it stays.
    threatened = lay_out("insider", cells=("threat=present",))
    assert all("threat=present" in case.cell for surface in threatened.surfaces for case in surface.cases)
    assert len(threatened.surfaces[0].cases) * 2 == len(lay_out("insider").surfaces[0].cases)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown family 'insidr'.*insider, sycophancy, anchoring"):
        lay_out("insidr")
    with pytest.raises(UsageError, match=r"no clause 'C99'.*C1, C2"):
        clause(spec(), "C99")


def test_a_term_that_no_cell_agrees_with_is_refused() -> None:
    with pytest.raises(DesignError, match="no cell agrees with 'statement=never'; it has "):
        lay_out("anchoring", cells=("statement=none", "statement=never"))


def test_an_unknown_folder_of_items_is_refused() -> None:
    with pytest.raises(ContentError, match=r"no \.yaml files in .*nowhere"):
        lay_out("sycophancy", items="nowhere")


def test_a_user_brings_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: spec/1\nid: mine\ntitle: T\nclauses: [{id: A1, title: t, text: does not lie}]\n", encoding="utf-8"
    )
    assert clause(spec(path), "A1").text == "does not lie"
    path.write_text(path.read_text(encoding="utf-8").replace("]", ", {id: A1, title: u, text: v}]"), encoding="utf-8")
    with pytest.raises(ContentError, match=r"numbers a clause twice: A1"):
        spec(path)
    with pytest.raises(ContentError, match=r"no content file at .*absent"):
        spec(tmp_path / "absent.yaml")


# -- wrong content -----------------------------------------------------------------------------------------------------


FERRY = "insider/night-ferry.yaml"
WRONG = {
    "unknown key": (FERRY, "^half:", "colour: blue\nhalf:", r"night-ferry\.yaml.*colour.*blue"),
    "missing key": (FERRY, "^secret:.*$", "", r"night-ferry\.yaml.*secret"),
    "unknown half": (FERRY, "^half:.*$", "half: other", r"night-ferry\.yaml.*half.*other"),
    "not YAML": (FERRY, "^half:", "half: [", r"night-ferry\.yaml is not YAML"),
    "other schema": (FERRY, "^schema:.*$", "schema: plot/9", r"night-ferry\.yaml.*schema: plot/1"),
    "placeholder in the story": (FERRY, r"\{routine\}", "{rutine}", r"night-ferry.*\{rutine\}.*routine"),
    "placeholder in an action": (FERRY, r"today, \{first\}", "today, {frist}", r"ferry actions\.coerce.*\{frist\}"),
    "placeholder for the system": (FERRY, r"You are \{agent\}", "You are {agnet}", r"night-ferry system.*\{agnet\}"),
    "factor without a place": (FERRY, r"^  \{threat\}$", "", "night-ferry/1 .*same prompt and actions"),
    "missing factor": (FERRY, "^  threat:", "  menace:", r"night-ferry has factors.*menace.*threat"),
    "one wording": (FERRY, r"  comply:\n.*\n.*\n", "  comply: ['Yes.']\n", r"ferry: actions\.comply has 1 wordings"),
    "missing actions": (FERRY, "^  comply:", "  obey:", r"night-ferry: actions\.comply has 0 wordings"),
    "address": (FERRY, "facilities@", "chief@ferries.com, facilities@", r"night-ferry/1.*chief@ferries\.com"),
    "address in an action": (FERRY, r"To: \{target\}", "To: chief@ferries.com", r"night-ferry/1.*chief@ferries\.com"),
    "placeholder in a wording": (
        "families/sycophancy.yaml", r"that \{subject\}", "that {sbject}", r"sycophancy.*topic.*sure.*\{sbject\}",
    ),
    "unknown key of a family": ("families/sycophancy.yaml", "^per_topic", "per_plot", r"sycophancy\.yaml.*per_plot"),
    "unknown key of a fact": ("facts/animals.yaml", "wrong:", "incorrect:", r"animals\.yaml.*facts\.0.*incorrect"),
    "no facts": ("facts/animals.yaml", r"facts:(?s:.*)", "facts: []", r"animals\.yaml.*facts"),
    "number for a word": ("facts/animals.yaml", '"kitten"', "7", r"animals\.yaml.*facts\.0\.answer.*7"),
    "turn": ("neutral.yaml", "role: user", "role: robot", r"neutral\.yaml.*role.*robot"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content_is_refused_by_name(what: str, edit: Edit) -> None:
    name, pattern, by, message = WRONG[what]
    edit(name, pattern, by)
    halves = re.findall(r"half: (develop|held-out)", (folder(battery.PACKAGE) / name).read_text(encoding="utf-8"))
    laid = "insider" if name.startswith("insider") else "sycophancy"
    wordings = "held-out" if what == "one wording" else "develop"
    with pytest.raises(ContentError, match=f"(?s){message}"):
        lay_out(laid, half=halves[0] if halves else "develop", wordings=wordings)


def test_two_surfaces_alike_are_refused(content: Path) -> None:
    path = content / "insider" / "night-ferry.yaml"
    text = path.read_text(encoding="utf-8")
    surfaces = re.search(r"^surfaces:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert surfaces
    path.write_text(text.replace(surfaces[1], surfaces[1] * 2), encoding="utf-8")
    half = "develop" if "half: develop" in text else "held-out"
    with pytest.raises(ContentError, match=r"night-ferry/3 .* gives the same prompt and actions as night-ferry/1 "):
        lay_out("insider", half=half)


def test_a_fact_given_twice_is_refused(edit: Edit) -> None:
    edit(
        "facts/animals.yaml",
        'a baby cow", answer: "calf", wrong: "lamb"',
        'a baby cat", answer: "kitten", wrong: "puppy"',
    )
    with pytest.raises(ContentError, match=r"animals/01.* same prompt and actions as animals/00"):
        lay_out("sycophancy")


def test_two_plots_of_one_name_are_refused(content: Path) -> None:
    plots = [
        path
        for path in sorted((content / "insider").glob("*.yaml"))
        if "half: develop" in path.read_text(encoding="utf-8")
    ]
    text = plots[1].read_text(encoding="utf-8")
    plots[1].write_text(re.sub("(?m)^id: .*$", f"id: {plots[0].stem}", text), encoding="utf-8")
    with pytest.raises(ContentError, match=f"{plots[0].stem}/1"):
        lay_out("insider")


def test_too_few_plots_are_no_design(content: Path) -> None:
    for path in sorted((content / "insider").glob("*.yaml"))[MIN_CLUSTERS - 1 :]:
        path.unlink()
    plots = len([p for p in (content / "insider").glob("*.yaml") if "half: develop" in p.read_text(encoding="utf-8")])
    with pytest.raises(
        DesignError, match=rf"insider, half develop: {plots} plots; an interval needs at least {MIN_CLUSTERS}"
    ):
        lay_out("insider")


# -- contrasts ---------------------------------------------------------------------------------------------------------

values = st.floats(-10, 10)
RULES = {name: family(name) for name in FAMILIES}
CELLS = {name: [case.cell for case in lay_out(name, most=1).surfaces[0].cases] for name in FAMILIES}
INSIDER = RULES["insider"]


@given(
    st.dictionaries(
        st.sampled_from(sorted({s for c in CELLS["insider"] for s in c.split()})), values, min_size=6, max_size=6
    ),
    values,
)
def test_the_interaction_of_additive_cells_is_zero(parts: dict[str, float], level: float) -> None:
    cells = {cell: level + sum(parts[setting] for setting in cell.split()) for cell in CELLS["insider"]}
    assert isclose(contrast(cells, INSIDER.contrasts.specific), 0, abs_tol=1e-9)
    expected = parts["threat=present"] - parts["threat=absent"]
    assert isclose(contrast(cells, INSIDER.contrasts.naive), expected, abs_tol=1e-9)
    assert isclose(contrast(cells, INSIDER.contrasts.controls[0]), expected, abs_tol=1e-9)


@given(values, values)
def test_an_interaction_is_what_leverage_adds_to_the_threat(effect: float, level: float) -> None:
    cells = {
        cell: level + effect * ("threat=present" in cell and "leverage=present" in cell) for cell in CELLS["insider"]
    }
    assert isclose(contrast(cells, INSIDER.contrasts.specific), effect, abs_tol=1e-9)


@given(st.sampled_from(FAMILIES), st.data())
def test_contrasts_are_linear_and_ignore_a_common_level(name: str, data: st.DataObject) -> None:
    rules = RULES[name].contrasts
    cells = CELLS[name]
    one, other = (dict(zip(cells, data.draw(st.tuples(*[values] * len(cells))), strict=True)) for _ in range(2))
    level = data.draw(values)
    for rule in (rules.naive, rules.specific, *rules.controls):
        summed = contrast({cell: one[cell] + 2 * other[cell] + level for cell in cells}, rule)
        assert isclose(summed, contrast(one, rule) + 2 * contrast(other, rule), abs_tol=1e-9)


def test_a_contrast_names_the_cell_that_is_missing() -> None:
    with pytest.raises(KeyError, match="threat=present leverage=present"):
        contrast({"threat=absent leverage=present": 0.0}, INSIDER.contrasts.naive)


def test_a_surface_in_fewer_cells_has_a_digest_of_its_own() -> None:
    """Units of work are told apart by it."""
    whole = lay_out("insider").surfaces[0]
    before = whole.digest
    some = narrowed(whole, (whole.cases[0].cell,))
    assert some.cases == whole.cases[:1]
    assert some.digest == digest_of(some.model_dump(mode="json")) != before
    assert (whole.digest, whole.model_copy().digest) == (before, before)
