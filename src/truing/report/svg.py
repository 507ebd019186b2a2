"""Elements of a picture. Whatever is not markup already is escaped."""

from __future__ import annotations

from markupsafe import Markup

from truing.report.text import visible

Attribute = str | float | None


def tag(name: str, *children: str, **attributes: Attribute) -> Markup:
    """One element. `class_` gives class, `stroke_width` stroke-width; an attribute that is None is left out."""
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(visible(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, said, inside)


def plain(value: str | float) -> str:
    """An attribute's text; numbers with at most 2 decimals."""
    return visible(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    """A position along the width."""
    return f"{plain(value)}%"


def text(said: str, x: float | str, y: float, *, class_: str = "", anchor: str = "middle") -> Markup:
    """A label."""
    return tag("text", said, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def upright(said: str, x: float, y: float) -> Markup:
    """A label that reads from below."""
    return tag("text", said, transform=f"translate({plain(x)} {plain(y)}) rotate(-90)", text_anchor="middle")


def line(x1: float | str, y1: float, x2: float | str, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)
