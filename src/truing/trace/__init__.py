"""EXPLAIN: which parts of the model carry a claim's effect, and does that survive intervention on held-out cases?"""

from truing.trace.carriers import Carriers, carriers
from truing.trace.case import Beside, CaseSettings, trace_case
from truing.trace.context import Context, between, written
from truing.trace.differ import differ
from truing.trace.feature_set import FeatureSet, read_features
from truing.trace.judge import judge
from truing.trace.named import Naming
from truing.trace.run import TESTING, Effect, Settings, retrace, trace

__all__ = [
    "TESTING", "Beside", "Carriers", "CaseSettings", "Context", "Effect", "FeatureSet", "Naming", "Settings", "between",
    "carriers", "differ", "judge", "read_features", "retrace", "trace", "trace_case", "written",
]  # fmt: skip
