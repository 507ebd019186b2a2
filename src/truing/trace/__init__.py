"""EXPLAIN: which parts of the model carry a claim's effect, and does that survive intervention on held-out cases?"""

from truing.trace.carriers import Carriers, carriers
from truing.trace.case import Beside, CaseSettings, trace_case
from truing.trace.context import Context, between, written
from truing.trace.differ import differ
from truing.trace.run import TESTING, Effect, Settings, judge, retrace, trace

__all__ = [
    "TESTING", "Beside", "Carriers", "CaseSettings", "Context", "Effect", "Settings", "between", "carriers", "differ",
    "judge", "retrace", "trace", "trace_case", "written",
]  # fmt: skip
