"""The main text of a web page, without menus, footers and comments, as trafilatura finds it.

The extra `html` (trafilatura, lxml_html_clean): asked for by `format: html` or `warc`, or a file's suffix.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
DECLARED_WITHIN = 4096  # bytes from the start in which a page declares its encoding (HTML says 1024)


def installed() -> bool:
    """Whether the extra is there, without importing it."""
    return importlib.util.find_spec("trafilatura") is not None


def main_text(page: bytes) -> str | None:
    """The main text; None when there is none, or nothing that is a page.

    A page is UTF-8, or else what it declares. Raises UnicodeDecodeError when it is neither.
    """
    decoded = decode_page(page)
    try:
        # No deduplication: it remembers earlier pages, so that a text would depend on its neighbours.
        return _trafilatura().extract(decoded, include_comments=False, deduplicate=False)
    except Exception:  # libxml2 and the extractor raise many kinds for what is no page
        return None


def decode_page(page: bytes) -> str:
    """A page as text. Raises UnicodeDecodeError."""
    try:
        return page.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = DECLARED.search(page[:DECLARED_WITHIN])
        if declared is None:
            raise
        try:
            return page.decode(declared[1].decode("ascii"))
        except LookupError:  # an encoding nobody knows
            pass
        raise


@cache
def _trafilatura() -> Any:
    """trafilatura, which is not to write to anybody's log what it thinks of a page."""
    import logging

    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    return trafilatura
