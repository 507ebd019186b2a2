"""Agents in simulated companies: plots of the format company/1, a simulator, verdicts from what was done."""

from truing.audit.company.agents import MEANS
from truing.audit.company.check import check as self_test
from truing.audit.company.guards import cell, setting
from truing.audit.company.interactions import Interaction, interaction
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.plot import Plot, kinds, plot, plots, shared, shipped, template
from truing.audit.company.scene import Scene, scene
from truing.audit.company.verdict import Verdict, verdict

__all__ = [
    "MEANS", "Interaction", "Laid", "Plot", "Scene", "Verdict", "cell", "interaction", "kinds", "lay_out", "plot",
    "plots", "scene", "self_test", "setting", "shared", "shipped", "template", "verdict",
]  # fmt: skip
