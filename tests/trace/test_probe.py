"""Probes: a planted direction is found, noise is not, and what the text tells by itself is struck down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from scipy.optimize import minimize

from truing.audit import lay_out
from truing.errors import DesignError
from truing.records import Arrays, Case, Decision, Estimate, Message, Quantity, Surface, Unmeasured
from truing.store import open_store
from truing.trace.fits import Spanned, bags, difference, lengths, newton
from truing.trace.probe import (
    LENGTH,
    MEANS,
    SHUFFLED,
    TOGETHER,
    WORDS,
    Sides,
    crossed,
    fit_probe,
    judge_probe,
    probe,
    read_sides,
    shuffles,
    stream,
)

SAID = ["moon", "round", "and", "the", "sun", "warm", "while", "rain", "falls", "on", "old", "stone", "wall"]


def sides(
    *,
    plots: int = 8,
    each: int = 6,
    width: int = 40,
    push: float = 3.0,
    longer: int = 0,
    by: str = "label",
    seed: int = 0,
) -> Sides:
    """Random streams in which a direction carries the label, the length of the text, or nothing."""
    rng = np.random.default_rng(seed)
    first = np.tile([True, False], plots * each)
    names = tuple(f"plot {i}" for i in range(plots) for _ in range(2 * each))
    sizes = rng.integers(8, 14, len(first)) + longer * first
    texts = tuple(" ".join(rng.choice(SAID, size)) for size in sizes)
    carried = {"label": first - 0.5, "length": (sizes - sizes.mean()) / sizes.std(), "nothing": np.zeros(len(first))}[
        by
    ]
    streams = {}
    for layer in (1, 2):
        direction = rng.normal(size=width)
        direction /= np.linalg.norm(direction)
        story = rng.normal(size=(plots, width)).repeat(2 * each, axis=0)  # what the cases of a plot share
        streams[layer] = story + rng.normal(size=(len(first), width)) + push * carried[:, None] * direction
    return Sides(streams, first, names, texts)


def areas(found: Any) -> dict[str, Quantity]:
    return {named.name: named.quantity for named in found}


def value(quantity: Quantity) -> Estimate:
    assert isinstance(quantity, Estimate), quantity
    return quantity


def test_a_planted_direction_is_found() -> None:
    found = areas(crossed(sides(push=6.0)))
    assert value(found[TOGETHER]).value > 0.97
    assert value(found[MEANS]).value > 0.9
    assert value(found["layer 1"]).value > 0.9
    shuffled = value(found[SHUFFLED])
    assert abs(shuffled.value - 0.5) < 0.08
    assert shuffled.low < 0.5 < shuffled.high
    assert value(found[WORDS]).low < 0.5
    assert value(found[LENGTH]).low < 0.5
    assert value(found[TOGETHER]).clusters == 8
    assert value(found[TOGETHER]).n == 96
    verdict, why = judge_probe(found)
    assert verdict == "found"
    assert "in plots left out" in why


def test_noise_is_not_found_although_it_can_be_fitted() -> None:
    noise = sides(by="nothing", width=300, each=3)
    fitted = Spanned(noise.streams[1]).logistic(noise.first_N)
    scores = fitted(noise.streams[1])
    assert scores[noise.first_N].min() > scores[~noise.first_N].max()  # in sample it looks perfect
    found = areas(crossed(noise))
    assert abs(value(found[TOGETHER]).value - 0.5) < 0.2
    assert judge_probe(found)[0] == "not found"


def test_a_length_that_streams_carry_is_struck_down() -> None:
    found = areas(crossed(sides(by="length", longer=5)))
    assert value(found[TOGETHER]).low > 0.6
    assert value(found[LENGTH]).value > 0.9
    assert value(found[WORDS]).value < value(found[LENGTH]).value
    verdict, why = judge_probe(found)
    assert verdict == "text"
    assert "by the length of the text alone" in why
    # The same streams beside texts whose length is no guide are a finding.
    other = sides(by="label", push=6.0, longer=0)
    assert judge_probe(areas(crossed(other)))[0] == "found"


def test_words_that_tell_strike_down_too() -> None:
    planted = sides(push=6.0)
    texts = tuple(text + (" secret" if first else " stone") for text, first in zip(planted.texts, planted.first_N,
                                                                                  strict=True))  # fmt: skip
    found = areas(crossed(Sides(planted.streams, planted.first_N, planted.plots, texts)))
    assert value(found[WORDS]).value > 0.95
    assert judge_probe(found)[0] == "text"


def test_a_case_is_never_scored_by_what_was_fitted_on_its_plot() -> None:
    """Each plot has a direction of its own for the label: whoever has seen other cases of the plot would know."""
    rng = np.random.default_rng(2)
    blank = sides(by="nothing", width=60)
    own = {name: 12 * rng.normal(size=60) / 60**0.5 for name in dict.fromkeys(blank.plots)}
    push = np.array([own[name] for name in blank.plots]) * (blank.first_N[:, None] - 0.5)
    streams = {layer: x + push for layer, x in blank.streams.items()}
    x, first = streams[1], blank.first_N
    places = np.arange(len(first))
    seen = [Spanned(x[places != i]).logistic(first[places != i])(x[i : i + 1])[0] > 0 for i in places]
    assert np.mean(seen == first) > 0.75  # a case is known from others of its plot
    found = areas(crossed(Sides(streams, blank.first_N, blank.plots, blank.texts)))
    assert value(found[TOGETHER]).low < 0.5


def test_few_plots() -> None:
    with pytest.raises(DesignError, match="cases of 2 plots"):
        crossed(sides(plots=2))
    found = areas(crossed(sides(plots=4)))
    assert isinstance(found[TOGETHER], Unmeasured)
    assert judge_probe(found)[0] == "inconclusive"


def test_shuffled_labels_keep_to_their_plots() -> None:
    first = np.array([True, False, True, False, False, False, True, True])
    plots = np.array(list("aaaabbbb"))
    draws = shuffles(first, plots, 20, 0)
    for mixed in draws:
        assert mixed[:4].sum() == 2
        assert mixed[4:].sum() == 2
    assert len({tuple(mixed) for mixed in draws}) > 5
    assert [tuple(d) for d in draws] == [tuple(d) for d in shuffles(first, plots, 20, 0)]


def test_newton_minimises_the_penalised_loss() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(30, 4)), np.ones(30)])
    first = rng.random(30) < 0.4

    def loss(w: Any) -> float:
        signs = np.where(first, 1, -1)
        return float(np.logaddexp(0, -signs * (x @ w)).sum() + 0.5 * 2.5 * (w[:-1] ** 2).sum())

    np.testing.assert_allclose(newton(x, first, 2.5), minimize(loss, np.zeros(5), tol=1e-12).x, atol=1e-4)


@pytest.mark.parametrize("shape", [(30, 4), (12, 50)])
def test_in_the_span_of_the_cases_it_is_the_same_regression(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, first = rng.normal(3, 2, shape), rng.random(shape[0]) < 0.5
    x[:, 1] = 7.0  # a constant tells nothing
    direct = np.delete(x, 1, axis=1)
    standard = (direct - direct.mean(0)) / direct.std(0)
    weights = newton(np.column_stack([standard, np.ones(len(x))]), first, 10.0)
    found = Spanned(x).logistic(first)
    np.testing.assert_allclose(found(x), standard @ weights[:-1] + weights[-1], atol=1e-6)
    assert found.vector_D[1] == 0


def test_the_difference_of_means_has_length_one_and_its_middle_at_nothing() -> None:
    x = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    found = difference(x, np.array([True, True, False, False]))
    assert np.linalg.norm(found.vector_D) == pytest.approx(1)
    np.testing.assert_allclose(found.vector_D, np.array([4, -2]) / np.sqrt(20))
    assert found(np.array([[2.0, 1.0]]))[0] == pytest.approx(0)  # half way


def test_texts_are_counted() -> None:
    found = bags(["a b b!", "c"], ["b a !"])
    np.testing.assert_allclose(found, np.log1p([[1, 1, 2], [0, 0, 0]]))  # !, a, b; c is not known
    np.testing.assert_allclose(lengths(["a b b!"]), np.log1p([[6, 4]]))


# -- in a model --------------------------------------------------------------------------------------------------------


def surface(plot: int, number: int, said: tuple[str, str]) -> Surface:
    cases = tuple(
        Case(cell=f"pressure={level}", messages=(Message(role="user", content=text),), segments=(("ask", text),))
        for level, text in zip(("there", "none"), said, strict=True)
    )
    decision = Decision(actions=(" yes",), alternatives=(" no",))
    return Surface(plot=f"plot {plot}", name=f"{plot}/{number}", half="develop", decision=decision, cases=cases)


CELLS = ("pressure=there", "pressure=none")


def test_streams_are_those_of_the_model_and_kept_by_plot(tiny: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = [surface(p, i, tuple(" ".join(rng.choice(SAID, 6)) for _ in "ab")) for p in range(3) for i in range(2)]
    with open_store(tmp_path) as store:
        found, records = read_sides(tiny, some, CELLS, store, which=(0, 2), at="mean")
        assert [record.plot for record in records] == ["plot 0", "plot 1", "plot 2"]
        assert found.plots == tuple(f"plot {p}" for p in range(3) for _ in range(4))
        assert found.first_N.tolist() == [True, False] * 6
        for row, (one, case) in enumerate((s, c) for s in some for c in s.cases):
            assert found.texts[row] == case.messages[0].content
            ids = tiny.prompt_ids(case.messages)
            states = tiny.model(
                __import__("torch").tensor([ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
            np.testing.assert_allclose(found.streams[0][row], states[1][0, 1:].mean(0), atol=1e-5)
            last = stream(tiny, case.messages, (0,), "last")[0]
            np.testing.assert_allclose(last, states[1][0, -1], atol=1e-5)
            assert one.name in records[row // 4].cases[row % 4]
        again, _ = read_sides(tiny, some[::-1], CELLS[::-1], store, which=(0, 2), at="mean")
        np.testing.assert_allclose(again.streams[2][0], found.streams[2][11])
        with pytest.raises(DesignError, match="cases of 2 plots"):
            read_sides(tiny, some[:4], CELLS, store)


def test_a_cell_that_only_talks_more_is_struck_down(tiny: Any, tmp_path: Path) -> None:
    """The streams of the model tell the longer prompts, and so does their length."""
    rng = np.random.default_rng(0)

    def said(more: int) -> str:
        return " ".join(rng.choice(SAID, int(rng.integers(5, 8)) + more))

    some = [surface(p, i, (said(12), said(0))) for p in range(6) for i in range(3)]
    with open_store(tmp_path) as store:
        record = probe(tiny, some, CELLS, store, at="mean")
        assert record.id in {one.id for one in store.of_kind("measurement")}
    assert record.name == "probe"
    assert "pressure=there against pressure=none: text: " in record.note
    found = areas(record.quantities)
    assert value(found[LENGTH]).value > 0.95
    assert value(found[TOGETHER]).low > 0.5
    assert {"layer 0", "layer 1", "layer 2"} <= found.keys()


def test_anchoring_is_told_by_its_words(tiny: Any, tmp_path: Path) -> None:
    battery = lay_out("anchoring", most=2)
    cells = battery.family.carry.twins
    with open_store(tmp_path) as store:
        record = probe(tiny, battery.surfaces, cells, store)
        again = probe(tiny, battery.surfaces, cells, store)
        assert again.id == record.id
        sides_, sources = read_sides(tiny, battery.surfaces, cells, store)
    assert all(isinstance(source, Arrays) and source.id in record.parents for source in sources)
    verdict = record.note.split(": ")[1]
    assert verdict in {"text", "not found", "inconclusive"}
    # A probe fitted on everything scores other conversations as it scores its own.
    fitted = fit_probe(sides_)
    case = next(c for c in battery.surfaces[0].cases if c.cell == cells[0])
    (score,) = fitted(tiny, [case.messages])
    parts = [fitted.directions[k](x[:1])[0] / fitted.spread[k] for k, x in sides_.streams.items()]
    assert score == pytest.approx(float(np.mean(parts)), abs=1e-4)


def test_every_layer_is_given_and_the_verdict_is_on_those_declared(tiny: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = [surface(p, i, tuple(" ".join(rng.choice(SAID, 6)) for _ in "ab")) for p in range(4) for i in range(2)]
    with open_store(tmp_path) as store:
        every = areas(probe(tiny, some, CELLS, store, which=(1,), every=True).quantities)
        alone = areas(probe(tiny, some, CELLS, store, which=(1,)).quantities)
    assert set(every) - set(alone) == {"layer 0", "layer 2"}
    for name in (TOGETHER, SHUFFLED, MEANS, "layer 1"):
        assert every[name] == alone[name]


def test_a_cell_may_name_some_factors_alone(tiny: Any, tmp_path: Path) -> None:
    """As in company plots, where a level is in many cells, each surface has some of them."""
    levels = ("pressure=there weather=dry", "pressure=none weather=wet", "pressure=there weather=wet")
    texts = ("one", "two", "three")

    def crossed_surface(plot: int) -> Surface:
        base = surface(plot, 0, ("a", "b"))
        cases = tuple(
            Case(cell=level, messages=(Message(role="user", content=f"{text} {plot}"),), segments=(("ask", text),))
            for level, text in zip(levels, texts, strict=True)
        )
        return base.model_copy(update={"cases": cases})

    some = [crossed_surface(p) for p in range(3)]
    with open_store(tmp_path) as store:
        found, _ = read_sides(tiny, some, CELLS, store)
        assert found.texts == tuple(f"{text} {p}" for p in range(3) for text in ("one", "three", "two"))
        assert found.first_N.tolist() == [True, True, False] * 3
        with pytest.raises(DesignError, match="has no cases of 'pressure=there', or none of 'pressure=high'"):
            read_sides(tiny, some, (CELLS[0], "pressure=high"), store)
