"""EXPLAIN: which parts of the model carry a claim's effect, and does that survive intervention on held-out cases?"""

from truing.trace.run import TESTING, Effect, Settings, judge, retrace, trace

__all__ = ["TESTING", "Effect", "Settings", "judge", "retrace", "trace"]
