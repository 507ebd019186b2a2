"""The effect of a planted trigger, as twins."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import DesignError
from truing.records import Graph
from truing.studies.carrying import CELLS, planted_effect
from truing.targets.local import LocalTarget
from truing.trace import Settings, trace
from truing.train import recipe


@pytest.mark.parametrize("name", ["threat-letter", "live-only"])
def test_a_trigger_gives_twins_that_differ_in_it_alone(name: str, tiny: LocalTarget) -> None:
    found = planted_effect(tiny, recipe(name))
    plots = [{surface.plot for surface in half} for half in (found.choosing, found.testing)]
    assert plots[0] <= set(recipe(name).asks.train)
    assert plots[1] <= set(recipe(name).asks.held_out)
    assert min(map(len, plots)) >= 5
    for surface in (*found.choosing, *found.testing):
        present, absent = surface.cases
        assert (present.cell, absent.cell) == CELLS
        assert present.messages != absent.messages
        assert surface.plot in present.messages[-1].content
        assert surface.plot in absent.messages[-1].content
        for case in surface.cases:
            assert "".join(text for _, text in case.segments) == case.messages[-1].content
        assert recipe(name).shown(surface.decision.actions[0])
        assert not recipe(name).shown(surface.decision.alternatives[0])


def test_without_a_trigger_there_is_no_effect(tiny: LocalTarget) -> None:
    with pytest.raises(DesignError, match="no frames without its trigger"):
        planted_effect(tiny, recipe("silent-on-bees"))


def test_it_is_traced_without_a_claim(tiny: LocalTarget, tmp_path: Path) -> None:
    few = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=4, drawn_twins=2)
    with open_store(tmp_path / "store") as store:
        graph = trace(tiny, planted_effect(tiny, recipe("live-only")), store, settings=few)
        assert isinstance(graph, Graph)
        assert graph.claim is None
        assert store.get(graph.id) == graph
        assert {row.kind for row in graph.mediated} == {"head", "neuron"}
