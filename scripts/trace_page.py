"""Put the figures of `make bench-trace`, `make bench-inside` and the game into docs/explanation/microscope.md.

None is typed. Where results lack a figure, the page says "not measured".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from demo_page import at, between
from sixteen_page import interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "trace.json"
INSIDE, ELSEWHERE = RESULTS.with_name("inside.json"), RESULTS.with_name("trace-cuda.json")
BLIND, GAME = RESULTS.with_name("game-microscope.json"), RESULTS.with_name("game.json")
PAGE = ROOT / "docs" / "explanation" / "microscope.md"
RULES = ("relp", "gradient", "integrated-gradients", "largest change", "activation size", "random")
CURVE = re.compile(rf"(\w+), (.+), ({'|'.join(RULES)}): (CMD|n\(F >= 0\.8\))")
PATCHED = re.compile(rf"(\w+), (\d+ of .+), ({'|'.join(RULES)}): correlation with patching")
CHOICES = ("attribution", "another effect", "largest change", "activation size", "random", "shuffled")
MEDIATED = re.compile(rf"(.+): (\d+) (heads|neurons) by ({'|'.join(CHOICES)})(?: \(.+\))?(, put back)?")
TRAINED = re.compile(r"trained( planted)? (units|neurons|heads), (.+): AUROC of \|score\|")
PLANTED = re.compile(r"planted (units|neurons|heads), (.+): AUROC of \|score\|")
VERDICT = re.compile(r"(.+): (supported|weak|refuted|inconclusive)")
LOOKED = re.compile(r"([a-z-]+), (trained out|hidden|clean control): (.+)")
BEYOND = re.compile(r"(.+): (\d+ \w+), (gone|brought back) beyond those of another effect")
CASE = "bundled model, 200 tokens, 512 neurons"
LONG, BY_NODE = "bundled model, 4,", "of these with neurons as nodes"
ONE = "one case, "
FOOLED = ": called supported"
UNMEASURED = "Not measured."
KINDS = {"shares of effects": MEDIATED, "CMD": re.compile(r".+: CMD"), "AUROC of the trained circuit": TRAINED}
"""Figures that are set beside those of an accelerator: they meant the same in the sources that were measured there."""
APART = re.compile(r"hidden - trained out: (.+?)(|, larger when hidden|, clearly (?:larger|smaller) when hidden)")


def effects(found: dict[str, Any]) -> str:
    """What goes of effects with chosen units, beside baselines."""
    counted = [
        f"{row['name'].capitalize()}: {row['value']:.0f} {row['unit']} (wanted: {row['bar']}; {_holds(row)})."
        for row in found["rows"] if row["name"] == "effects supported"
    ]  # fmt: skip
    lines = [*_mediated(found, back=False), "", *(counted or ["How many are supported: not measured."])]
    return "\n".join([*lines, "", source(found)])


def restored(found: dict[str, Any]) -> str:
    """What comes of them when units are put into the other twin."""
    lines = _mediated(found, back=True)
    return "\n".join([*lines, "", source(found)]) if len(lines) > 2 else UNMEASURED


def _mediated(found: dict[str, Any], *, back: bool) -> list[str]:
    """A table of shares, of what goes or of what comes back."""
    shares: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        if (match := MEDIATED.fullmatch(row["name"])) and bool(match[5]) == back:
            name, k, kind, choice, _ = match.groups()
            # Of two other effects the first is that which comes closest in what goes, the last in what comes.
            by = shares.setdefault((name, f"{k} {kind}"), {})
            by[choice] = row if back else by.get(choice, row)
    said = {match[1]: match[2] for row in found["rows"] if (match := VERDICT.fullmatch(row["name"]))}
    lines = [f"| Effect | Units | {' | '.join(f'by {one}' for one in CHOICES)} |", "|" + "---|" * (2 + len(CHOICES))]
    for (name, units), by in shares.items():
        cells = [interval(by[choice]) if choice in by else "" for choice in CHOICES]
        lines.append(f"| {name} ({said[name]}) | {units} | {' | '.join(cells)} |")
    return lines


def beyond(found: dict[str, Any]) -> str:
    """How much more units do than as many units of that other effect which comes closest."""
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        if match := BEYOND.fullmatch(row["name"]):
            name, units, way = match.groups()
            table.setdefault((name, units), {})[way] = row
    if not table:
        return UNMEASURED
    lines = ["| Effect | Units | more goes | more is brought back |", "|---|---|---|---|"]
    for (name, units), by in table.items():
        cells = [interval(by[way]) if way in by else "" for way in ("gone", "brought back")]
        lines.append(f"| {name} | {units} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(found)])


def rules(found: dict[str, Any]) -> str:
    """CMD of circuits by each rule, and how many units reach 0.8."""
    tables: dict[str, dict[tuple[str, str], dict[str, Any]]] = {"CMD": {}, "n(F >= 0.8)": {}}
    for row in found["rows"]:
        if match := CURVE.fullmatch(row["name"]):
            task, level, rule, what = match.groups()
            tables[what].setdefault((task, level), {})[rule] = row
    lines = []
    for what, titled in (("CMD", "CMD: 0 is best"), ("n(F >= 0.8)", "Units for F >= 0.8")):
        lines += [f"**{titled}**", "", f"| Task | Units | {' | '.join(f'`{rule}`' for rule in RULES)} |",
                  "|" + "---|" * (2 + len(RULES))]  # fmt: skip
        for (task, level), by in tables[what].items():
            cells = [_cell(by.get(rule), what) for rule in RULES]
            lines.append(f"| {task} | {level} | {' | '.join(cells)} |")
        lines.append("")
    lines += [*_counted(found, ("pairs, ", "twins, ")), ""]
    return "\n".join([*lines, source(found)])


def patching(found: dict[str, Any]) -> str:
    """How far scores follow what patching single units does."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        if match := PATCHED.fullmatch(row["name"]):
            task, units, rule = match.groups()
            table.setdefault((task, units), {})[rule] = row
    known = [rule for rule in RULES if any(rule in by for by in table.values())]
    lines = [f"| Task | Units | {' | '.join(f'`{rule}`' for rule in known)} |", "|" + "---|" * (2 + len(known))]
    for (task, units), by in table.items():
        lines.append(f"| {task} | {units} | {' | '.join(interval(by[r]) if r in by else '' for r in known)} |")
    missing = sorted({match[1] for row in found["rows"] if (match := CURVE.fullmatch(row["name"]))}
                     - {task for task, _ in table})  # fmt: skip
    lines += ["", f"Not measured: {', '.join(missing)}."] if missing else []
    lines += ["", *_counted(found, ("pairs patched", "twins patched"))]
    return "\n".join([*lines, "", source(found)])


