"""The two charts of the report: columns over bins as SVG, and a bar for a share. Colours are the page's."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.markup import Markup, tag

WIDTH, HEIGHT, BASE, TOP = 640, 190, 22, 18  # of a chart; room below the columns and above them


def columns(values: Sequence[float], labels: Sequence[str], hints: Sequence[str], says: str) -> Markup:
    """A column for each value, its share of all values above it, labels below; `says` for who can't see."""
    step = WIDTH / max(len(values), 1)
    gap = min(3.0, step / 6)
    highest, total = max(values, default=0) or 1, sum(values) or 1
    every = max(1, -(-len(values) * 46 // WIDTH))  # labels need room
    parts = []
    for number, (value, label, hint) in enumerate(zip(values, labels, hints, strict=True)):
        height = (HEIGHT - BASE - TOP) * value / highest
        left, top = number * step + gap / 2, HEIGHT - BASE - height
        middle = f"{number * step + step / 2:.1f}"
        size = {
            "x": f"{left:.1f}",
            "y": f"{top:.1f}",
            "width": f"{step - gap:.1f}",
            "height": f"{height:.1f}",
        }
        parts.append(tag("rect", tag("title", hint), class_="column", rx=1.5, **size))
        if value / total >= 0.005 and step > 30:
            parts.append(tag("text", f"{value / total:.0%}", x=middle, y=f"{top - 5:.1f}", class_="value"))
        if number % every == 0:
            parts.append(tag("text", label, x=middle, y=HEIGHT - 6, class_="label"))
    ground = HEIGHT - BASE + 0.5
    parts.append(tag("line", x1=0, x2=WIDTH, y1=ground, y2=ground, class_="ground"))
    return tag("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=says)


def bar(share: float, kind: str = "") -> Markup:
    """A thin bar, `share` of its place long."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    return tag("span", tag("span", class_=f"fill {kind}".strip(), style=f"width:{width}"), class_="bar")
