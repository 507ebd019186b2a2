"""Graphs of cases: what is drawn is what records hold, all texts are shown and none acts, and it can be explored."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from truing.errors import StoreError
from truing.records import Blob, Called, CaseGraph, Circuit, Curve, Estimate, Unmeasured
from truing.report import overview, page
from truing.report.case_curves import kept
from truing.report.case_layout import PITCH, RADIUS, layout
from truing.report.case_nodes import COLUMNS, EDGES, NODES, carried, drawn, flow, percent
from truing.report.case_text import lines

from ..cases import HOSTILE, case, circuit, named  # noqa: TID252 - tests are no package
from .test_report import Page

pytestmark = pytest.mark.base
GRAPH = circuit()
CASE = case(GRAPH)


def html_of(one: CaseGraph = CASE, graph: Circuit = GRAPH) -> str:
    files = {one.graph.digest: graph.packed()}
    return overview([one], blobs=lambda blob: files[blob.digest])


def test_what_nodes_carry_is_the_sum_over_all_paths_and_adds_up_to_the_decision() -> None:
    """Against the inverse of the dense matrix."""
    for seed in range(5):
        graph = circuit(seed=seed)
        count = len(graph)
        ahead = np.zeros((count, count))  # by how much of itself a target's value comes from a source
        ahead[graph.target_E, graph.source_E] = graph.weight_E / graph.value_N.astype(float)[graph.target_E]
        decision = np.zeros(count)
        decision[-1] = graph.value_N[-1]
        expected = decision @ np.linalg.inv(np.eye(count) - ahead)
        found = carried(graph)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        ends = graph.of("embedding") | graph.of("bias") | graph.of("remainder")
        assert found[ends].sum() == pytest.approx(float(graph.value_N[-1]), rel=1e-4, abs=1e-4)


def test_influence_flows_into_nodes_through_their_edges() -> None:
    out = np.bincount(GRAPH.source_E, weights=flow(GRAPH), minlength=len(GRAPH))
    np.testing.assert_allclose(out[:-1], GRAPH.influence_N[:-1], rtol=1e-4, atol=1e-6)


def test_a_small_graph_is_drawn_as_a_whole() -> None:
    seen = Page(html_of())
    spots = [attrs for _, attrs in seen.elements if "data-spot" in attrs]
    edges = {(a["data-from"], a["data-to"]) for _, a in seen.elements if "data-from" in a}
    assert len(spots) == len(GRAPH)
    assert edges == {(str(a), str(b)) for a, b in zip(GRAPH.source_E, GRAPH.target_E, strict=True)}
    assert seen.classes("remainder") == GRAPH.of("remainder").sum() + 1  # and one in the legend
    assert seen.classes("cross") == GRAPH.of("remainder").sum() + 1
    for number, attrs in enumerate(spots):
        assert attrs["data-spot"] == str(number)
        assert float(attrs["data-influence"] or 0) == pytest.approx(float(GRAPH.influence_N[number]), rel=1e-4)
        assert ("pos" in (attrs["class"] or "").split()) == (carried(GRAPH)[number] >= 0)


def test_numbers_scores_and_the_verdict_stand_in_the_page() -> None:
    text = Page(html_of()).text
    for said in (
        "Weak: fewer than half", "illustration of what can carry a decision, not evidence for a claim",
        "it does not say that the explanation is faithful", "+0.250 nats/token", "2.0 × 10⁻⁷", "30 of 1,000",
        "Faithfulness: only the first k nodes are kept (mean ablation)", "0.500 [0.400, 0.600]", "no time",
    ):  # fmt: skip
        assert said in text, said


def test_without_script_every_drawn_node_stands_in_a_table_with_its_strongest_inputs() -> None:
    html = html_of()
    best = int(np.argmax(np.abs(GRAPH.weight_E) * (GRAPH.target_E == len(GRAPH) - 1)))
    name = drawn(CASE, GRAPH).title(int(GRAPH.source_E[best]))
    row = next(row for row in html.split("<tr>") if row.startswith('<th scope="row">decision</th>'))
    assert name in Page(f"<table><tr>{row.split('</tr>', maxsplit=1)[0]}</tr></table>").text
    assert html.split("Nodes that are drawn")[1].split("</table>", maxsplit=1)[0].count("<tr><th") == len(GRAPH) + 1
    assert '<p class="tools" hidden>' in html


def test_hostile_tokens_are_shown_and_do_not_act() -> None:
    html = html_of()
    seen = Page(html)
    assert html.count("<script>") == 1
    assert HOSTILE in seen.text
    assert not any(name.startswith("on") or name == "style" for _, attrs in seen.elements for name in attrs)
    assert "img" not in {tag for tag, _ in seen.elements}
    assert "\u202e" not in html
    assert "\x00" not in html
    assert len(set(seen.ids)) == len(seen.ids)
    links = {a["href"] for tag, a in seen.elements if tag == "a"}
    assert {link[1:] for link in links if link} <= set(seen.ids)


def test_the_same_records_give_the_same_bytes() -> None:
    again = circuit()
    assert html_of() == html_of(case(again), again)


@pytest.mark.parametrize(("tokens", "neurons"), [(40, 1500), (4096, 1500)])
def test_a_large_graph_is_cut_down_by_influence_and_says_so(tokens: int, neurons: int) -> None:
    graph = circuit(tokens=tokens, layers=24, neurons=neurons, rests=400, edges=50_000)
    one = case(graph, prompt=tokens - 6)
    some = drawn(one, graph)
    assert len(some.nodes) <= NODES + 1
    assert len(some.edges) <= EDGES
    assert len(some.columns) <= COLUMNS
    inside = np.isin(graph.position_N, [*some.columns, -1])
    inside[list(some.nodes)] = False
    least = graph.influence_N[list(some.nodes)].min()
    assert (graph.influence_N[inside] <= least).all()
    best = np.argsort(-graph.influence_N, kind="stable")[:20].tolist()
    assert set(best) <= set(some.nodes)
    html = html_of(one, graph)
    text = Page(html).text
    assert f"Drawn: {len(some.nodes)} of {len(graph):,} nodes, the largest by influence" in text
    assert (f"at {len(some.columns)} of 4,096 tokens" in text) == (tokens == 4096)
    assert f"{len(some.edges)} of {len(graph.weight_E):,} edges" in text
    assert len(html) < 1_500_000
    assert sum(len(line.parts) for line in lines(some)) < 2500


def test_nodes_stand_at_their_token_and_layer_and_do_not_overlap() -> None:
    some = drawn(CASE, GRAPH)
    placed = layout(some)
    bands, columns = dict(placed.bands), {column.position: column for column in placed.columns}
    assert list(bands) == sorted(bands, reverse=True)
    assert all(bands[layer] > bands[layer + 1] for layer in range(CASE.layers - 1))
    for spot in placed.spots[:-1]:
        layer, position = int(GRAPH.layer_N[spot.node]), int(GRAPH.position_N[spot.node])
        if position >= 0:
            assert columns[position].left <= spot.x <= columns[position].right
        if layer >= 0:
            assert min(bands, key=lambda band: abs(bands[band] - spot.y)) == layer
    for one in placed.spots:
        near = [other for other in placed.spots if other.node != one.node]
        assert min((one.x - o.x) ** 2 + (one.y - o.y) ** 2 for o in near) >= (PITCH - 0.01) ** 2 * 0.5


def test_the_text_of_the_prompt_and_of_each_continuation() -> None:
    some = drawn(CASE, GRAPH)
    prompt, *branches = lines(some)
    assert len(prompt.parts) == CASE.prompt
    assert [len(branch.parts) for branch in branches] == [2, 1]
    tokens = GRAPH.of("embedding").nonzero()[0]
    strongest = int(GRAPH.position_N[max(tokens, key=lambda node: GRAPH.influence_N[node])])
    every = [part for line in (prompt, *branches) for part in line.parts]
    assert every[strongest].shade.endswith("shade-8")


def test_context_follows_the_continuation_that_a_token_is_in() -> None:
    words = tuple("abcdefghi")
    some = drawn(case(GRAPH, tokens=words), GRAPH)
    node = int((GRAPH.position_N == 8).nonzero()[0][0])  # the second continuation, after the prompt of six
    assert some.context(node) == "abcdef⟦i⟧"
    assert some.context(int((GRAPH.position_N == 6).nonzero()[0][0])) == "abcdef⟦g⟧h"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 2}, "has layers from -1 to 4; the case has -1 to 2"),
        ({"tokens": ("a",)}, "has 1 tokens, 9 places before them"),
        ({"before": (3, 0, 1, 2, 3, 4, 5, 6, 7)}, "does not stand after the one that is before it"),
        ({"layers": 10**9}, "1 to 4096 are read"),
        ({"graph": Blob(digest="0" * 64, size=4, media="safetensors")}, "(altered?)"),
        ({"graph": Blob(digest="0" * 64, size=1 << 40, media="safetensors")}, "Prune it further"),
    ],
)
def test_a_graph_that_does_not_fit_its_record_is_not_drawn_and_the_rest_stands(
    change: dict[str, object], said: str
) -> None:
    one = case(GRAPH, **change)
    seen = Page(overview([one], blobs=lambda _: GRAPH.packed()))
    assert said in seen.text
    assert not seen.classes("network")
    assert "Weak: fewer than half" in seen.text


def test_influence_that_is_no_share_is_refused() -> None:
    bad = GRAPH.influence_N.copy()
    bad[3] = -0.5
    graph = Circuit(**{**vars_of(GRAPH), "influence_N": bad})
    assert "an influence that is negative" in Page(html_of(case(graph), graph)).text


def vars_of(graph: Circuit) -> dict[str, np.ndarray]:
    return {name: getattr(graph, name) for name in graph.__dataclass_fields__}


def test_a_file_that_is_missing_is_named() -> None:
    def gone(blob: Blob) -> bytes:
        raise StoreError(f"file {blob.digest[:12]} is missing")

    assert f"file {CASE.graph.digest[:12]} is missing" in Page(overview([CASE], blobs=gone)).text
    assert "was not at hand" in Page(overview([CASE])).text


def test_a_loop_shows_its_cases(closure) -> None:
    claim = next(one for one in closure.records if one.id == closure.loop.claim)
    one = case(GRAPH, claim=claim.id, target=closure.loop.target)
    seen = Page(page(closure.loop, [*closure.records, one], blobs=lambda _: GRAPH.packed()))
    assert f"case-{one.id[:12]}" in seen.ids
    assert "Illustrates the claim anchoring" in seen.text


def test_a_case_where_nothing_was_ablated_claims_nothing_causal() -> None:
    bare = case(GRAPH, curves=(), checks=())
    assert "Nothing was ablated for this case" in Page(html_of(bare)).text
    assert "Nothing was ablated for this case" not in Page(html_of()).text


def test_curves_are_drawn_by_question_and_ablation_each_in_a_style_of_its_own() -> None:
    def curve(name: str, ablation: str, choice: str, *points: tuple[int, float]) -> Curve:
        return Curve(name=name, ablation=ablation, choice=choice, points=points)

    charts = kept([
        curve("faithfulness", "mean", "random", (1, 0.0), (8, 0.2)), curve("faithfulness", "zero", "influence", (1, 1)),
        curve("faithfulness", "mean", "influence", (1, 0.5), (4, 0.8), (8, 0.9)), curve("completeness", "mean", "x"),
    ])  # fmt: skip
    assert [(chart.orders, len(chart.rows)) for chart in charts] == [(("influence", "random"), 3), (("influence",), 1)]
    assert charts[0].rows[1] == (4, ("0.800", ""))
    assert 'class="curve first"' in charts[0].plot
    assert 'class="curve second"' in charts[0].plot


def test_a_graph_of_the_decision_alone() -> None:
    lonely = Circuit(
        np.array([4], np.int8), *(np.array([n], np.int32) for n in (2, -1, -1)), np.array([0.5], np.float32),
        np.array([1], np.float32), *(np.array([], np.int32) for _ in range(2)), np.array([], np.float32),
    )  # fmt: skip
    one = case(lonely, tokens=(), before=(), segments=(), prompt=0)
    assert "decision +0.500 nats/token" in Page(html_of(one, lonely)).text


def test_how_shares_are_written() -> None:
    assert [percent(x) for x in (0.0, 1e-6, 0.0012, 0.034, 0.567, 1.0)] == [
        "0.00%", "under 0.01%", "0.12%", "3.4%", "57%", "100%"
    ]  # fmt: skip


EXPLORE = """
<script>
const root = document.querySelector("[data-case]");
const nodes = [...root.querySelectorAll("[data-spot]")];
const edges = [...root.querySelectorAll("[data-from]")];
const seen = (some) => some.filter((e) => getComputedStyle(e).display !== "none").length;
const said = [root.querySelector(".tools").hidden, root.querySelector(".panel").hidden, seen(nodes), seen(edges)];
const slider = root.querySelector("input");
const output = root.querySelector("output");
slider.value = 60;
slider.dispatchEvent(new Event("input"));
said.push(seen(nodes), output.textContent);
slider.value = 0;
slider.dispatchEvent(new Event("input"));
const last = nodes.at(-1);
last.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
said.push(last.getAttribute("aria-pressed"), root.querySelector(".said").textContent);
said.push(root.querySelectorAll("[data-list='in'] li").length, root.querySelectorAll(".lit").length);
root.querySelector("[data-list='in'] button").click();
said.push(document.activeElement.dataset.name, root.querySelector(".said").textContent);
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
said.push(document.activeElement.dataset.spot, root.querySelector(".said").textContent);
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
said.push(root.querySelectorAll(".chosen").length, nodes.filter((n) => n.getAttribute("tabindex") === "0").length);
nodes[3].dispatchEvent(new MouseEvent("mouseenter"));
said.push(root.querySelector(".said").textContent, root.querySelector(".context").textContent);
said.push(root.querySelector(".note").textContent.trim());
const neuron = nodes.findIndex((node) => node.classList.contains("neuron"));
for (const event of [new MouseEvent("mouseenter"), new FocusEvent("focus")]) {
  nodes[3].dispatchEvent(new MouseEvent("mouseenter"));
  nodes[neuron].dispatchEvent(event);
  said.push(neuron, root.querySelector(".note mark").textContent, root.querySelector(".note").textContent);
}
const which = (test) => nodes.flatMap((node, place) => (test(node.classList) ? [place] : []));
const [button, other] = root.querySelectorAll("[data-group]");
button.click();
said.push(which((of) => of.contains("gathered")), which((of) => !of.contains("dim")));
said.push(edges.filter((e) => e.classList.contains("lit")).length, root.querySelector(".said").textContent);
other.click();
said.push(button.getAttribute("aria-pressed"), other.getAttribute("aria-pressed"));
other.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
said.push(root.querySelectorAll(".gathered, .dim, .lit").length, other.getAttribute("aria-pressed"));
document.body.dataset.told = JSON.stringify(said);
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_graph_can_be_explored_by_slider_mouse_and_keyboard(tmp_path: Path) -> None:
    one = named(GRAPH)
    html = re.sub(r"<meta http-equiv=[^>]*>", "", html_of(one)).replace("</body>", EXPLORE)
    said = json.loads(dumped(html, tmp_path, "data-told"))
    some = drawn(CASE, GRAPH)
    into = (GRAPH.target_E == len(GRAPH) - 1).nonzero()[0]
    strongest = some.title(int(GRAPH.source_E[into[np.argmax(np.abs(GRAPH.weight_E[into]))]]))
    assert said[:4] == [False, False, len(GRAPH), 140]
    low, high = (float(f(GRAPH.influence_N[:-1])) for f in (np.min, np.max))
    share = max(low, 1e-6) * (high / max(low, 1e-6)) ** 0.6
    assert said[4] == (GRAPH.influence_N >= share * (1 - 1e-9)).sum()
    assert said[5].endswith(f"%: {said[4]} of {len(GRAPH)} nodes")
    assert said[6:8] == ["true", "decision"]
    assert said[8:10] == [len(into), len(into)]
    assert said[10:12] == [strongest, strongest]
    assert int(said[12]) != int(GRAPH.source_E[into[np.argmax(np.abs(GRAPH.weight_E[into]))]])
    assert said[13] == some.title(int(said[12]))
    assert said[14:16] == [0, 1]
    assert said[16:19] == [some.title(3), some.context(3), ""]
    first = int(GRAPH.of("neuron").nonzero()[0][0])
    unit = f"{GRAPH.layer_N[first]}.{GRAPH.index_N[first]}"
    for node, token, text in (said[19:22], said[22:25]):
        assert (node, token) == (first, f" {'high' if GRAPH.value_N[first] > 0 else 'low'}{unit}")
        assert f"Label “ w{unit}” +0.500" in text
        assert "Score 0.300 [0.200, 0.400] correlation (n = 900, 32 clusters); of another’s label not measured" in text
    members = list(one.supernodes[0].nodes)
    assert said[25:27] == [members, members]
    assert said[27] == (np.isin(GRAPH.source_E, members) | np.isin(GRAPH.target_E, members)).sum()
    assert said[28:] == [f"Supernode: {HOSTILE} for", "false", "true", 0, "false"]


