"""FIND: audit two scripted targets whose truth is written down, and print the verdicts.

Run: python examples/audit.py [STORE]. Needs the base install alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import truing
from truing.audit import audit

FAMILIES = ["insider", "sycophancy", "anchoring"]


def main(path: Path) -> None:
    """One line per claim: its verdict, the naive effect, and the effect beyond the control."""
    with truing.open_store(path) as store:
        for name in ("scripted/honest", "scripted/anchored"):
            print(name)
            for claim in audit(truing.target(name), FAMILIES, store):
                print(f"  {claim.verdict:13} {claim.family:11} as {claim.outcome:11}", end="")
                print(f" naive {claim.naive}; beyond the control {claim.specific}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".truing"))
