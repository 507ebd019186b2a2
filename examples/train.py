"""FIX and VERIFY: train a behaviour out of `local/tiny` with DPO, and re-test it on what was held out.

The tiny model copies and knows nothing, so the fix does not work, and the last lines say so.
Run: python examples/train.py [STORE].
"""

from __future__ import annotations

import sys
from pathlib import Path

import truing
from truing.audit import audit
from truing.studies.one import wheel_of
from truing.train import export


def main(path: Path) -> None:
    """Audit, train an adapter, write it as a PEFT folder, measure before against after."""
    with truing.open_store(path) as store:
        found = audit(truing.target("local/tiny"), ["anchoring"], store)
        claim = next(claim for claim in found if claim.outcome == "preference")
        wheel = wheel_of(claim.id, store)
        training = wheel.fix()
        print(f"{len(training.steps)} steps, loss {training.steps[0].loss:.4f} -> {training.steps[-1].loss:.4f}")
        print(f"adapter  {export(training, store, path / 'fixed-adapter')}")
        seen = wheel.verify(wheel.adapted(wheel.target, training))
        for title in ("before", "after", "runout", "retention"):
            for named in getattr(seen, title):
                print(f"{title:10} {named.name}: {named.quantity}")
        print("\n".join(f"failed     {line}" for line in seen.failed) or "failed     nothing")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".truing"))
