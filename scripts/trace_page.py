"""Put the figures of `make bench-trace` and `make bench-inside` into docs/explanation/microscope.md. None is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from demo_page import at, between
from sixteen_page import interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "trace.json"
INSIDE = RESULTS.with_name("inside.json")
PAGE = ROOT / "docs" / "explanation" / "microscope.md"
RULES = ("relp", "gradient", "integrated-gradients", "largest change", "random")
CURVE = re.compile(r"(\w+), (.+), (relp|gradient|integrated-gradients|largest change|random): (CMD|n\(F >= 0\.8\))")
PATCHED = re.compile(r"(\w+), (\d+ of .+), ([\w-]+(?: change)?): correlation with patching")
MEDIATED = re.compile(r"(.+): (\d+) (heads|neurons) by (attribution|another effect|largest change|random|shuffled).*")
TRAINED = re.compile(r"trained( planted)? (units|neurons|heads), (.+): AUROC of \|score\|")
VERDICT = re.compile(r"(.+): (supported|weak|refuted|inconclusive)")
LOOKED = re.compile(r"([a-z-]+), (trained out|hidden|clean control): (.+)")
APART = re.compile(r"hidden - trained out: (.+?)(|, larger when hidden|, clearly (?:larger|smaller) when hidden)")


def effects(found: dict[str, Any]) -> str:
    """What chosen units mediate of effects, beside baselines."""
    shares: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        if match := MEDIATED.fullmatch(row["name"]):
            name, k, kind, choice = match.groups()
            # Of two other effects the first is that which comes closest in what goes.
            shares.setdefault((name, f"{k} {kind}"), {}).setdefault(choice, row)
    said = {match[1]: match[2] for row in found["rows"] if (match := VERDICT.fullmatch(row["name"]))}
    choices = ("attribution", "another effect", "largest change", "random", "shuffled")
    lines = [f"| Effect | Units | {' | '.join(f'by {one}' for one in choices)} |", "|" + "---|" * (2 + len(choices))]
    for (name, units), by in shares.items():
        cells = [interval(by[choice]) if choice in by else "" for choice in choices]
        lines.append(f"| {name} ({said[name]}) | {units} | {' | '.join(cells)} |")
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
    return "\n".join([*lines, source(found)])


def patching(found: dict[str, Any]) -> str:
    """How far scores follow what patching single units does."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        if match := PATCHED.fullmatch(row["name"]):
            task, units, rule = match.groups()
            table.setdefault((task, units), {})[rule] = row
    known = [rule for rule in (*RULES, "gate-frozen") if any(rule in by for by in table.values())]
    lines = [f"| Task | Units | {' | '.join(f'`{rule}`' for rule in known)} |", "|" + "---|" * (2 + len(known))]
    for (task, units), by in table.items():
        lines.append(f"| {task} | {units} | {' | '.join(interval(by[r]) if r in by else '' for r in known)} |")
    return "\n".join([*lines, "", source(found)])


def peers(found: dict[str, Any]) -> str:
    """Time and memory beside others, and of the bundled model: every row with a bar that stands nowhere else."""
    lines = ["| What | Here | Beside | Wanted | |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        elsewhere = row["name"].endswith(": called supported") or row["name"].startswith("trained")
        if row["bar"] and row["value"] is not None and not elsewhere:
            ratio = row["ratio"]
            times = "{median:.2f} [{min:.2f}, {max:.2f}] times".format(**ratio) if ratio else ""
            beside = f"{row['peer']}: {times}" if ratio else ""
            holds = {True: "holds", False: "**missed**", None: ""}[row["holds"]]
            lines.append(f"| {row['name']} | {row['value']:.4g} {row['unit']} | {beside} | {row['bar']} | {holds} |")
    return "\n".join([*lines, "", source(found)])


def causes(found: dict[str, Any]) -> str:
    """How often the word of a trigger is named, over recipes."""
    said = "the word of the trigger is named: "
    lines = ["| The word that | Is one of the trigger's |", "|---|---|"]
    some = [row for row in found["rows"] if row["name"].startswith(said)]
    lines += [f"| {row['name'].removeprefix(said)} | {interval(row)} |" for row in some]
    return "\n".join([*lines, "", source(found)])


def shams(found: dict[str, Any]) -> str:
    """How often units are called supported that scores of no worth chose."""
    said = ": called supported"
    lines = ["| Units chosen by | Called `supported` | Of | Wanted | |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        if row["name"].endswith(said):
            of = row["unit"].removeprefix("share of ")
            holds = "holds" if row["holds"] else "**missed**"
            lines.append(f"| {row['name'].removesuffix(said)} | {interval(row)} | {of} | {row['bar']} | {holds} |")
    return "\n".join([*lines, "", source(found)])


def trained(found: dict[str, Any]) -> str:
    """What the circuits of trained models are, and the areas of every rule."""
    areas: dict[str, dict[str, dict[str, Any]]] = {}
    lines = ["| Of the model | Mean over seeds, least and most | Wanted | |", "|---|---|---|---|"]
    for row in found["rows"]:
        if match := TRAINED.fullmatch(row["name"]):
            areas.setdefault(match[3], {})[f"{match[1] or ''} {match[2]}".strip()] = row
        elif row["name"].startswith("trained: ") and row["low"] is not None:
            ends, holds = _ends(row), {True: "holds", False: "**missed**", None: ""}[row["holds"]]
            said = row["name"].removeprefix("trained: ")
            lines.append(f"| {said}, {row['unit']} | {ends} | {row['bar'] or ''} | {holds} |")
    if not areas:
        return "Not measured yet."
    kinds = ("units", "neurons", "heads", "planted units")
    lines += ["", "| AUROC by | units | neurons | heads | all units that were planted |", "|---|---|---|---|---|"]
    lines += [f"| `{rule}` | {' | '.join(_ends(by[kind]) for kind in kinds)} |" for rule, by in areas.items()]
    barred = next(row for by in areas.values() for row in by.values() if row["bar"])
    held = "holds" if barred["holds"] else "**missed**"
    wanted = f"Wanted of `relp` for units, with every seed: {barred['bar']}; {held}."
    return "\n".join([*lines, "", wanted, "", source(found)])


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


def source(found: dict[str, Any]) -> str:
    """On which machine, of which sources."""
    machine = found["machine"]
    return f"On {machine['cores']} cores ({machine['processor']}); {at(found['commit'])}."


def _ends(row: dict[str, Any]) -> str:
    return f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"


def _cell(row: dict[str, Any] | None, what: str) -> str:
    if row is None or row["value"] is None:
        return ""
    if what == "CMD":
        return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"


TABLES = {
    "effects": effects, "rules": rules, "patching": patching, "trained": trained, "causes": causes, "shams": shams,
    "peers": peers,
}  # fmt: skip


def main() -> None:
    """Rewrite the tables."""
    found, text = json.loads(RESULTS.read_text()), PAGE.read_text()
    for mark, table in TABLES.items():
        text = between(text, f"trace {mark}", table(found))
    text = between(text, "trace inside", left())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