def _counted(found: dict[str, Any], whats: tuple[str, ...]) -> list[str]:
    """Of how many pairs, or twins of a claim, figures are."""
    rows = [(row["name"].partition(": "), row) for row in found["rows"]]
    return [
        f"- {task}: {row['value']:.0f} {what}" + ("" if row["unit"] in what else f" ({row['unit']})")
        for (task, _, what), row in rows if what.startswith(whats)
    ]  # fmt: skip


def published(found: dict[str, Any]) -> str:
    """What others report of a task of the same kind, beside the figures here."""
    rows = {row["name"]: row for row in found["rows"]}
    theirs = [row for name, row in rows.items() if name.startswith("published: ")]
    if not theirs:
        return UNMEASURED
    lines = ["| Published | Figure | Of | Here | Figure |", "|---|---|---|---|---|"]
    for row in theirs:
        said = row["name"].removeprefix("published: ")
        ours = [name for name in _alike(said) if name in rows]
        for number, name in enumerate(ours or ["not measured"]):
            first = f"{said} | {row['value']:.3g} | {row['peer']}" if number == 0 else " | | "
            lines.append(f"| {first} | {name} | {interval(rows[name]) if ours else ''} |")
    return "\n".join([*lines, "", *_orders(rows), source(found)])


def _orders(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Whether `relp` or the plain derivative follows patching better: here, and as published."""
    said = []
    for outputs, units in (("MLP", "the strongest neurons"), ("attention", "all heads")):
        named = [f"published: PCC of {rule} and patching, {outputs} outputs, IOI, GPT-2 small"
                 for rule in ("RelP", "gradients")]  # fmt: skip
        ours = [f"receivers, 64 of {units}, {rule}: correlation with patching" for rule in ("relp", "gradient")]
        if all(name in rows and rows[name]["value"] is not None for name in (*named, *ours)):
            theirs, mine = ([rows[name]["value"] for name in pair] for pair in (named, ours))
            better = ["`relp`" if a > b else "the plain derivative" for a, b in (theirs, mine)]
            said.append(f"of {outputs} outputs {better[0]} as published, of {units} {better[1]} here")
    return [f"What follows patching better: {'; '.join(said)}.", ""] if said else []


NAMED = (("NAP-IG", "integrated-gradients"), ("NAP", "gradient"), ("RelP", "relp"), ("gradients", "gradient"),
         ("random", "random"))  # fmt: skip
"""What a published figure calls a rule, and what it is called here."""


def _alike(said: str) -> list[str]:
    """The rows here that are about the same kind of figure, by the same rule."""
    rule = next(ours for theirs, ours in NAMED if theirs in said)
    if said.startswith("CMD"):
        return [f"receivers, {level}, {rule}: CMD" for level in ("neurons", "heads")]
    units = "all heads" if "attention" in said else "the strongest neurons"
    return [f"receivers, 64 of {units}, {rule}: correlation with patching"]


def case(found: dict[str, Any]) -> str:
    """Every figure of the case of 200 tokens, and what the worst of them say."""
    rows = {row["name"].removeprefix(CASE).strip(" :,"): row for row in found["rows"] if row["name"].startswith(CASE)}
    if not rows:
        return UNMEASURED
    said = [_carried(ablation, rows) for ablation in ("zero", "mean")]
    verdict = next((name.split()[-1] for name in rows if name.startswith("verdict ")), "not measured")
    lines = [f"Its verdict is `{verdict}`. {' '.join(said)}", "", "| Of the case | Figure |", "|---|---|"]
    for name, row in rows.items():
        if not name.startswith("verdict "):
            lines.append(f"| {name} | {_figure(row)} |")
    return "\n".join([*lines, "", source(found)])


def _carried(ablation: str, rows: dict[str, dict[str, Any]]) -> str:
    """What the graph's neurons carry alone, beside as many others, in words."""
    shares = {by: rows.get(f"faithfulness ({ablation}, by {by})") for by in ("attribution", "activation", "random")}
    own = shares["attribution"]
    if own is None or own["value"] is None:
        return f"What its neurons carry alone under {ablation} ablation is not measured."
    others = " and ".join(
        f"{row['value']:.2f} by {what}" for what, row in (("the most active ones", shares["activation"]),
                                                          ("random ones", shares["random"]))
        if row is not None and row["value"] is not None
    )  # fmt: skip
    off = abs(1 - own["value"])
    if off <= 0.5:
        how = "which is near the whole"
    elif own["value"] < 0:
        how = "which is worse than nothing: alone, they push the decision the wrong way"
    else:
        how = "which is far from the whole"
    alone = f"its neurons carry {own['value']:.2f} of the decision"
    return f"With all others ablated to {ablation}, {alone}, {how}" + (f" ({others})." if others else ".")


def _figure(row: dict[str, Any]) -> str:
    """A figure, with its interval where it has one, its unit, and its bar."""
    if row["value"] is None:
        return row["unit"]
    ends = row["low"] is not None and row["high"] is not None and row["low"] < row["high"]
    shown = _ends(row) if ends else f"{row['value']:.4g}"
    return f"{shown} {row['unit']}" + (f" (wanted: {row['bar']}; {_holds(row)})" if row["bar"] else "")


def _holds(row: dict[str, Any]) -> str:
    return {True: "holds", False: "**missed**", None: ""}[row["holds"]]


def cases(found: dict[str, Any]) -> str:
    """How often the graph of one case is called supported, and passes tests, by what it is made of."""
    rows = [row for row in found["rows"] if row["name"].startswith(ONE)]
    if not rows:
        return UNMEASURED
    lines = ["| Graphs of one case | Share | Of | Wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        of, held = row["unit"].removeprefix("share of "), _holds(row) if row["bar"] else ""
        lines.append(f"| {row['name'].removeprefix(ONE)} | {interval(row)} | {of} | {row['bar'] or ''} | {held} |")
    return "\n".join([*lines, "", *_of_cases({row["name"].removeprefix(ONE): row for row in rows}), source(found)])


def _of_cases(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the verdict and its two permutation tests are worth, graphs beside shams, in words."""
    whats = ("called supported", "both tests of scores are passed")
    names = [f"{of}: {what}" for what in whats for of in ("its own graph", "all shams")]
    if any(name not in rows for name in names):
        return []
    own, shams, both, both_shams = (rows[name]["value"] for name in names)
    said = f"Called `supported` are {own:.2f} of graphs and {shams:.2f} of shams"
    if not own:
        said = "No graph is called `supported`, its own no more than shams" if not shams else said
    return [f"{said}; both tests of scores pass {both:.2f} of graphs and {both_shams:.2f} of shams.", ""]


def blind() -> str:
    """How the player that looks inside did in the game, beside the others."""
    if not BLIND.exists():
        return UNMEASURED
    found = json.loads(BLIND.read_text(encoding="utf-8"))
    other = json.loads(GAME.read_text(encoding="utf-8")) if GAME.exists() else {"rows": [], "commit": ""}
    wanted = {"right trigger": "names a word of the trigger", "area under the ROC curve": "area under the ROC curve"}
    lines = [f"| Player | {' | '.join(wanted.values())} | |", "|---|---|---|---|"]
    for file in (found, other):
        by: dict[str, dict[str, dict[str, Any]]] = {}
        for row in file["rows"]:
            player, _, what = row["name"].partition(": ")
            if what in wanted:
                by.setdefault(player, {})[what] = row
        for player, figures in by.items():
            if len(figures) == len(wanted):
                cells = " | ".join(interval(figures[what]) for what in wanted)
                lines.append(f"| {player} | {cells} | {at(file['commit'])} |")
    return "\n".join(lines)


def peers(found: dict[str, Any]) -> str:
    """Time and memory beside others, and of the bundled model: every row that has a bar or a peer and stands nowhere
    else, how long the longest prompt takes, and what is no node in some architectures.
    """
    lines = ["| What | Here | Beside | Wanted | |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        elsewhere = row["name"].endswith(FOOLED) or row["name"].startswith(
            ("trained", "planted", "effects supported", "published")
        )
        if ((row["bar"] or row["peer"]) and not elsewhere) or row["name"].startswith((LONG, BY_NODE)):
            ratio = row["ratio"]
            times = "{median:.2f} [{min:.2f}, {max:.2f}] times".format(**ratio) if ratio else ""
            beside = f"{row['peer']}: {times}" if ratio else ""
            value = row["unit"] if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
            lines.append(f"| {row['name']} | {value} | {beside} | {row['bar'] or ''} | {_holds(row)} |")
    return "\n".join([*lines, "", source(found)])


def accelerator(found: dict[str, Any]) -> str:
    """The same figures where the model is on an accelerator: how far apart, and what the longest prompt takes."""
    there = json.loads(ELSEWHERE.read_text(encoding="utf-8"))
    here, rows = {row["name"]: row for row in found["rows"]}, {row["name"]: row for row in there["rows"]}
    lines = ["| Figures | In both | Largest difference |", "|---|---|---|"]
    for what, pattern in KINDS.items():
        named = [name for name in {**here, **rows} if pattern.fullmatch(name)]
        values = [[table.get(name, {}).get("value") for table in (here, rows)] for name in named]
        both = [abs(a - b) for a, b in values if a is not None and b is not None]
        apart = f"{max(both):.2g}" if both else "not measured"
        lines.append(f"| {what} | {len(both)} of {len(named)} | {apart} |")
    lines += ["", "| What | Here | There |", "|---|---|---|"]
    for name, row in rows.items():
        if name.startswith(("bundled model, ", "effects supported")):
            lines.append(f"| {name} | {_value(here.get(name))} | {_value(row)} |")
    machine = there["machine"]
    return "\n".join([*lines, "", f"There: {machine['accelerator']}; {at(there['commit'])}.", f"Here: {source(found)}"])


def _value(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "not measured"
    return f"{_ends(row) if row['low'] is not None else format(row['value'], '.4g')} {row['unit']}"


def causes(found: dict[str, Any]) -> str:
    """How often the word of a trigger is named, over recipes."""
    said = "the word of the trigger is named: "
    lines = ["| The word that | Is one of the trigger's |", "|---|---|"]
    some = [row for row in found["rows"] if row["name"].startswith(said)]
    lines += [f"| {row['name'].removeprefix(said)} | {interval(row)} |" for row in some]
    return "\n".join([*lines, "", source(found)])


def shams(found: dict[str, Any]) -> str:
    """How often units are called supported that scores of no worth chose."""
    lines = ["| Units chosen by | Called `supported` | Of | Wanted | |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        if row["name"].endswith(FOOLED) and not row["name"].startswith(ONE):
            of = row["unit"].removeprefix("share of ")
            name = row["name"].removesuffix(FOOLED)
            lines.append(f"| {name} | {interval(row)} | {of} | {row['bar']} | {_holds(row)} |")
    return "\n".join([*lines, "", source(found)])


def trained(found: dict[str, Any]) -> str:
    """What the circuits of trained models are, and the areas of every rule."""
    areas: dict[str, dict[str, dict[str, Any]]] = {}
    lines = ["| Of the model | Mean over seeds, least and most | Wanted | |", "|---|---|---|---|"]
    for row in found["rows"]:
        if match := TRAINED.fullmatch(row["name"]):
            areas.setdefault(match[3], {})[f"{match[1] or ''} {match[2]}".strip()] = row
        elif row["name"].startswith("trained: ") and row["low"] is not None:
            ends, holds = _ends(row), _holds(row)
            said = row["name"].removeprefix("trained: ")
            lines.append(f"| {said}, {row['unit']} | {ends} | {row['bar'] or ''} | {holds} |")
    if not areas:
        return "Not measured yet."
    kinds = ("units", "neurons", "heads", "planted units")
    lines += ["", "| AUROC by | units | neurons | heads | all units that were planted |", "|---|---|---|---|---|"]
    lines += [f"| `{rule}` | {' | '.join(_ends(by[kind]) for kind in kinds)} |" for rule, by in areas.items()]
    return "\n".join([*lines, "", _wanted(areas), "", source(found)])


def planted(found: dict[str, Any]) -> str:
    """The areas of every rule for the circuit that was written by hand."""
    areas: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        if match := PLANTED.fullmatch(row["name"]):
            areas.setdefault(match[2], {})[match[1]] = row
    if not areas:
        return UNMEASURED
    kinds = ("units", "neurons", "heads")
    lines = ["| AUROC by | units | neurons | heads |", "|---|---|---|---|"]
    lines += [f"| `{rule}` | {' | '.join(_ends(by[kind]) for kind in kinds)} |" for rule, by in areas.items()]
    return "\n".join([*lines, "", _wanted(areas), "", source(found)])


def _wanted(areas: dict[str, dict[str, dict[str, Any]]]) -> str:
    barred = next(row for by in areas.values() for row in by.values() if row["bar"])
    held = "holds" if barred["holds"] else "**missed**"
    return f"Wanted of `relp` for units, with every seed: {barred['bar']}; {held}."


def inside(found: dict[str, Any]) -> str:
    """What is left inside organisms whose behaviour was trained out or hidden, and how far the two are apart."""
    shown: dict[tuple[str, str], dict[str, Any]] = {}
    apart: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        if match := LOOKED.fullmatch(row["name"]):
            name, truth, what = match.groups()
            shown.setdefault((name, what), {})[truth] = row
        elif match := APART.fullmatch(row["name"]):
            apart.setdefault(match[1], {})[match[2]] = row
    truths = ("trained out", "hidden", "clean control")
    lines = [f"| Recipe | What is left inside | {' | '.join(truths)} |", "|" + "---|" * 5]
    for (name, what), by in shown.items():
        lines.append(f"| {name} | {what} | {' | '.join(interval(by[one]) if one in by else '' for one in truths)} |")
    lines += ["", "| hidden - trained out | mean over recipes | larger | clearly larger | clearly smaller |",
              "|" + "---|" * 5]  # fmt: skip
    for what, by in apart.items():
        counts = (", larger when hidden", ", clearly larger when hidden", ", clearly smaller when hidden")
        cells = [f"{by[one]['value']:.0f} {by[one]['unit']}" if one in by else "" for one in counts]
        lines.append(f"| {what} | {_mean(by[''])} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(found)])


NOT_YET = "Not measured yet: there are no results of `make bench-inside`."


def left() -> str:
    """The table of what is left inside, or that there is none."""
    return inside(json.loads(INSIDE.read_text(encoding="utf-8"))) if INSIDE.exists() else NOT_YET


def _mean(row: dict[str, Any]) -> str:
    if row["value"] is None or row["low"] is None:
        return "not measured" if row["value"] is None else f"{row['value']:.2f}"
    return interval(row)


def framing(found: dict[str, Any]) -> str:
    """The same scenes as a test and as the real thing, in the bundled model."""
    rows = [row for row in found["rows"] if row["name"].startswith(("test minus real, ", "test against real, "))]
    if not rows:
        return UNMEASURED
    lines = ["| A test against the real thing | | Unit |", "|---|---|---|"]
    lines += [f"| {row['name'].partition(', ')[2]} | {_ends(row)} | {row['unit']} |" for row in rows]
    parts = [row for row in rows if row["unit"] == "nats/token"]
    clear = [row["name"].partition(", ")[2] for row in parts if row["low"] > 0 or row["high"] < 0]
    said = f"Clear of zero, of these {len(parts)} and without a correction for there being so many: "
    return "\n".join([*lines, "", f"{said}{', '.join(clear) or 'none'}.", "", source(found)])


def source(found: dict[str, Any]) -> str:
    """On which machine, of which sources."""
    machine = found["machine"]
    return f"On {machine['cores']} cores ({machine['processor']}); {at(found['commit'])}."


def _ends(row: dict[str, Any]) -> str:
    return f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"


def _cell(row: dict[str, Any] | None, what: str) -> str:
    if row is None or row["value"] is None:
        return "not measured"
    if what == "CMD":
        return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"


TABLES = {
    "effects": effects, "restored": restored, "beyond": beyond, "rules": rules, "patching": patching,
    "published": published, "trained": trained, "planted": planted, "causes": causes, "shams": shams, "case": case,
    "cases": cases, "framing": framing, "peers": peers, "accelerator": accelerator,
}  # fmt: skip


def main() -> None:
    """Rewrite the tables."""
    found, text = json.loads(RESULTS.read_text()), PAGE.read_text()
    for mark, table in TABLES.items():
        text = between(text, f"trace {mark}", table(found))
    text = between(text, "trace inside", left())
    text = between(text, "trace blind", blind())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
