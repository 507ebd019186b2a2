"""DPO beside RLHF: a rule that needs no judge, looks at equal divergence, and one small comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import TrainingError
from truing.records import Estimate
from truing.studies import compare as study
from truing.studies.compare import ARMS, Numbers, Plan, alone, cost, quantities, won
from truing.studies.compare import compare as compare_arms
from truing.studies.plain_words import Part, Prompts, plainness, preferred, prompts, sentences, wins
from truing.targets.local import LocalTarget
from truing.train import Rlhf


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("I am so at it.", -1.8),
        ("The rain falls on us.", -3.2),
        ("Don't go by tram, dear.", -3.4),  # an apostrophe is within a word
        ("Rain 12 falls on 3 of us.", -3.0),  # figures are no words
        ("Rain.", -100),
        ("", -100),
    ],
)
def test_the_rule_prefers_short_words(reply: str, value: float) -> None:
    assert plainness(reply) == pytest.approx(value)


def test_a_win_is_halved_where_both_are_as_plain() -> None:
    assert wins("I am so at it.", "The rain falls on us.") == 1
    assert wins("The rain falls on us.", "I am so at it.") == 0
    assert wins("Rain.", "") == 0.5


def test_what_is_tested_is_not_trained_on() -> None:
    asked = prompts()
    parts = (asked.train, asked.tune, asked.held_out)
    topics = [set(part.topics) for part in parts]
    assert not topics[0] & topics[1]
    assert not (topics[0] | topics[1]) & topics[2]
    assert asked.elsewhere.topics == asked.held_out.topics
    assert not set(asked.elsewhere.wordings) & set(asked.train.wordings)
    assert len(asked.train.prompts) == len({messages for _, messages in asked.train.prompts}) == 96


def test_wins_at_equal_divergence_are_read_between_looks() -> None:
    numbers: Numbers = {"KL 1": 1.0, "KL 2": 3.0, "wins held out 1": 0.6, "wins held out 2": 0.8}
    assert won(numbers, "wins held out", 0.0) == 0.5  # the start, which both arms share
    assert won(numbers, "wins held out", 0.5) == pytest.approx(0.55)
    assert won(numbers, "wins held out", 2.0) == pytest.approx(0.7)
    assert won(numbers, "wins held out", 3.0) == pytest.approx(0.8)
    assert won(numbers, "wins held out", -0.1) == 0.5  # an estimate of next to nothing


def run(seed: int, better: float, cost: float) -> Numbers:
    value = better + 0.01 * (seed % 2)
    looks = {"KL 1": 1.0, "KL": 4.0, "KL 2": 4.0, study.BEGUN: cost / 10, "CPU seconds 1": cost / 2,
             "CPU seconds 2": cost * (1 + 0.1 * seed), f"{study.BITS} 1": better / 10,
             f"{study.BITS} 2": better / 5}  # fmt: skip
    for part in ("held out", "elsewhere"):
        looks |= {f"wins {part} 1": 0.5 + value / 2, f"wins {part} 2": 0.5 + value, f"wins {part}": 0.5 + value}
    return looks | {"cut off": 0.1, study.BITS: 0.01, "CPU seconds": cost * (1 + 0.1 * seed), "wall seconds": cost,
                    "peak memory": 2.0}  # fmt: skip


def test_figures_are_over_seeds_and_paired() -> None:
    runs: dict[Any, list[Numbers]] = {
        "dpo": [run(seed, 0.3, 50) for seed in range(5)], "rlhf": [run(seed, 0.2, 200) for seed in range(5)],
    }  # fmt: skip
    found = {named.name: named.quantity for named in quantities(runs)}
    values = {name: one.value for name, one in found.items() if isinstance(one, Estimate)}
    assert set(found) == set(values)
    assert values["wins held out at equal KL, dpo - rlhf"] == pytest.approx(0.1)
    assert values["CPU seconds, rlhf / dpo"] == pytest.approx(4.0)
    gap = found["wins held out at equal KL, dpo - rlhf"]
    assert isinstance(gap, Estimate)
    assert (gap.n, gap.clusters) == (5, 5)
    assert values[f"{study.BITS} at equal KL, dpo - rlhf"] == pytest.approx(0.02)
    level = 0.7  # what RLHF reaches under an even seed
    for arm in ARMS:
        mean = sum(cost(one, level) for one in runs[arm]) / 5
        assert values[f"CPU seconds to equal wins held out, {arm}"] == pytest.approx(mean)
    parts = [sum(cost(one, level) for one in runs[arm]) for arm in ("rlhf", "dpo")]
    assert values["CPU seconds to equal wins held out, rlhf / dpo"] == pytest.approx(parts[0] / parts[1])
    assert gap.high - gap.low < 1e-6  # paired: what the seed does to both is not counted


def test_the_cost_of_so_many_wins_is_read_between_looks_from_where_the_policy_begins() -> None:
    numbers: Numbers = {study.BEGUN: 10.0, "CPU seconds 1": 20.0, "CPU seconds 2": 60.0,
                        "wins held out 1": 0.6, "wins held out 2": 0.8}  # fmt: skip
    for level, seconds in ((0.55, 15.0), (0.6, 20.0), (0.7, 40.0), (0.8, 60.0)):
        assert cost(numbers, level) == pytest.approx(seconds)
    assert cost(numbers | {"wins held out 1": 0.9, "wins held out 2": 0.4}, 0.8) == pytest.approx(
        17.5
    )  # the first time
    with pytest.raises(ValueError, match="never wins"):
        cost(numbers, 0.81)


def test_where_nothing_is_won_there_is_no_cost_of_winning() -> None:
    runs: dict[Any, list[Numbers]] = {arm: [run(seed, 0.3, 50) for seed in range(5)] for arm in ARMS}
    runs["rlhf"][1] |= {"wins held out 1": 0.5, "wins held out 2": 0.4}
    found = {named.name: named.quantity for named in quantities(runs)}
    for arm in ARMS:
        assert "never won more than the start does (0.50)" in str(found[f"CPU seconds to equal wins held out, {arm}"])


def test_a_training_that_failed_is_an_outcome() -> None:
    runs: dict[Any, list[Numbers]] = {arm: [run(seed, 0.3, 50) for seed in range(6)] for arm in ARMS}
    runs["rlhf"][2] = {study.FAILED: 1.0}
    for look in ("", " 1", " 2"):
        del runs["dpo"][0][study.BITS + look]
    found = {named.name: named.quantity for named in quantities(runs)}
    wins_of_dpo = found["wins held out, dpo"]
    assert isinstance(wins_of_dpo, Estimate)
    assert wins_of_dpo.n == 5  # pairs stay pairs
    for name in (f"{study.BITS}, dpo", f"{study.BITS} at equal KL, dpo", f"{study.BITS} at equal KL, dpo - rlhf"):
        assert "1 of 5 trainings have no such figure" in str(found[name])
    tried = [(1e-4, {"KL": 1.0, "wins tune": 0.6}), (1e-3, {study.FAILED: 1.0}), (5e-4, {"KL": 99.0, "wins tune": 0.9})]
    assert study._best(tried, 20.0) == 1e-4
    assert study._best(tried[2:], 20.0) == 5e-4
    with pytest.raises(TrainingError, match=r"failed at every learning rate \(0\.001\)"):
        study._best(tried[1:2], 20.0)


SMALL = Part(topics=("rain", "tea"), wordings=("Tell me about {topic}.", "What is {topic}?"))


def test_pairs_are_a_target_s_own_replies_ordered_by_the_rule(tiny: LocalTarget) -> None:
    pairs = preferred(tiny, SMALL.prompts, max_tokens=12)
    assert pairs
    assert all(plainness(pair.chosen) > plainness(pair.rejected) for pair in pairs)
    assert preferred(tiny, SMALL.prompts, max_tokens=12) == pairs
    assert all(pair.chosen[-1] in ".!?" for pair in sentences(tiny, SMALL.prompts, max_tokens=12))


def test_a_small_comparison_is_whole_and_is_not_done_twice(tiny: LocalTarget, tmp_path: Path) -> None:
    little = {"batch": 4, "epochs": 1, "most_steps": 6}
    plan = Plan(
        seeds=5, replies=1, rates=(("dpo", (1e-3, 2e-3)), ("rlhf", (1e-3,))),
        start=replace(study.START, lr=3e-3, **little), dpo=replace(study.DPO, **little),
        rlhf=Rlhf(replace(study.RLHF.reward, **little), replace(study.RLHF.policy, **little), max_tokens=24),
    )  # fmt: skip
    asked = Prompts(train=prompts().train, tune=SMALL, held_out=SMALL, elsewhere=SMALL)
    calls: list[str] = []

    def call(task: study.Task) -> Numbers:
        calls.append(task.arm)
        return alone(task)

    with open_store(tmp_path / "store") as store:
        found = compare_arms(tiny, store, plan=plan, asked=asked, call=call)
        assert calls == ["dpo", "dpo", "rlhf", *ARMS * 5]
        assert found.taken["rlhf"] == 1e-3
        assert [len(found.tuned[arm]) for arm in ARMS] == [2, 1]
        assert store.get(found.record.id) == found.record
        assert all(one["CPU seconds"] > 0 and one["peak memory"] > 0.1 for arm in ARMS for one in found.runs[arm])
        names = {named.name for named in found.record.quantities if isinstance(named.quantity, Estimate)}
        assert "wins held out, dpo" in names
        for arm in ARMS:
            for one in found.runs[arm]:
                marks = [one[study.BEGUN], *study._looks(one, "CPU seconds")]
                assert marks == sorted(marks)
                assert 0 < marks[0] < marks[-1] <= one["CPU seconds"]
                assert len(marks) - 1 == len(study._looks(one, "KL")) == len(study._looks(one, study.BITS))
        again = compare_arms(tiny, store, plan=plan, asked=asked, call=call)
        assert again.record == found.record
        assert len(calls) == 13
