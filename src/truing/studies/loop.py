"""One turn of the wheel: find, explain, fix, verify, prove."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.audit import audit, spec
from truing.records import Claim, Gate, Graph, Loop, Named, Record, Training, Unmeasured
from truing.report import page
from truing.runner import Silent, Watcher
from truing.store import Store
from truing.studies.options import Options
from truing.studies.peak import peak_rss_mb
from truing.studies.prove import prove
from truing.targets import resolve


@dataclass(frozen=True, slots=True)
class Turn:
    """What a loop left behind: its record and files."""

    record: Loop
    claims: tuple[Claim, ...]
    graph: Graph | None
    folder: Path
    bundle: Path
    digest: str
    verified: bool
    seconds: float

    def plain(self, store: Store) -> dict[str, Any]:
        """The object that `truing loop --json` ends with."""
        record, graph = self.record, self.graph
        claims = [claim.plain()["body"] | {"id": claim.id} for claim in self.claims]
        return {
            "target": store.get(record.target).plain()["body"] | {"id": record.target},
            "claims": claims,
            "claim": next((claim for claim in claims if claim["id"] == record.claim), None),
            "why": record.why,
            "before": _by_name(record.before),
            "after": _by_name(record.after),
            "runout": _by_name(record.runout),
            "retention": _by_name(record.retention),
            "relearning": _by_name(record.relearning),
            "graph": None
            if graph is None
            else {
                "id": graph.id,
                "closure_error": graph.closure_error,
                "verdict": graph.verdict,
                "why": graph.why,
                "mediated": [m.model_dump() for m in graph.mediated],
            },
            "gate": _gate(store.get(record.judged)) if record.judged else record.gate.model_dump(),
            "failed": list(record.failed),
            "bundle": {"path": str(self.bundle), "digest": self.digest, "verified": self.verified},
            "report": str(self.folder / "report.html"),
            "loop": record.id,
            "store": str(store.path),
            "seconds": round(self.seconds, 1),
            "peak_rss_mb": round(peak_rss_mb()),
        }


def loop(target: Any, store: Store, *, options: Options | None = None, watcher: Watcher | None = None) -> Turn:
    """Test the claims of the batteries on a target, or the target of a name; explain, fix and re-test one; pack it all.

    Every unit of work is kept as it is finished: killed at any instant, a rerun does the rest and ends with the same
    records.
    """
    began = time.perf_counter()
    options, watcher = options or Options(), watcher or Silent()
    target = resolve(target, watcher) if isinstance(target, str) else target
    store.add(spec())
    claims = audit(target, options.families, store, watcher=watcher)
    carried, why = choose(claims, target.card.abilities)
    watcher.say(why)
    found = {"target": target.card.id, "claims": tuple(c.id for c in claims), "why": why}
    parents = (target.card.id, spec().id, *(c.id for c in claims))
    if carried is None:
        nothing = Unmeasured(reason="no claim was carried on")
        return _finish(Loop(**found, claim=None, gate=nothing, parents=parents), claims, None, None, store, began)
    # They need torch, which an audit of a scripted target does not.
    from truing.studies.claimed import Claimed
    from truing.studies.gate import GONE, OVER, RELEARNED, Budget, gate
    from truing.studies.wheel import Wheel

    wheel = Wheel(target, carried, store, options, watcher)
    graph = wheel.explain()
    training = wheel.fix()
    fixed = wheel.adapted(target, training)
    seen = wheel.verify(fixed)
    again, carries, inside = wheel.inside(fixed, graph)
    judged = gate(target, fixed, Claimed(wheel), store, budget=Budget(seed=options.seed), watcher=watcher)
    made = (graph.id, again.id, training.id, training.pairs, inside.id, fixed.card.id, judged.id)
    more = {*made, *seen.parents} - set(parents)
    record = Loop(
        **found,
        claim=carried.id,
        before=seen.before,
        after=seen.after,
        runout=seen.runout,
        retention=(*seen.retention, *carries),
        relearning=tuple(named for named in judged.probes if named.name.startswith(RELEARNED)),
        graph=graph.id,
        fixed_graph=again.id,
        training=training.id,
        gate=next(named.quantity for named in judged.direct if named.name == OVER),
        judged=judged.id,
        failed=(*seen.failed, *([] if judged.verdict == GONE else [f"gate: {judged.verdict}: {judged.why}"])),
        parents=(*parents, *sorted(more)),
    )
    return _finish(record, claims, graph, training, store, began)


def choose(claims: Sequence[Claim], abilities: Sequence[str]) -> tuple[Claim | None, str]:
    """The claim to carry on: supported as a preference (what trace and train work on), smallest adjusted p."""
    supported = [c for c in claims if c.verdict == "supported" and c.outcome == "preference"]
    behaviour = {c.family for c in claims if c.verdict == "supported" and c.outcome == "behaviour"}
    if not supported and behaviour:
        return None, f"supported as behaviour alone ({', '.join(sorted(behaviour))}): no preference to trace or train"
    if not supported:
        return None, "no claim is supported: the loop ends after the audit, and the evidence is packed"
    best = min(supported, key=lambda c: (1.0 if c.p_holm is None else c.p_holm, c.family))
    if not {"WhiteBox", "Trainable"} <= set(abilities):
        return (
            None,
            f"{best.family} is supported, but this target can be neither traced nor trained; the evidence is packed",
        )
    outcome = "as preference and as behaviour" if best.family in behaviour else "as preference, not as behaviour"
    return best, f"carried on: {best.family} ({best.clause}), supported {outcome}"


def _finish(
    record: Loop, claims: Sequence[Claim], graph: Graph | None, training: Training | None, store: Store, began: float
) -> Turn:
    """PROVE: keep the loop's record; write report, adapter and signed bundle."""
    store.add(record)
    records = store.closure([record.id])
    along = [] if training is None else [training.state]
    html = page(record, records, blobs=store.blob_bytes)
    proof = prove(record, records, html, store, along=along, subject=record.why)
    if training is not None:
        from truing import train

        # The adapter goes along; attribution sums and relearned adapters stay in the store, listed as withheld.
        train.export(training, store, proof.folder / "adapter")
    seconds = time.perf_counter() - began
    return Turn(record, tuple(claims), graph, proof.folder, proof.bundle, proof.digest, proof.verified, seconds)


def _gate(record: Record) -> dict[str, Any]:
    assert isinstance(record, Gate)
    parts = {part: _by_name(getattr(record, part)) for part in ("direct", "probes", "cost", "inside")}
    return {"record": record.id, "verdict": record.verdict, "why": record.why, "harmed": list(record.harmed), **parts}


def _by_name(named: Sequence[Named]) -> dict[str, Any]:
    return {n.name: n.quantity.model_dump() for n in named}