def test_labels_and_supernodes_stand_in_the_page_without_a_mouse() -> None:
    one = named(GRAPH, most=5)
    html = html_of(one)
    some = drawn(one, GRAPH)
    for label in one.labels:
        node = next(n for n in some.nodes if (GRAPH.layer_N[n], GRAPH.index_N[n]) == (label.layer, label.index))
        row = html.split(f'<td data-note="{some.nodes.index(node)}">')[1].split("</td>")[0]
        text = Page(f"<table><tr><td>{row}</td></tr></table>").text
        high = GRAPH.value_N[node] > 0
        assert ("Strongest in other texts" in text, f" high{label.unit}" in text) == (high, high)
        assert (f" low{label.unit}" in text, f"“ w{label.unit}” +0.500" in text) == (not high, True)
        assert "Score 0.300 [0.200, 0.400]" in text
    seen = Page(html)
    assert seen.text.count("Score 0.300") == sum(
        f"{GRAPH.layer_N[n]}.{GRAPH.index_N[n]}" in {label.unit for label in one.labels} for n in some.nodes
    )
    buttons = [a for tag, a in seen.elements if tag == "button" and "data-group" in a]
    assert [list(map(int, (a["data-group"] or "").split())) for a in buttons] == [list(g.nodes) for g in one.supernodes]
    assert all(some.title(node) in seen.text for node in one.supernodes[1].nodes)
    assert "img" not in {tag for tag, _ in seen.elements}
    assert html.count("<script>") == 1
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "Stands for" not in html_of()


