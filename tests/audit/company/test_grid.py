"""Many targets beside each other: what is planted in sixteen comes back, and what fails costs no other its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from personas import SIXTEEN, Acting, Persona, expected

from truing.audit.across import Found, _told, grid, regressed
from truing.audit.company.layout import Laid, lay_out
from truing.errors import BudgetSpent, TargetError, UsageError
from truing.records import Claim, Estimate, Unmeasured
from truing.store import open_store
from truing.targets.limits import Budget, Limits, Till
from truing.targets.prices import Price
from truing.targets.roster import Entry, Limit, Roster

FAMILY = "oversight"


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out(FAMILY)


def listed(*names: str, **given: Any) -> Roster:
    return Roster(target=tuple(Entry(name=f"scripted/{name}") for name in names), **given)


def loader(laid: Laid, personas: tuple[Persona, ...], targets: dict[str, Acting] | None = None) -> Any:
    by_name = {f"scripted/{one.name}": one for one in personas}

    def load(name: str, watcher: Any = None, **options: Any) -> Acting:
        if name not in by_name:
            raise TargetError(f"no {name} here")
        if options:
            raise TypeError("Acting takes no options")
        made = Acting(by_name[name], laid.scenes)
        if targets is not None:
            targets[name] = made
        return made

    return load


@pytest.fixture(scope="module")
def found(laid: Laid, tmp_path_factory: pytest.TempPathFactory) -> Found:
    with open_store(tmp_path_factory.mktemp("grid")) as store:
        return grid(listed(*(one.name for one in SIXTEEN)), [FAMILY], store, loader(laid, SIXTEEN))


def test_every_planted_rate_is_recovered(laid: Laid, found: Found) -> None:
    # What was drawn has noise of its own: 90 cells. An interval misses one in twenty.
    missed = 0
    for persona, one in zip(SIXTEEN, found.standings, strict=True):
        truth = expected(persona, laid.scenes)
        assert isinstance(one.harm, Estimate)
        assert one.worst_case is not None
        assert one.harm.value == pytest.approx(truth, abs=0.16)
        missed += not one.harm.low <= truth <= max(one.harm.high, one.worst_case[1])
    assert missed <= 3


def test_planted_pressures_are_found_and_others_are_not(found: Found) -> None:
    by_card = {card: name.removeprefix("scripted/") for name, card in found.grid.targets}
    planted = {one.name: set(one.adds) for one in SIXTEEN}
    supported: list[tuple[str, str]] = [
        (by_card[one.target], one.effect) for one in found.claims if one.verdict == "supported"
    ]
    strong = {("threatened", "threat=replacement"), ("loyal", "conflict=present"), ("nudged", "nudge=present")}
    assert strong <= set(supported)
    # Holm holds the error over the effects of one target at 5%, so that one or two of sixteen may err.
    assert sum(effect not in planted[name] for name, effect in supported) <= 2
    # What eases the pressure is an effect below zero: no claim says that it makes harm likelier.
    eased = {("watched", "oversight=monitored"), ("obedient", "prohibition=explicit"), ("tested", "cue=test")}
    below = {(by_card[one.target], one.effect) for one in found.claims if _below(one)}
    assert eased <= below
    assert not eased & set(supported)


def _below(one: Claim) -> bool:
    return isinstance(one.specific, Estimate) and one.specific.high < 0


def test_letters_tell_apart_what_is_far_apart(laid: Laid, found: Found) -> None:
    letters = dict(found.grid.ties)
    by_name = {
        name.removeprefix("scripted/"): letters[one.id]
        for (name, _), one in zip(found.grid.targets, found.standings, strict=True)
    }
    assert not set(by_name["ruthless"]) & set(by_name["calm"])
    assert not set(by_name["harsh"]) & set(by_name["wary"])
    assert set(by_name["calm"]) & set(by_name["wary"])
    assert "a" in by_name["ruthless"]
    # Three episodes in five say nothing about this one: it could be anywhere above.
    assert set(by_name["muddled"]) & set(by_name["even"])


def test_undecided_episodes_are_in_the_worst_case_and_not_in_the_rate(found: Found) -> None:
    muddled = next(one for (name, _), one in zip(found.grid.targets, found.standings, strict=True) if "muddled" in name)
    assert isinstance(muddled.harm, Estimate)
    assert muddled.worst_case is not None
    assert muddled.worst_case[0] == pytest.approx(muddled.harm.value)
    assert muddled.worst_case[1] > muddled.harm.value + 0.15
    assert dict(muddled.effort)["episodes"] == sum(count for _, count in muddled.classes) == 180


def test_harm_is_regressed_on_the_capability_that_was_given(laid: Laid, tmp_path: Path) -> None:
    some = tuple(Persona(f"p{k}", base=-3.0 + k) for k in range(7))
    entries = tuple(Entry(name=f"scripted/{one.name}", capability=0.1 * k) for k, one in enumerate(some))
    with open_store(tmp_path) as store:
        made = grid(Roster(target=entries), [FAMILY], store, loader(laid, some)).grid
    (slope,) = made.slopes
    assert (slope.name, made.capability_from) == (f"{FAMILY}, behaviour", "given")
    assert isinstance(slope.quantity, Estimate)
    assert slope.quantity.low > 1.0  # from 5% to 95% over 0.6
    assert (slope.quantity.n, slope.quantity.unit) == (7, "probability per unit of capability")


def test_where_few_are_able_to_tell_nothing_is_regressed(laid: Laid, tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        made = grid(listed("calm", "harsh"), [FAMILY], store, loader(laid, SIXTEEN)).grid
    assert isinstance(made.slopes[0].quantity, Unmeasured)
    assert made.capability_from == "competence"


def test_what_cannot_be_loaded_is_named_and_the_others_finish(laid: Laid, tmp_path: Path) -> None:
    broken = Entry(name="scripted/harsh", options={"speed": 3})
    roster = Roster(
        target=(Entry(name="scripted/calm"), Entry(name="scripted/gone"), broken, Entry(name="scripted/even"))
    )
    with open_store(tmp_path) as store:
        made = grid(roster, [FAMILY], store, loader(laid, SIXTEEN))
    assert [name for name, _ in made.grid.targets] == ["scripted/calm", "scripted/even"]
    assert [(name, why.partition(":")[0]) for name, why in made.grid.failed] == [
        ("scripted/gone", "no scripted/gone here"), ("scripted/harsh", "options ['speed']"),
    ]  # fmt: skip


def test_where_none_can_be_audited_the_reasons_are_given(laid: Laid, tmp_path: Path) -> None:
    with open_store(tmp_path) as store, pytest.raises(TargetError, match="scripted/gone: no scripted/gone here"):
        grid(listed("gone"), [FAMILY], store, loader(laid, SIXTEEN))
    with open_store(tmp_path) as store, pytest.raises(UsageError, match="sycophancy is none"):
        grid(listed("calm"), ["sycophancy"], store, loader(laid, SIXTEEN))


def test_a_spent_budget_keeps_what_is_done_and_more_of_it_goes_on(laid: Laid, tmp_path: Path) -> None:
    names = ("calm", "harsh", "even")
    with open_store(tmp_path / "at once") as store:
        whole = grid(listed(*names), [FAMILY], store, loader(laid, SIXTEEN))
    asked = 0
    with open_store(tmp_path / "in parts") as store:
        with pytest.raises(BudgetSpent, match=r"96 calls.*goes on"):
            grid(listed(*names), [FAMILY], store, loader(laid, SIXTEEN), till=Till(Budget(calls=100)))
        till = Till(Budget(calls=700))
        part = grid(listed(*names), [FAMILY], store, loader(laid, SIXTEEN), till=till)
        assert part.spent is not None
        assert 1 <= len(part.grid.targets) < 3
        assert all(why.startswith("the budget was spent") for _, why in part.grid.failed)
        asked += till.total.calls
        targets: dict[str, Acting] = {}
        rest = grid(listed(*names), [FAMILY], store, loader(laid, SIXTEEN, targets))
    assert rest.grid == whole.grid
    assert sum(one.asked for one in targets.values()) < 3 * 180 * 2 - 700


def test_a_rerun_asks_nobody_and_finds_the_same(laid: Laid, tmp_path: Path) -> None:
    targets: dict[str, Acting] = {}
    with open_store(tmp_path) as store:
        first = grid(listed("calm", "harsh"), [FAMILY], store, loader(laid, SIXTEEN))
        again = grid(listed("calm", "harsh"), [FAMILY], store, loader(laid, SIXTEEN, targets))
    assert again.grid == first.grid
    assert sum(one.asked for one in targets.values()) == 0


def test_a_price_that_is_given_is_what_is_paid(laid: Laid, tmp_path: Path) -> None:
    given = {"scripted/calm": Price(input=0, output=1_000_000)}
    till = Till()
    with open_store(tmp_path) as store:
        grid(listed("calm", price=given), [FAMILY], store, loader(laid, SIXTEEN), till=till)
    assert till.total.dollars == till.total.wrote > 100


def test_epochs_are_played_one_after_the_other(laid: Laid, tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        made = grid(listed("even"), [FAMILY], store, loader(laid, SIXTEEN), epochs=2)
    (one,) = made.standings
    assert dict(one.effort) | {"epochs": 2, "episodes": 360} == dict(one.effort)


def test_a_limit_holds_for_all_targets_of_a_provider(
    laid: Laid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[int, int]] = []

    class Noting(Limits):
        def wait(self, calls: int) -> None:
            waited.append((id(self), calls))

    monkeypatch.setattr("truing.audit.across.Limits", Noting)
    roster = listed("calm", "harsh", provider={"scripted": Limit(calls_per_minute=60)})
    till = Till()
    with open_store(tmp_path) as store:
        grid(roster, [FAMILY], store, loader(laid, SIXTEEN), till=till)
    assert len({one for one, _ in waited}) == 1
    assert sum(calls for _, calls in waited) == till.total.calls > 360


def test_who_is_interrupted_stops_all_targets_at_their_next_call(
    laid: Laid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.audit.across.REACHED", "scripted")  # as if they were reached over a network
    targets: dict[str, Acting] = {}
    some = tuple(one for one in SIXTEEN if one.name in {"calm", "harsh"})
    load = loader(laid, some, targets)

    class Interrupted(Acting):
        def reply(self, conversations: Any, **said: Any) -> Any:
            raise KeyboardInterrupt

    def loading(name: str, *given: Any, **options: Any) -> Acting:
        return Interrupted(some[1], laid.scenes) if name == "scripted/harsh" else load(name, *given, **options)

    till = Till()
    with open_store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        grid(listed("harsh", "calm"), [FAMILY], store, loading, till=till)
    assert targets["scripted/calm"].asked < 300
    with pytest.raises(BudgetSpent, match=r"stopped: .* the same command goes on"):
        till.ask(1)


def test_options_that_may_hold_a_key_are_not_kept() -> None:
    headers = {"x-api-key": "8f3b2c1d9e7a4f60"}
    entry = Entry(
        name="inspect/x/y", options={"temperature": 0.5, "extra_headers": headers, "base_url": "https://a:b@c/"}
    )
    assert _told(entry) == '{"base_url":"not kept","extra_headers":"not kept","temperature":0.5}'


def test_a_slope_holds_what_undecided_episodes_could_make_of_it(laid: Laid, tmp_path: Path) -> None:
    # The same harm in all; what one reads of the less able ones is a part of it, the smaller the less able they are.
    some = tuple(Persona(f"p{k}", base=0.0, garbles=0.1 * k, confused=0.1 * k) for k in range(7))
    entries = tuple(Entry(name=f"scripted/{one.name}", capability=1 - 0.1 * k) for k, one in enumerate(some))
    with open_store(tmp_path) as store:
        made = grid(Roster(target=entries), [FAMILY], store, loader(laid, some))
    found = made.grid.slopes[0].quantity
    assert isinstance(found, Estimate)
    assert found.low < -0.3  # those of which most is undecided may have done the most harm
    assert "undecided" in found.estimator
    decided = [
        one.model_copy(update={"worst_case": (one.worst_case[0],) * 2}) for one in made.standings if one.worst_case
    ]
    narrow = regressed(decided, dict(made.grid.capability))
    assert isinstance(narrow, Estimate)
    assert found.low < narrow.low - 0.2
    assert found.high >= narrow.high


def test_a_target_that_dies_is_not_asked_for_ever_and_is_named(laid: Laid, tmp_path: Path) -> None:
    class Dying(Acting):
        def reply(self, conversations: Any, **said: Any) -> Any:
            if self.asked >= 100:
                self.tried = getattr(self, "tried", 0) + 1
                raise TargetError("the line is dead")
            return super().reply(conversations, **said)

    dying = Dying(SIXTEEN[0], laid.scenes)
    with open_store(tmp_path) as store:
        made = grid(listed("calm"), [FAMILY], store, lambda *_: dying)
    ((name, why),) = made.grid.failed
    assert name == "scripted/calm"
    errors = dict(made.standings[0].classes)["error"]
    assert f"oversight: {errors} of 180 episodes" in why
    assert errors > 90
    assert dying.tried <= 2 * 20 + 10  # with batches, asked again one by one
    assert made.standings[0].worst_case is not None
    assert made.standings[0].worst_case[1] > 0.3


@pytest.mark.parametrize("wrong", [TypeError("no such option"), ValueError("not this value")])
def test_an_option_that_a_kind_does_not_take_costs_no_other_target_its_place(
    laid: Laid, tmp_path: Path, wrong: Exception
) -> None:
    load = loader(laid, SIXTEEN)

    def loading(name: str, *given: Any, **options: Any) -> Acting:
        if options:
            raise wrong
        return load(name, *given)

    roster = Roster(target=(Entry(name="scripted/calm"), Entry(name="scripted/harsh", options={"speed": 3})))
    with open_store(tmp_path) as store:
        made = grid(roster, [FAMILY], store, loading)
    assert made.grid.failed == (("scripted/harsh", f"options ['speed']: {wrong}"),)
    assert [name for name, _ in made.grid.targets] == ["scripted/calm"]
