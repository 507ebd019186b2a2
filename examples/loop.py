"""All five stages in one turn of the wheel, on `local/tiny`. Run: python examples/loop.py [STORE]."""

from __future__ import annotations

import sys
from pathlib import Path

import truing


def main(path: Path) -> None:
    """Turn the wheel once; print what it found, what the fix changed, what it failed at, and where the files are."""
    with truing.open_store(path) as store:
        turn = truing.loop("local/tiny", store)
        for claim in turn.claims:
            print(f"{claim.verdict:13} {claim.family} as {claim.outcome}")
        print(turn.record.why)
        if turn.graph:
            print(f"trace: {turn.graph.verdict}, {turn.graph.why}")
        for named in turn.record.runout:
            print(f"runout, {named.name}: {named.quantity}")
        for line in turn.record.failed:
            print(f"failed: {line}")
        print(f"gate, left on held-out cases: {turn.record.gate}")
        print(f"bundle {turn.bundle.name}: {'verified' if turn.verified else 'NOT VERIFIED'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".truing"))
