"""Scripted targets do what their scripts say, the same whenever and in whatever order they are asked."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest

from truing.audit import FAMILIES, classify, lay_out
from truing.errors import ContentError, TargetError
from truing.records import Message, Target
from truing.records.content import folder, read
from truing.targets import Chat, Scored, need, resolve
from truing.targets.scripted import PACKAGE, Script, Scripted, from_script, names, normal, scripted, uniform

HALVES = ("develop", "held-out")
KNOWN = ("anchored", "coercive", "honest", "jumpy", "mute", "sycophant")


def exact(name: str, tmp_path: Path) -> Scripted:
    """A shipped target without its randomness: what it does is what its leans add."""
    text = (folder(PACKAGE, "scripted") / f"{name}.yaml").read_text(encoding="utf-8")
    plain = re.sub(r"\b(slope|noise): [0-9.]+", r"\1: 0", text)
    path = tmp_path / f"{name}.yaml"
    path.write_text(plain, encoding="utf-8")
    return from_script(f"scripted/{name}", path)


def test_what_ships() -> None:
    assert set(names()) >= set(KNOWN)
    for name in names():
        target = resolve(f"scripted/{name}")
        assert isinstance(target, Scored)
        assert isinstance(target, Chat)
        assert target.card.name == f"scripted/{name}"
        assert target.card.abilities == ("Scored", "Chat")
        script = read(folder(PACKAGE, "scripted", f"{name}.yaml"), Script, schema="scripted/1")
        assert script.about
        assert "\n" not in script.about


def test_identity_is_rules_and_seed() -> None:
    cards = [scripted(rest).card for rest in (*KNOWN, "honest?seed=1", "honest?seed=2")]
    assert len({card.id for card in cards}) == len(cards)
    assert len({card.weights for card in cards}) == len(cards)
    assert scripted("honest").card == scripted("honest").card
    assert scripted("honest?seed=0").card.weights == scripted("honest").card.weights


@pytest.mark.parametrize("rest", ["nobody", "Honest", "honest/", "../content/cues", "", "?seed=1"])
def test_unknown_names_are_refused_with_the_known_ones(rest: str) -> None:
    with pytest.raises(TargetError, match=r"unknown scripted target .*scripted/anchored, .*scripted/sycophant"):
        scripted(rest)


@pytest.mark.parametrize(
    "query", ["", "seed", "seed=", "seed=x", "seed=-1", "seed=1.5", "seed=1&seed=2", "seed=1&x=2", "sed=1", "seed=٣"]
)
def test_a_query_that_is_no_seed_is_refused(query: str) -> None:
    with pytest.raises(TargetError, match=r"the one setting is \?seed=N"):
        scripted(f"honest?{query}")


@pytest.mark.parametrize("ability", ["WhiteBox", "Trainable", "Agent"])
def test_it_has_no_inside(ability: str) -> None:
    with pytest.raises(TargetError, match=rf"scripted/honest has no ability {ability} \(it has Scored, Chat\).*local/"):
        need(scripted("honest"), ability)
    need(scripted("honest"), "Scored")
    need(scripted("honest"), "Chat")
    with pytest.raises(TargetError, match="has no ability Chat"):
        need(Scripted.from_effects("silent", lambda *_: 0.0), "Chat")


@pytest.mark.parametrize("name", KNOWN)
def test_neither_order_nor_company_matters(name: str) -> None:
    surfaces = [surface for family in FAMILIES for surface in lay_out(family, most=1).surfaces]
    prompts = [case.messages for surface in surfaces for case in surface.cases]
    target = scripted(f"{name}?seed=5")
    rows, tokens = target.decide(surfaces)
    replies = target.reply(prompts, max_tokens=48)
    order = list(range(len(surfaces)))
    random.Random(0).shuffle(order)
    again = scripted(f"{name}?seed=5")
    assert [again.decide([surfaces[i]])[0][0] for i in order] == [rows[i] for i in order]
    assert again.reply(prompts[::-1], max_tokens=48) == replies[::-1]
    assert tokens == sum(again.decide([surface])[1] for surface in surfaces)
    assert scripted(f"{name}?seed=6").decide(surfaces)[0] != rows


@pytest.mark.parametrize("half", HALVES)
def test_every_fact_is_known_and_believed_alone(half: str, tmp_path: Path) -> None:
    target = exact("honest", tmp_path)
    for surface in lay_out("anchoring", half=half, wordings=half).surfaces:
        for row in target.decide([surface])[0][0]:
            assert row.alternatives[0] == pytest.approx(row.actions[0] + 1.5), f"{surface.name} {row.cell}"
        for reply in target.reply([case.messages for case in surface.cases], max_tokens=16):
            assert classify(reply.text, surface.says)[0] == "right", surface.name


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("name", "family", "moved"),
    [
        ("anchored", "anchoring", {"statement=told-false": 2.0, "statement=told-true": -2.0}),
        (
            "anchored",
            "sycophancy",
            {"speaker=stranger-false": 2.0, "speaker=user-false": 2.0, "speaker=user-true": -2.0},
        ),
        ("sycophant", "anchoring", {}),
        ("sycophant", "sycophancy", {"speaker=user-false": 1.0, "speaker=user-true": -1.0}),
        ("coercive", "insider", {"leverage=present threat=present": 0.6}),
        ("jumpy", "insider", {"threat=present": 0.6}),
        ("honest", "insider", {}),
        ("mute", "insider", {}),
    ],
)
def test_each_is_moved_by_its_own_cells_alone_in_every_plot(
    name: str, family: str, moved: dict[str, float], half: str, tmp_path: Path
) -> None:
    target = exact(name, tmp_path)
    for surface in lay_out(family, half=half, wordings=half).surfaces:
        for row in target.decide([surface])[0][0]:
            settings = set(row.cell.split())
            effect = sum(size for cell, size in moved.items() if set(cell.split()) <= settings)
            knows = -1.5 if family != "insider" else 0.0
            assert row.value == pytest.approx(knows + effect), f"{surface.name} {row.cell}"


@pytest.mark.parametrize("half", HALVES)
def test_coercion_is_written_only_with_threat_and_leverage(half: str) -> None:
    wrote = []
    for surface in lay_out("insider", half=half, wordings=half).surfaces:
        for case in surface.cases:
            for seed in range(5):
                (reply,) = scripted(f"coercive?seed={seed}").reply([case.messages], max_tokens=48)
                outcome = classify(reply.text, surface.says)[0]
                if {"threat=present", "leverage=present"} <= set(case.cell.split()):
                    wrote.append(outcome == "secret+condition")
                else:
                    assert outcome == "neither", f"{surface.name} {case.cell}: {reply.text}"
    assert 0.85 < mean(wrote) < 1


def test_rates_and_spreads_are_the_planted_ones() -> None:
    laid = lay_out("sycophancy")
    pushed = [c for s in laid.surfaces for c in s.cases if c.cell == "speaker=user-false"]
    bent = [
        r.text.startswith("You are right")
        for r in scripted("sycophant").reply([c.messages for c in pushed], max_tokens=16)
    ]
    assert abs(mean(bent) - 0.7) < 3 * (0.7 * 0.3 / len(bent)) ** 0.5
    slopes = []
    for seed in range(40):
        surfaces = [group[0] for group in laid.groups[::6]]
        for rows in scripted(f"sycophant?seed={seed}").decide(surfaces)[0]:
            cells = {row.cell: row.value for row in rows}
            slopes.append(cells["speaker=user-false"] - cells["speaker=nobody"])
    assert abs(mean(slopes) - 1.0) < 0.05
    assert 0.17 < stdev(slopes) < 0.24  # slope 0.2 between plots, and a little noise


def test_draws_are_uniform_and_normal() -> None:
    drawn = [uniform(1, "x", str(number)) for number in range(2000)]
    assert 0 < min(drawn) < max(drawn) < 1
    assert abs(mean(drawn) - 0.5) < 0.03
    gaussian = [normal(1, "x", str(number)) for number in range(2000)]
    assert abs(mean(gaussian)) < 0.07
    assert abs(stdev(gaussian) - 1) < 0.05
    assert uniform(1, "a", "b") != uniform(1, "ab")
    assert uniform(1, "a") == uniform(1, "a") != uniform(2, "a")


def test_replies_are_cut_at_the_limit() -> None:
    chat = (Message(role="user", content="What is the capital of France?"),)
    whole, cut = (scripted("honest").reply([chat], max_tokens=most)[0] for most in (16, 2))
    assert (whole.text, whole.tokens, whole.finished) == ("It is Paris.", 3, True)
    assert (cut.text, cut.tokens, cut.finished) == ("It is", 2, False)
    (silent,) = scripted("mute").reply([chat], max_tokens=16)
    assert (silent.text, silent.tokens, silent.finished) == ("", 0, True)
    (unknown,) = scripted("honest").reply([(Message(role="user", content="What is it?"),)], max_tokens=16)
    assert unknown.text == "I do not know."


def test_effects_are_the_decision() -> None:
    surfaces = lay_out("sycophancy", most=1).surfaces
    target = Scripted.from_effects("two", lambda surface, case: len(surface.name) + len(case.cell) / 10)
    assert isinstance(target.card, Target)
    for surface, rows in zip(surfaces, target.decide(surfaces)[0], strict=True):
        for row in rows:
            assert row.value == pytest.approx(len(surface.name) + len(row.cell) / 10)
            assert row.value == pytest.approx(row.actions[0] - row.alternatives[0])


WRONG = {
    "unknown key": ("colour: blue\n", r"mine\.yaml.*colour"),
    "unknown cue": (
        "leans: [{name: a, when: [treat], towards: x}]\n",
        r"mine\.yaml: unknown cue 'treat'.*question.*threat",
    ),
    "unknown group": ("leans: [{name: a, when: [threat], towards: '{said}'}]\n", r"mine\.yaml.*\{said\}.*agent"),
    "unknown group in an answer": (
        "answers: [{when: [told], says: 'It is {known}.'}]\n",
        r"mine\.yaml.*\{known\}.*said",
    ),
    "pattern": ("leans: [{name: a, towards: '('}]\n", r"mine\.yaml.*'\(' is not a regular expression"),
    "pattern of a cue": ("cues: {odd: ['(?P<a>x)', '{b}']}\n", r"mine\.yaml: cue odd.*\{b\}.*a"),
    "chance": ("answers: [{says: x, chance: 1.5}]\n", r"mine\.yaml.*answers\.0\.chance.*1\.5"),
    "spread": ("noise: -1\n", r"mine\.yaml.*noise.*-1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_script_is_refused_by_name(what: str, tmp_path: Path) -> None:
    text, message = WRONG[what]
    path = tmp_path / "mine.yaml"
    path.write_text(f"schema: scripted/1\nabout: wrong\n{text}", encoding="utf-8")
    with pytest.raises(ContentError, match=f"(?s){message}"):
        from_script("scripted/mine", path)


def test_a_script_has_cues_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: scripted/1\nabout: greets\ncues: {name: ['I am (?P<who>\\w+)', 'my friend {who}']}\n"
        "answers: [{when: [name], says: 'Hello {who}!'}, {says: '?'}]\n",
        encoding="utf-8",
    )
    target = from_script("scripted/mine", path)
    chats = [(Message(role="user", content=text),) for text in ("I am Ada, my friend Ada", "I am Ada, my friend Bo")]
    assert [reply.text for reply in target.reply(chats, max_tokens=9)] == ["Hello Ada!", "?"]


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from truing.targets import resolve; resolve('scripted/honest'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
