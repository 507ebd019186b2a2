"""Records to one self-contained HTML file: sections, charts, a graph to explore. It computes no estimate of its own."""

from __future__ import annotations

from truing.report.page import overview, page

__all__ = ["overview", "page"]
