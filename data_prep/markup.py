"""HTML and SVG from Python values. Whatever is not markup already is escaped, so no text can become any."""

from __future__ import annotations

import html
from typing import Any


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element. `class_` is the attribute class; `stroke_width` is stroke-width; None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def join(content: Any) -> Markup:
    """Pieces one after the other; lists are taken apart, None is nothing."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, list | tuple):
        return Markup("".join(map(join, content)))
    return Markup(html.escape(str(content)))
