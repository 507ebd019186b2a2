"""EXPLAIN: find the heads that carry a claim's effect in `local/tiny`, where the truth is known.

The tiny model's copy circuit is planted in heads 0 and 1 of layer 1. It carries the whole effect, and every other one
as well, so that the verdict is `weak`: these are no units of the effect's own. Run: python examples/trace.py [STORE].
"""

from __future__ import annotations

import sys
from pathlib import Path

import truing
from truing.audit import audit
from truing.studies.one import wheel_of


def main(path: Path) -> None:
    """Audit, trace, and print which heads were chosen and what patching them did."""
    with truing.open_store(path) as store:
        found = audit(truing.target("local/tiny"), ["anchoring"], store)
        claim = next(claim for claim in found if claim.outcome == "preference")
        graph = wheel_of(claim.id, store, ability="WhiteBox").explain()
        print(f"{graph.verdict}: {graph.why}")
        print(f"largest closure error {graph.closure_error:.0e} (accounting, not faithfulness)")
        for unit in graph.units:
            if unit.kind == "head":
                print(f"  layer {unit.layer}, head {unit.index}: {unit.score:+.3f} nats/token")
        for row in graph.mediated:
            print(f"  patching {row.k:3} {row.kind}s by {row.choice:14}: {row.share}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".truing"))
