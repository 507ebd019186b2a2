"""PROVE: pack a claim with its evidence into one signed file, check it, change one byte, check it again.

Run: python examples/share.py [STORE]. Needs the base install alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import truing
from truing.audit import audit
from truing.share import own_key, pack, verify


def main(path: Path) -> None:
    """Pack, verify, alter, verify."""
    bundle = path / "evidence.truing.zip"
    with truing.open_store(path) as store:
        claim, *_ = audit(truing.target("scripted/coercive"), ["insider"], store)
        records = store.closure([claim.id])
    about = {"targets": ["scripted/coercive"]}
    packed = pack(bundle, records, {}, roots=[claim.id], report=None, key=own_key(), subject=about)
    print(f"packed {packed.records} into {bundle.name}")
    seen = verify(bundle, trusted=[own_key().public])
    print(f"verified {seen.ok}, trusted {seen.trusted}: {seen.claims[0].verdict}, {seen.claims[0].statement}")
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    altered = path / "altered.truing.zip"
    altered.write_bytes(data)
    print(f"one bit changed: verified {verify(altered).ok}, {verify(altered).problems[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".truing"))
