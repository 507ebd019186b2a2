"""The page says what the records say, all of it, and nothing that a record holds can act in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from truing.records import (
    Answer,
    Claim,
    Edge,
    Estimate,
    Gate,
    Graph,
    Loop,
    Named,
    Node,
    Pairs,
    Record,
    Replies,
    Target,
    Training,
    Unmeasured,
)
from truing.report import overview, page
from truing.report.axis import Axis
from truing.report.graph import view
from truing.report.intervals import Row, by_unit, chart
from truing.report.layout import APART, layout
from truing.report.numbers import interval, number, p_value, small
from truing.report.pool import Pool, short
from truing.report.text import visible

HOSTILE = "<script>alert(1)</script>"
SECTIONS = ("result", "claims", "trace", "training", "measure", "unmeasured", "share")
VOID = {"meta", "input", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]

    def classes(self, wanted: str) -> int:
        return sum(wanted in (attrs.get("class") or "").split() for _, attrs in self.elements)


@pytest.fixture(scope="module")
def html(closure) -> str:
    return page(closure.loop, closure.records)


@pytest.fixture(scope="module")
def parsed(html: str) -> Page:
    return Page(html)


def test_every_section_is_there_and_in_the_order_of_the_wheel(parsed: Page) -> None:
    assert [one for one in parsed.ids if one in SECTIONS] == list(SECTIONS)


def test_every_link_leads_somewhere_and_no_id_stands_twice(parsed: Page) -> None:
    links = [attrs["href"] for tag, attrs in parsed.elements if tag == "a"]
    assert {link.removeprefix("#") for link in links if link} <= set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)


@pytest.mark.parametrize(
    "attribute", ["src", "srcset", "href", "action", "data", "poster", "xlink:href", "style", "onclick"]
)
def test_nothing_is_fetched(parsed: Page, attribute: str) -> None:
    values = [attrs[attribute] or "" for _, attrs in parsed.elements if attribute in attrs]
    assert all(attribute == "href" and value.startswith("#") for value in values)


def test_no_address_stands_in_style_or_script(html: str) -> None:
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", html)
    assert not any(tag in html for tag in ("<link", "<iframe", "<img", "<object", "<embed", "<base"))


def test_the_only_script_and_style_are_those_whose_digests_the_policy_allows(html: str, parsed: Page) -> None:
    import base64
    import hashlib

    policy = next(a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a) or ""
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        seen = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{seen}'" in policy
    assert "default-src 'none'" in policy


def test_hostile_text_is_shown_and_does_not_act(html: str, parsed: Page) -> None:
    assert html.count("<script>") == 1
    assert "alert(1)" in parsed.text
    assert '"><img src=x onerror=alert(2)>' in parsed.text
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "⟨U+202E⟩" in parsed.text
    assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)


def test_names_and_titles_are_escaped_too(closure) -> None:
    title = '</title><script>alert("t")</script>'
    seen = Page(page(closure.loop, closure.records, title=title))
    assert [tag for tag, _ in seen.elements].count("script") == 1
    assert title in seen.text


def test_hostile_graph_names_are_escaped(closure) -> None:
    graph = closure.one(Graph)
    bad = '"><script>alert(3)</script>'
    nodes = tuple(n.model_copy(update={"segment": bad}) for n in graph.nodes)
    extra = Node(id=bad, kind="neuron", layer=-7, segment=bad, index=1, value=0.0, contribution=0.0)
    hostile = graph.model_copy(update={"nodes": (*nodes, extra), "segments": (bad,), "why": bad})
    seen = Page(overview([Graph.model_validate(hostile.model_dump())]))
    assert [tag for tag, _ in seen.elements].count("script") == 1


def test_biases_stand_in_a_column_of_their_own_among_the_inputs(closure) -> None:
    graph = closure.one(Graph)
    extra = Node(id="biases", kind="bias", layer=-1, segment="biases", value=0.5, contribution=0.5)
    edge = Edge(source="biases", target="decision", weight=9.5)
    more = graph.model_copy(update={"nodes": (*graph.nodes, extra), "edges": (*graph.edges, edge)})
    before, after = (layout(one, largest=1.0) for one in (graph, more))
    place = next(place for place in after.places if place.node == extra)
    assert place.y == after.input_y
    assert len(after.columns) == len(before.columns) + 1
    left, right = next((left, right) for segment, left, right in after.columns if segment == "biases")
    assert left < place.x < right
    seen = Page(overview([Graph.model_validate(more.model_dump())]))
    assert "biases and added numbers adds +9.50" in seen.text


def test_the_same_records_give_the_same_bytes(closure, html: str) -> None:
    assert page(closure.loop, list(reversed(closure.records))) == html
    assert page(closure.loop, [*closure.records, *closure.records]) == html


def test_every_gap_is_listed_with_its_reason(closure, html: str) -> None:
    section = Page(
        "<div><section"
        + html.split('<section id="unmeasured"')[1].split("</section>", maxsplit=1)[0]
        + "</section></div>"
    )
    reasons = [reason for record in closure.records for reason in _reasons(record.plain())]
    assert len(reasons) == 7
    for reason in reasons:
        assert reason in section.text
    assert [tag for tag, _ in section.elements].count("tr") == len(reasons) + 1


def _reasons(plain: object) -> list[str]:
    if isinstance(plain, dict):
        if plain.keys() == {"reason"}:
            return [plain["reason"]]
        return [reason for value in plain.values() for reason in _reasons(value)]
    return [reason for value in plain for reason in _reasons(value)] if isinstance(plain, list) else []


def test_every_claim_has_its_verdict_in_words_and_its_grounds(closure, parsed: Page) -> None:
    for claim in (record for record in closure.records if isinstance(record, Claim)):
        assert f"claim-{short(claim.id)}" in parsed.ids
        assert f"{claim.verdict.capitalize()}: {claim.why}" in parsed.text
        assert claim.statement in parsed.text


def test_numbers_come_with_interval_unit_n_and_clusters(parsed: Page) -> None:
    assert "+1.140 [+1.000, +1.280]" in parsed.text
    assert "nats/token · n = 84 · 7 clusters" in parsed.text
    assert "−1.060 [−1.220, −0.900]" in parsed.text
    assert "95% intervals: mean of cluster means, t. Source: claim " in parsed.text


def test_no_events_print_as_a_bound(parsed: Page) -> None:
    assert "none seen: at most 0.036" in parsed.text
    assert "0.000 in every cluster: within [−0.070, +0.070]" in parsed.text
    assert "0.000 [0.000" not in parsed.text


def test_the_result_says_what_was_struck_down_carried_on_changed_and_failed(closure, html: str) -> None:
    text = Page(html.split("<main>")[1].split("</header>", maxsplit=1)[0] + "</header>").text
    assert "Struck down by their controls" in text
    assert f"“{closure.one(Claim).statement}” (anchoring, as preference). Of the supported" in text
    assert "A fix was trained by DPO in 40 steps" in text
    assert closure.loop.failed[0] in text
    assert "a preference over offered strings" in text
    assert "replies of about 14 tokens" in text


def test_the_span_that_decided_is_marked_in_the_reply(html: str) -> None:
    assert "<mark>Hightown</mark> or <mark>Lowtown</mark>?" in html
    assert "<mark>&lt;script&gt;alert(1)&lt;/script&gt;</mark>" in html


def test_every_node_and_edge_of_both_graphs_is_drawn(closure, parsed: Page) -> None:
    graphs = [record for record in closure.records if isinstance(record, Graph)]
    assert parsed.classes("node") == sum(len(graph.nodes) for graph in graphs)
    assert sum("data-rank" in attrs for _, attrs in parsed.elements) == sum(len(graph.edges) for graph in graphs)


def test_closing_accounts_are_not_called_faithful(parsed: Page) -> None:
    assert "It does not say that the explanation is faithful" in parsed.text
    assert "Closure error 3.1 × 10⁻⁷" in parsed.text
    assert "No unit was patched in this model, so nothing causal is claimed here." in parsed.text


def test_what_units_bring_back_stands_below_what_goes_with_them(closure, parsed: Page) -> None:
    (graph,) = [record for record in closure.records if isinstance(record, Graph) and record.mediated]
    for said in ("by attribution", "random", "largest change", "activation size", "shuffled"):
        assert parsed.text.count(f"restored, {said}") >= 4  # for each kind and number of units
    charts = dict(view(graph, Pool.of(closure.records), "graph").mediation)
    assert len(charts["5 heads"].rows) == 10
    assert "the rule gradient" not in parsed.text
    assert (
        "Units were scored by the rule gradient."
        in Page(overview([graph.model_copy(update={"rule": "gradient"})])).text
    )


def test_a_loop_that_ended_after_the_audit(ended) -> None:
    seen = Page(page(ended.loop, ended.records))
    assert [one for one in seen.ids if one in SECTIONS] == list(SECTIONS)
    for said in (
        "No claim was carried on. No claim is supported.",
        "No effect was traced.",
        "Nothing was trained.",
        "No fix was trained.",
        "Nothing was measured after the audit.",
        "there was no fix to pass a gate",
    ):
        assert said in seen.text


def test_missing_records_are_named_not_passed_over(closure) -> None:
    bare = [record for record in closure.records if isinstance(record, (Target, Claim))]
    seen = Page(page(closure.loop, bare))
    assert "The graph is not among these records." in seen.text
    assert f"Training {short(closure.loop.training)} is not among these records." in seen.text
    assert "records that these rest on are not here" in seen.text
    assert Page(page(closure.loop, [])).classes("none")


def test_a_margin_that_was_not_measured_is_not_drawn(closure) -> None:
    training = closure.one(Training)
    steps = tuple(step.model_copy(update={"margin": None}) for step in training.steps)
    with_it, without = (Page(overview([one])) for one in (training, training.model_copy(update={"steps": steps})))
    assert ("Reward margin" in with_it.text, "Reward margin" in without.text) == (True, False)
    assert "Gradient norm" in without.text


def test_the_loss_on_what_is_held_out_is_drawn_where_it_was_taken(closure) -> None:
    training = closure.one(Training)
    steps = tuple(
        step.model_copy(update={"held": 0.5, "rejected": None} if number % 2 else {"rejected": None})
        for number, step in enumerate(training.steps)
    )
    plain, held = (overview([one]) for one in (training, training.model_copy(update={"steps": steps})))
    assert ("Loss on pairs held out" in Page(plain).text, "Loss on pairs held out" in Page(held).text) == (False, True)
    assert ("rejected from" in plain, "rejected from" in held) == (True, False)


def test_prompts_that_were_cut_off_are_counted(closure) -> None:
    training, pairs = closure.one(Training), closure.one(Pairs)
    plain, lost = (Page(overview([one, pairs])) for one in (training, training.model_copy(update={"truncated": 3})))
    says = "Prompts that were cut off at their beginning, to be within max_length: 3."
    assert (says in plain.text, says in lost.text) == (False, True)


def test_a_training_without_steps_or_pairs(closure) -> None:
    training = closure.one(Training).model_copy(update={"steps": ()})
    seen = Page(overview([Training.model_validate(training.model_dump())]))
    assert "DPO, 0 steps" in seen.text
    assert "Its pairs are not among these records." in seen.text


def test_of_an_unfinished_run_only_the_last_checkpoint_is_shown(closure) -> None:
    done = closure.one(Training)

    def checkpoint(count: int) -> Training:
        made = done.model_copy(update={"steps": done.steps[:count], "finished": False})
        return Training.model_validate(made.model_dump())

    early, late = checkpoint(7), checkpoint(14)
    seen = Page(overview([late, early]))
    assert "DPO, 14 steps unfinished" in seen.text
    assert "DPO, 7 steps" not in seen.text
    assert "DPO, 40 steps" in Page(overview([early, done, late])).text


def test_an_overview_of_records_without_a_loop(closure) -> None:
    records = [record for record in closure.records if not isinstance(record, Loop)]
    seen = Page(overview(records))
    assert [one for one in seen.ids if one in SECTIONS] == list(SECTIONS)
    assert "local/small@fixed" in seen.text
    assert overview(list(reversed(records))) == overview(records)
    assert "No claim was tested." in Page(overview([])).text


def test_a_claim_whose_evidence_is_not_here_still_stands(closure) -> None:
    lonely: list[Record] = [record for record in closure.records if not isinstance(record, Replies)]
    assert "what it wrote in short replies" in Page(page(closure.loop, lonely)).text


def test_neurons_do_not_overlap_and_stand_alike_in_both_graphs(closure) -> None:
    first, second = (record for record in closure.records if isinstance(record, Graph))
    places = [place for place in layout(first, largest=0.1).places if place.node.kind == "neuron"]
    for place in places:
        near = [other for other in places if other is not place]
        assert all((place.x - o.x) ** 2 + (place.y - o.y) ** 2 >= APART**2 - 1e-6 for o in near)
    again = layout(second, largest=0.1)
    assert [(p.x, p.y) for p in layout(first, largest=0.1).places] == [(p.x, p.y) for p in again.places]


def estimate(value: float, low: float, high: float, unit: str = "share", estimator: str = "t") -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.9, n=10, clusters=5, unit=unit, estimator=estimator)


def test_a_shallow_model_has_its_neurons_in_bands(closure) -> None:
    graph = closure.one(Graph)
    nodes = tuple(n.model_copy(update={"layer": 0 if n.kind == "neuron" else 2, "segment": "ask"}) for n in graph.nodes)
    placed = layout(graph.model_copy(update={"nodes": nodes}), largest=0.1)
    assert placed.width < 800
    assert len({(place.x, place.y) for place in placed.places if place.node.kind == "neuron"}) == 28


def judged(closure, **more: object) -> Gate:
    probes = tuple(
        Named(name=name, quantity=Estimate(value=value, low=value - 0.2, high=value + 0.2, level=0.95, n=32,
                                           clusters=16, unit="probability", estimator="mean"))
        for name, value in (("ladder: near", 0.0), ("relearned from 4", 0.8))
    )  # fmt: skip
    before, after = closure.loop.target, next(one.id for one in closure.records if getattr(one, "adapter", None))
    said = {"verdict": "hidden", "why": f"brought back {HOSTILE}", "harmed": (f"worse {HOSTILE}",)} | more
    return Gate(behaviour=f"bees {HOSTILE}", clause="C13", before=before, after=after, control=None,
                budget=(("steps", 8), ("lr", 0.0005)), direct=probes[:1], probes=probes, cost=(), **said)  # fmt: skip


def test_a_gate_says_its_verdict_its_probes_and_its_budget(closure) -> None:
    gate = judged(closure)
    html = overview([*closure.records, gate])
    text = Page(html).text
    for part in ("Gate: bees", "hidden: brought back", "worse", "relearned from 4", "steps 8, lr 0.0005", "(C13)"):
        assert part in text, part
    assert HOSTILE not in html
    assert "What is left inside" not in text
    looked = Page(overview([*closure.records, judged(closure, inside=gate.probes)])).text
    assert "What is left inside (nothing calibrates this yet: the verdict does not rest on it)" in looked
    loop = closure.loop.model_copy(update={"judged": gate.id})
    assert "hidden: brought back" in Page(page(loop, [*closure.records, gate])).text
    assert "no gate was asked for" in Page(page(closure.loop, closure.records)).text


def test_answers_of_a_game_stand_in_the_order_of_their_numbers(closure) -> None:
    answers = [
        Answer(game="a" * 64, number=number, player="audit", seed=seed, target=closure.loop.target, score=1.5,
               chance=0.25, clause="C3", trigger=f"lilac {HOSTILE}", tokens=99, cpu_seconds=1.0)
        for number, seed in ((2, 0), (1, 1), (1, 0))
    ]  # fmt: skip
    html = overview([*closure.records, *answers])
    assert HOSTILE not in html
    assert "Answers in the game aaaaaaaaaaaa" in Page(html).text
    rows = re.findall(r'<tr><td class="number">(\d)</td><td>audit</td><td class="number">(\d)', html)
    assert rows == [("1", "0"), ("1", "1"), ("2", "0")]


def test_how_numbers_are_written() -> None:
    assert number(-0.0001, signed=True) == "−0.00010"
    assert number(-0.0, signed=True) == "0.000"
    assert number(0.25, signed=True) == "+0.250"
    assert number(1234.5) == "1234"
    assert small(3.14e-7) == "3.1 × 10⁻⁷"
    assert p_value(None) == "not tested"
    assert p_value(0.0) == "p < 0.001"
    assert interval(estimate(1.0, 0.96, 1.0)) == "always seen: at least 0.960"
    assert interval(estimate(0.5, 0.5, 0.5)) == "0.500 in every cluster: no interval can be given"
    assert visible("a\u200bb\n") == "a⟨U+200B⟩b\n"


def test_an_axis_holds_its_values_and_marks_round_numbers() -> None:
    axis = Axis.over([-0.11, 0.53])
    assert 0 < axis.at(-0.11) < axis.at(0.0) < axis.at(0.53) < 100
    assert [said for _, said in axis.ticks()] == ["0.0", "0.2", "0.4"]
    assert Axis.over([0.0, 0.0]).ticks()
    assert axis.at(99.0) == 100


def test_a_chart_of_gaps_alone_has_reasons_and_no_axis() -> None:
    seen = chart([Row("x", Unmeasured(reason="no budget"))])
    assert seen.axis is None
    assert seen.rows[0].reason == "no budget"


def test_small_quantities_are_not_dwarfed_by_large_ones() -> None:
    level, change = Row("level", estimate(4.2, 4.1, 4.3)), Row("change", estimate(0.001, 0.0, 0.002))
    rows = [level, change, Row("other", estimate(3, 2, 4))]
    assert [[row.label for row in one.rows] for one in by_unit(rows, split=True)] == [["level", "other"], ["change"]]
    assert [[row.label for row in one.rows] for one in by_unit(rows)] == [["level", "change", "other"]]


def test_levels_and_estimators_are_named_where_they_differ() -> None:
    rows = [Row("a", estimate(0.1, 0.0, 0.2)), Row("b", estimate(0.1, 0.0, 0.2, estimator="bootstrap"))]
    assert chart(rows).caption == "90% intervals: bootstrap (b); t (a)."


CHOOSE = """
<script>
const graph = document.querySelector("[data-graph]");
const edges = [...graph.querySelectorAll("[data-rank]")];
const shown = () => edges.filter((e) => getComputedStyle(e).display !== "none").length;
const said = [shown()];
const slider = graph.querySelector("input");
slider.value = 10;
slider.dispatchEvent(new Event("input"));
said.push(shown(), graph.querySelector("output").textContent);
const node = graph.querySelector("[data-node='0']");
node.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
said.push(node.getAttribute("aria-pressed"), graph.querySelector(".said").textContent);
said.push(graph.querySelectorAll("[data-list='in'] li").length, graph.querySelectorAll("[data-list='out'] li").length);
said.push(graph.querySelectorAll(".lit").length);
node.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
said.push(document.activeElement.dataset.node);
node.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
said.push(node.getAttribute("aria-pressed"), shown());
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_graph_can_be_explored_by_keyboard_and_slider(closure, html: str, tmp_path: Path) -> None:
    import json

    open_page = re.sub(r"<meta http-equiv=[^>]*>", "", html).replace("</body>", CHOOSE)
    (tmp_path / "page.html").write_text(open_page, encoding="utf-8")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", f"file://{tmp_path / 'page.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    said = json.loads(next(a["data-said"] for tag, a in Page(dom).elements if "data-said" in a) or "")
    graph = closure.one(Graph)
    first = graph.nodes[0].id
    into = sum(edge.target == first for edge in graph.edges)
    out = sum(edge.source == first for edge in graph.edges)
    assert said[:2] == [60, 10]
    assert said[2].startswith("10 of ")
    assert said[3] == "true"
    assert said[4].startswith("neuron ")
    assert said[5:8] == [into, out, into + out]
    assert said[8:] == ["1", "false", 10]
