"""FIND: what does a target do under pressure, against which clause of the spec, and which pressure causes it?"""

from truing.audit.across import grid
from truing.audit.battery import FAMILIES, Battery, Family, clause, family, lay_out, narrowed, spec
from truing.audit.claims import Evidence, behaviour, claims, judge, known, preference
from truing.audit.company.plans import Plan
from truing.audit.company.plot import kinds
from truing.audit.company.run import Way
from truing.audit.outcomes import classify
from truing.audit.run import ask, audit, audited, catalogue, score, scored, write_down

__all__ = [
    "FAMILIES", "Battery", "Evidence", "Family", "Plan", "Way", "ask", "audit", "audited", "behaviour", "catalogue",
    "claims", "classify", "clause", "family", "grid", "judge", "kinds", "known", "lay_out", "narrowed", "preference",
    "score", "scored", "spec", "write_down",
]  # fmt: skip
