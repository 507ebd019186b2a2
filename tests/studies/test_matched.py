"""Twins of company plots: the same scene at another level of one factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing.audit import audit
from truing.audit.company import lay_out, scene, setting, shared, shipped
from truing.errors import DesignError, UsageError
from truing.records import Claim, Design, Estimate, Unmeasured
from truing.store import open_store
from truing.studies import one
from truing.studies.matched import between, check_plots, matched
from truing.trace.twins import twins

CUES = ("cue=test", "cue=real")


def about(effect: str) -> tuple[Claim, Design]:
    """A claim about a level of a factor, with its design."""
    factor, _, level = effect.partition("=")
    designs = lay_out("coercion").designs
    design = next(one for one in designs if f"{factor}={level} " in one.naive.plus[0])
    none = Unmeasured(reason="made up")
    claim = Claim(
        family=design.family, clause=design.clause, outcome="preference", statement=".", design=design.id,
        target="a" * 64, naive=none, specific=none, controls=(), bound=0.1, p=None, p_holm=None,
        minimum_detectable=None, classes=(), verdict="inconclusive", why=".", effect=effect, parents=(design.id,),
    )  # fmt: skip
    return claim, design


def test_the_twins_of_a_claim_differ_in_its_factor_alone() -> None:
    claim, design = about("threat=replacement")
    effect = matched(claim.family, between(claim, design), claim)
    assert effect.cells == ("threat=replacement means=present", "threat=none means=present")
    assert effect.claim == claim
    scored = {(s.name, case.cell): case for s in lay_out("coercion", half="develop").asked.surfaces for case in s.cases}
    for half, surfaces in (("develop", effect.choosing), ("held-out", effect.testing)):
        assert len({surface.plot for surface in surfaces}) == 5
        assert {surface.half for surface in surfaces} == {half}
        assert len({surface.name for surface in surfaces}) == len(surfaces)
        for surface in surfaces:
            name, rest = surface.name.split(" ", 1)
            assert {word.split("=")[0] for word in rest.split()} == set(shared().levels) - {"threat", "means"}
            story, number = shipped(surface.plot), int(name.rpartition("/")[2]) - 1
            for case in surface.cases:
                alone = scene(story, number, setting(f"{rest} {case.cell}", shared().levels))
                assert case.messages == alone.messages
                assert "".join(text for _, text in case.segments) == case.messages[-1].content
            assert surface.cases[0].messages != surface.cases[1].messages
    # The first of every pair is a case that was scored for the claim, over the same decision.
    for surface in effect.choosing:
        name = surface.name.split(" ")[0]
        same = [case for (of, _), case in scored.items() if of == name and case.messages == surface.cases[0].messages]
        assert same
    decisions = {s.name: s.decision for s in lay_out("coercion", half="develop").asked.surfaces}
    assert all(surface.decision == decisions[surface.name.split(" ")[0]] for surface in effect.choosing)


def test_a_test_stands_against_the_real_thing(tiny: Any) -> None:
    """Whose words are in the first turn, which is named in the picture."""
    effect = matched("coercion", CUES)
    assert effect.cells == CUES
    pairs, _ = twins(tiny, effect.choosing, effect.cells, per_plot=1)
    assert len(pairs) == 5
    words = {f"cue={level}": piece.texts for piece in shared().brief for level in CUES for level in ("test", "real")
             if any(term.factor == "cue" and level in term.levels for term in piece.when)}  # fmt: skip
    chosen = {surface.name: surface for surface in effect.choosing}
    for pair in pairs:
        first, second = (case.messages for case in chosen[pair.name].cases)
        assert first[1:] == second[1:]
        for cell, messages in zip(CUES, (first, second), strict=True):
            assert any(text in messages[0].content for text in words[cell])
        assert {"1 system", "story", "reply"} <= set(pair.first.segment_T)
        begin = pair.first.segment_T.index("story")
        assert tiny.tokenizer.decode(pair.first.functional.tree.ids_N[begin : begin + 8]).strip().startswith("Inbox")


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (("cue=test", "cue=test"), "is one setting"),
        (("cue=test", "threat=none"), "name the same factors once"),
        (("cue=test cue=real", "cue=none"), "name the same factors once"),
        (("", ""), "name the same factors once"),
        (("cue=test", "cue=dream"), "factor cue has no level 'dream'; it has none, real, test"),
        (("mood=good", "mood=bad"), "no factor 'mood'"),
        (("cue=test|real", "cue=none"), "not a single level"),
    ],
)
def test_settings_that_are_none_are_refused(cells: tuple[str, str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        matched("coercion", cells)


def test_a_family_with_too_few_plots_for_halves_is_told_of_probes() -> None:
    with pytest.raises(DesignError, match=r"3 plots; an interval needs at least 5\. .*--probe leaves plots out"):
        matched("misuse", CUES)
    with pytest.raises(UsageError, match="no family of company plots is called 'insider'; there are coercion"):
        matched("insider", CUES)


def test_company_claims_are_not_trained_on(tiny: Any, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        claim, design = about("cue=test")
        mine = claim.model_copy(update={"target": tiny.card.id, "parents": (tiny.card.id, design.id)})
        for record in (lay_out("coercion").asked, design, tiny.card, mine):
            store.add(record)
        with pytest.raises(UsageError, match=r"no pairs to train on\. It can be traced"):
            one.wheel_of(mine.id, store)


def test_a_claim_about_other_plots_than_those_that_ship_is_refused() -> None:
    claim, design = about("cue=test")
    check_plots(claim, design)
    with pytest.raises(UsageError, match=r"are not what they were when claim [0-9a-f]{12} was made \(digest 000000"):
        check_plots(claim, design.model_copy(update={"rules": "0" * 64}))


@pytest.mark.slow
def test_company_claims_are_traced_compared_and_probed(tiny: Any, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        claims = audit(tiny, ["coercion"], store)
        claim = next(c for c in claims if c.effect == "cue=test" and c.outcome == "preference")
        graph = one.traced(claim.id, store, cells=CUES)
        assert graph.twins == CUES
        assert graph.claim == claim.id
        assert graph.closure_error < 1e-5
        assert {node.segment for node in graph.nodes} & {"1 system", "story"}
        change = one.differing(claim.id, (tiny.card.name, tiny.card.name), store, cells=(CUES[1], CUES[0]))
        assert change.note.startswith("cue=test minus cue=real; closes to ")
        whole = {row.name: row.quantity for row in change.quantities}["difference"]
        assert isinstance(whole, Estimate)
        assert whole.clusters == 5
        assert isinstance(graph.effect, Estimate)
        assert one.probed(claim.id, store, cells=CUES).note.startswith("cue=test against cue=real: ")