def test_names_by_a_target_that_was_asked_stand_beside_their_scores() -> None:
    one = named(GRAPH, most=5)
    first, second, *_ = one.labels
    right = Estimate(value=0.625, low=0.4, high=0.8, level=0.95, n=16, clusters=8, unit="share right", estimator=".")
    names = (
        Called(layer=first.layer, index=first.index, name=HOSTILE[:60], score=right, unclear=1),
        Called(layer=second.layer, index=second.index, name="", score=Unmeasured(reason="no name"), unclear=0),
    )
    html = html_of(one.model_copy(update={"names": names, "named_by": "a" * 64}))
    text = Page(html).text
    assert "Name by a target that was asked “" in text
    assert "it sorts held-out places: 0.625 [0.400, 0.800] share right (n = 16, 8 clusters)" in text
    assert "Name by a target that was asked none" in text
    assert "img" not in {tag for tag, _ in Page(html).elements}
    assert "Name by a target" not in html_of(one)


def test_a_case_that_was_labelled_stands_for_what_it_was_before() -> None:
    one = named(GRAPH, parents=(CASE.id,))
    seen = Page(overview([one, CASE], blobs=lambda _: GRAPH.packed()))
    assert f"case-{one.id[:12]}" in seen.ids
    assert f"case-{CASE.id[:12]}" not in seen.ids


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_policy_lets_the_pages_own_script_run_and_no_other(tmp_path: Path) -> None:
    html = html_of().replace("</body>", "<script>document.body.dataset.told = 'acted'</script></body>")
    dom = dumped(html, tmp_path, "")
    assert 'data-told="' not in dom
    assert re.search(r'<p class="tools">', dom)  # shown by the page's own script


def dumped(html: str, folder: Path, attribute: str) -> str:
    (folder / "page.html").write_text(html, encoding="utf-8")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={folder / 'profile'}",
        "--dump-dom", f"file://{folder / 'page.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return dom if not attribute else next(a[attribute] or "" for _, a in Page(dom).elements if attribute in a)


def test_every_node_is_as_large_as_its_influence_says() -> None:
    """Tokens and errors too: none is capped at the size of a neuron."""
    some = drawn(CASE, GRAPH)
    spots = [spot for spot in layout(some).spots if some.kind(spot.node) != "decision"]
    ordered = sorted(spots, key=lambda spot: float(GRAPH.influence_N[spot.node]))
    sizes = [(spot.radius, float(GRAPH.influence_N[spot.node])) for spot in ordered]
    assert all(a[0] <= b[0] for a, b in pairwise(sizes))
    assert all(a[0] < b[0] for a, b in pairwise(sizes) if b[1] > a[1] * 1.01 and a[1] > sizes[-1][1] * 1e-3)
    assert sizes[-1][0] == RADIUS
