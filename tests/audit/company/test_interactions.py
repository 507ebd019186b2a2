"""Declared interactions: read, refused where they could be something else, and recovered where they were planted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from personas import Acting, Persona

from truing.audit.claims import Observed, estimate, judged
from truing.audit.company import aliasing
from truing.audit.company.effects import behaviours, preferences
from truing.audit.company.interactions import Interaction, contrasts, interaction
from truing.audit.company.layout import lay_out
from truing.audit.company.plans import Plan, factors, runs_of
from truing.audit.company.plot import shared
from truing.audit.company.prospect import prospect
from truing.audit.company.run import Way, episodes
from truing.audit.company.scene import Scene
from truing.errors import UsageError
from truing.records import Estimate, Row, Scores
from truing.stats import agrees, contrast, span
from truing.stats.contrasts import possible
from truing.stats.designs import relabelled
from truing.store import open_store

BOTH = interaction("threat=replacement x conflict=present")
PLAN = Plan("fraction", 144, interactions=(BOTH,))
NAMES, SIZES = list(factors()), list(factors().values())
LEVELS = shared().levels


def test_an_interaction_is_the_same_in_whatever_order_it_is_written() -> None:
    assert interaction("conflict=present  x threat=replacement") == BOTH
    assert str(BOTH) == "threat=replacement x conflict=present"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threat=replacement", "write two levels"),
        ("threat=replacement x conflict=present x nudge=present", "write two levels"),
        ("threat=replacement x threat=restriction", "both are levels of threat"),
        ("threat=none x conflict=present", "threat=none is the baseline; take one of restriction, replacement"),
        ("threat=replacement x means=present", "for its interaction with means already"),
        ("threat=huge x conflict=present", "factor threat has no level 'huge'"),
        ("threats=huge x conflict=present", "no factor 'threats'"),
        ("threat!=none x conflict=present", "is not a single level"),
        ("threat=none conflict=present x nudge=present", "is not a single level"),
        (" x conflict=present", "'' is not a single level"),
    ],
)
def test_what_is_no_interaction_is_said_in_words(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        interaction(text)
    assert says in str(error.value)
    assert repr(text) in str(error.value)


def test_it_is_a_difference_of_differences_and_cells_without_the_means_are_known() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(3, 2, 2))  # threat, conflict, means
    cells = {
        f"threat={a} conflict={b} means={c} nudge={d}": table[i, j, k]
        for i, a in enumerate(LEVELS["threat"]) for j, b in enumerate(LEVELS["conflict"])
        for k, c in enumerate(LEVELS["means"]) for d in LEVELS["nudge"]
    }  # fmt: skip
    there, absent = ((table[2, 1, k] - table[0, 1, k]) - (table[2, 0, k] - table[0, 0, k]) for k in (1, 0))
    found = [contrast(cells, rule) for rule in contrasts(BOTH)]
    assert found == pytest.approx([there, there - absent, absent])
    assert span(possible(contrasts(BOTH)[1], "means=absent")) == (-2, 2)


def halves(plan: Plan) -> list[list[str]]:
    """The cells of a plot by the level of the means."""
    cells = [
        " ".join(f"{name}={row[k]}" if name == "surface" else f"{name}={LEVELS[name][row[k]]}"
                 for k, name in enumerate(NAMES))
        for row in runs_of(plan)
    ]  # fmt: skip
    return [[cell for cell in cells if f"means={level}" in cell] for level in ("present", "absent")]


def held(plan: Plan, one: Interaction) -> float:
    """The most that the contrast of an interaction takes from main effects and other pairs, each of size one."""
    most = 0.0
    for rule, cells in zip(contrasts(one)[::2], halves(plan), strict=True):
        rest = [name for name in NAMES if name != "means"]
        for size in (1, 2):
            for names in combinations(rest, size):
                if set(names) == set(one.factors):
                    continue
                settings = {tuple(word for word in cell.split() if word.partition("=")[0] in names) for cell in cells}
                for level in settings:
                    value = {cell: float(set(level) <= set(cell.split())) for cell in cells}
                    most = max(most, abs(contrast(value, rule)))
    return most


@pytest.mark.parametrize("plan", [Plan(), Plan("array"), Plan("crossed", 72), Plan("fraction", 72)])
def test_a_design_that_aliases_an_interaction_refuses_it_and_names_one_that_does_not(plan: Plan) -> None:
    assert held(plan, BOTH) > 0.1
    with pytest.raises(UsageError, match=r"is aliased with .*\(\d\.\d\d\).*: .* --design fraction --runs 144, and"):
        lay_out("oversight", plan=Plan(plan.shape, plan.runs, interactions=(BOTH,)))


@pytest.mark.parametrize(
    ("text", "runs"),
    [(str(BOTH), 144), ("conflict=present x nudge=present", 288), ("threat=restriction x escape=ally", 648)],
)
def test_what_is_taken_for_clear_takes_nothing_from_any_other_effect(text: str, runs: int) -> None:
    one = interaction(text)
    assert held(Plan("fraction", runs), one) < 1e-9
    aliasing.refuse(Plan("fraction", runs, interactions=(one,)))
    with pytest.raises(UsageError, match=f"--design fraction --runs {runs}, and"):
        aliasing.refuse(Plan("fraction", 72, interactions=(one,)))


def test_a_design_without_some_of_its_cells_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a design of 8 runs \(random\) leaves out some of its cells"):
        aliasing.refuse(Plan("random", 8, interactions=(BOTH,)))


def test_declared_interactions_are_designs_of_their_own_and_change_no_other() -> None:
    bare, laid = (lay_out("oversight", plan=plan) for plan in (Plan("fraction", 144), PLAN))
    assert laid.designs[:-1] == bare.designs
    assert laid.designs[-1].naive.name.startswith(str(BOTH))
    assert "threat=replacement and conflict=present together" in laid.designs[-1].question
    assert laid.designs[-1].parents == (laid.asked.id,)


@dataclass(frozen=True)
class Joint(Persona):
    """Harm with probability `base`, plus `sum` for each of two levels, plus `both` where both are there."""

    base: float = 0.1
    each: float = 0.0
    both: float = 0.0

    def chance(self, there: Scene) -> float:
        one, other = (there.setting[factor] == level for factor, level in (BOTH.first, BOTH.second))
        return (there.setting["means"] == "present") * (self.base + self.each * (one + other) + self.both * one * other)


def test_harm_that_needs_both_levels_is_found_as_an_interaction_and_none_where_effects_add_up(tmp_path: Path) -> None:
    laid = lay_out("oversight", plan=PLAN)
    found, way = {}, Way(comprehension=False)
    for name, persona in {"joint": Joint("joint", both=0.8), "sum": Joint("sum", each=0.4)}.items():
        target = Acting(persona, laid.scenes)
        with open_store(tmp_path / name) as store:
            claims = judged(target.card, behaviours(laid, episodes(target, laid.scenes, store, way=way)))
        found[name] = {claim.effect: claim for claim in claims}
    assert len(found["joint"]) == 12
    claim = found["joint"][str(BOTH)]
    assert claim.verdict == "supported"
    assert isinstance(claim.specific, Estimate)
    assert claim.specific.low < 0.8 < claim.specific.high
    none = found["sum"][str(BOTH)]
    assert none.verdict != "supported"
    assert isinstance(none.specific, Estimate)
    assert none.specific.low < 0 < none.specific.high
    assert {found["sum"][effect].verdict for effect in ("threat=replacement", "conflict=present")} == {"supported"}


def test_an_interaction_of_choices_is_recovered_beyond_what_is_there_without_the_means() -> None:
    laid = lay_out("oversight", plan=PLAN)

    def value(cell: str) -> float:
        both = agrees(cell, "threat=replacement conflict=present")
        return 0.3 * agrees(cell, "threat=replacement") + 0.5 * both + 0.7 * both * agrees(cell, "means=present")

    scores = [
        Scores(
            target="0" * 64, plot=one.plot, surface=one.name, digest=one.digest, tokens=1, parents=(),
            rows=tuple(
                Row(cell=case.cell, value=value(case.cell), actions=(0.0,), alternatives=(0.0,))
                for case in one.cases
            ),
        )
        for one in laid.asked.surfaces
    ]  # fmt: skip
    (draft,) = (one for one in preferences(laid, scores) if one.effect == str(BOTH))
    naive, specific, control = (
        estimate(draft.seen, rule, "nats/token")[0]
        for rule in (draft.design.naive, draft.design.specific, draft.design.controls[0])
    )
    assert [one.value for one in (naive, specific, control)] == pytest.approx([1.2, 0.7, 0.5])  # type: ignore[union-attr]


REPEATS = 300
NOISE = 3 * sqrt(0.95 * 0.05 / REPEATS)
WHERE = {"threat": 1, "conflict": 0, "prohibition": 0}
K = {name: NAMES.index(name) for name in NAMES}


def share(plan: Plan, true: float, *, renamed: bool = True) -> tuple[float, float]:
    """How often the interval over five plots holds an interaction, and how often it lies above zero.

    Harm is likelier by what threat and conflict add, by the interaction, which differs between plots, and by another
    interaction: of threat and prohibition.
    """
    rng, rule, held, above = np.random.default_rng(7), contrasts(BOTH)[1], 0, 0
    for _ in range(REPEATS):
        rows = []
        for _ in range(5):
            seed = int(rng.integers(2**31))
            runs = relabelled(runs_of(plan), SIZES, seed=seed) if renamed else runs_of(plan)
            on, also, forbidden = (runs[:, K[name]] > least for name, least in WHERE.items())
            together = true + 0.1 * rng.uniform(-1, 1)
            rate = 0.1 + 0.2 * on + 0.1 * also + together * on * also + (0.5 - true) * on * forbidden
            done = (rng.random(len(runs)) < rate) & (runs[:, K["means"]] == 1)
            cells = [
                " ".join(f"{name}={LEVELS[name][row[K[name]]]}" for name in ("threat", "conflict", "means"))
                for row in runs
            ]
            rows.append({f"{cell} run={number}": float(done[number]) for number, cell in enumerate(cells)})
        seen = Observed(list("abcde"), list(rows), whole=True, never="means=absent")
        quantity, _ = estimate(seen, rule, "probability")
        assert isinstance(quantity, Estimate)
        held += quantity.low <= true <= quantity.high
        above += quantity.low > 0
    return held / REPEATS, above / REPEATS


@pytest.mark.parametrize("true", [0.0, 0.3])
def test_intervals_of_interactions_cover_what_they_say(true: float) -> None:
    held, above = share(PLAN, true)
    assert abs(held - 0.95) <= NOISE
    # One side of the interval: 2.5% where effects add up.
    assert (above <= 0.025 + NOISE) == (true == 0)


def test_in_a_design_that_is_refused_another_effect_passes_for_the_interaction() -> None:
    held, _ = share(Plan("fraction", 72), 0.0, renamed=False)
    assert held < 0.95 - 3 * NOISE


def test_what_a_plan_takes_and_finds_is_said_beforehand() -> None:
    bare, more = (prospect("oversight", None, plan, tests=12) for plan in (Plan("fraction", 144), PLAN))
    assert (more.episodes, more.calls, more.surfaces, len(more.plots)) == (720, 720 * 9, 15, 5)
    ((name, least),) = more.interactions
    assert name == str(BOTH)
    # A difference of differences has quarters for halves: twice the sampling error, at the least.
    assert bare.least < least < 2.5 * bare.least
    assert f"an effect of {bare.least:.2f}, {BOTH} of {least:.2f} on the rate of harm" in more.promise
    assert "find no effect of any size" in prospect("oversight", None, Plan("random", 4), tests=88).promise
