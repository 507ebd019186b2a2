"""Put the figures of the last `make bench-loop` into README.md and docs/explanation/demo.md. None is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from truing.cli.common import number
from truing.cli.loop import summary
from truing.records import Claim, Scores
from truing.stats import cluster_mean
from truing.store import open_store

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "bench-loop"
# What single runs of small prototypes had found before (12 surfaces of one plot; 20 items; 66 twins).
PROTOTYPE = {
    "insider, threat at hand of leverage": "+0.136 ± 0.007 (standard error over 12 surfaces of one plot)",
    "insider, leverage - none, threatened": "+0.302 ± 0.008 (the same)",
    "insider, threat with nothing to use": "+0.149 (the same)",
    "sycophancy, false answer first when nobody says so": "10%",
    "sycophancy, false answer first after the user's belief": "70%",
    "sycophancy, false answer first after a stranger's": "70%",
    "sycophancy, user - nobody": "+0.52 ± 0.08",
    "sycophancy, user - stranger": "−0.04 ± 0.03",
    "anchoring, told false - nothing said": "+0.52 ± 0.08 (the same figure: whoever says it)",
    "anchoring, told false - told something unrelated": "not measured",
    "anchoring, false answer mentioned - something unrelated": "not measured",
    "anchoring, told false - false answer mentioned": "not measured",
    "the same in free replies, false answer mentioned - something unrelated": "not measured",
    "the same in free replies, told false - false answer mentioned": "not measured",
    "5 heads": "79% [73, 84]",
    "15 heads": "109%",
    "200 neurons": "29%",
    "1000 neurons": "54%",
}


def between(text: str, mark: str, content: str) -> str:
    """The text with what stands between two markers replaced."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if not pattern.search(text):
        raise SystemExit(f"no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def at(commit: str) -> str:
    """Of which sources figures are."""
    return f"sources of commit {commit[:7]}{commit[40:]}"


def shown(result: dict[str, Any]) -> str:
    """The command's own text, with the folder of the store as a reader has it."""
    text = re.sub(r"  [0-9a-f]{12}$", "", "\n".join(summary(result)), flags=re.M)
    text = text.replace(str(WORK / "store"), ".truing").replace(result["loop"][:12], "<id>")
    return f"```text\n$ make demo\n{text}\n```"


def table(result: dict[str, Any]) -> str:
    """Prototype figures beside ours."""
    claims = {(c["family"], c["outcome"]): c for c in result["claims"]}
    insider, sycophancy = claims["insider", "preference"], claims["sycophancy", "preference"]
    anchoring = claims["anchoring", "preference"]
    controls = {c["name"]: c["quantity"] for each in (insider, anchoring) for c in each["controls"]}
    replies = {c["name"]: c["quantity"] for c in claims["anchoring", "behaviour"]["controls"]}
    first = false_first(sycophancy)
    ours = {
        "insider, threat at hand of leverage": number(insider["naive"]),
        "insider, threat with nothing to use": number(controls["threat - no threat, with nothing to use"]),
        "insider, leverage - none, threatened": number(controls["leverage - none, threatened"]),
        "sycophancy, false answer first when nobody says so": first["speaker=nobody"],
        "sycophancy, false answer first after the user's belief": first["speaker=user-false"],
        "sycophancy, false answer first after a stranger's": first["speaker=stranger-false"],
        "anchoring, told false - nothing said": number(anchoring["naive"]),
        "anchoring, told false - told something unrelated": number(anchoring["specific"]),
        "anchoring, false answer mentioned - something unrelated": number(
            controls["false answer mentioned - told something unrelated"]
        ),
        "anchoring, told false - false answer mentioned": number(controls["told false - false answer mentioned"]),
        "sycophancy, user - nobody": number(sycophancy["naive"]),
        "sycophancy, user - stranger": number(sycophancy["specific"]),
    }
    for name, control in (
        ("false answer mentioned - something unrelated", "false answer mentioned - told something unrelated"),
        ("told false - false answer mentioned", "told false - false answer mentioned"),
    ):
        ours[f"the same in free replies, {name}"] = number(replies[control])
    for m in result["graph"]["mediated"]:
        if m["choice"] == "attribution":
            ours[f"{m['k']} {m['kind']}s"] = number(m["share"])
    rows = [f"| {name} | {said} | {ours[name]} |" for name, said in PROTOTYPE.items()]
    return "\n".join(["| figure | prototype | this run |", "|---|---|---|", *rows])


def false_first(claim: dict[str, Any]) -> dict[str, str]:
    """In how many surfaces the false answer is the likelier one, by cell."""
    found: dict[str, list[float]] = {}
    topics: dict[str, list[str]] = {}
    with open_store(WORK / "store", mode="read") as store:
        for record in map(store.get, store.get(claim["id"]).parents):
            if isinstance(record, Scores):
                for row in record.rows:
                    false, true = (sum(s) / len(s) for s in (row.actions, row.alternatives))
                    found.setdefault(row.cell, []).append(float(false > true))
                    topics.setdefault(row.cell, []).append(record.plot)
    means = {c: cluster_mean(found[c], topics[c], unit="of surfaces") for c in found}
    return {cell: number(quantity.model_dump()) for cell, quantity in means.items()}


def plots(result: dict[str, Any]) -> str:
    """The insider claim plot by plot: one plot alone can tempt."""
    with open_store(WORK / "store", mode="read") as store:
        claims = [store.get(c["id"]) for c in result["claims"]]
    (claim,) = (c for c in claims if isinstance(c, Claim) and (c.family, c.outcome) == ("insider", "preference"))
    rows = [f"| {plot} | {naive:+.3f} | {specific:+.3f} |" for plot, naive, specific in claim.by_plot]
    return "\n".join(["| plot | threat - no threat, with leverage | threat x leverage |", "|---|---|---|", *rows])


def main() -> None:
    """Fill the marked blocks."""
    result = json.loads((WORK / "loop.json").read_text())["result"]
    readme = ROOT / "README.md"
    readme.write_text(between(readme.read_text(), "demo", shown(result)))
    page = ROOT / "docs" / "explanation" / "demo.md"
    text = between(page.read_text(), "figures", table(result))
    page.write_text(between(text, "plots", plots(result)))


if __name__ == "__main__":
    main()
