"""The main text of a web page, without menus, footers and comments, as trafilatura finds it.

Asked for by `format: html` or `warc`, or a file's suffix; `pip install trafilatura lxml_html_clean`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
DECLARED_WITHIN = 4096  # bytes from the start in which a page declares its encoding (HTML says 1024)
_TEXT, _NONE = b"1", b"0"  # what a kept page begins with: it has a text, or none
_kept: ContextVar[tuple[Path, bool] | None] = ContextVar("_kept", default=None)


def installed() -> bool:
    """Whether the extra is there, without importing it."""
    return importlib.util.find_spec("trafilatura") is not None


@contextmanager
def kept_pages(folder: Path, add: bool = False) -> Iterator[None]:
    """Within, a page whose text lies in `folder` isn't parsed again; with `add`, others are put there.

    Parsing is what takes the time, and the sample for the tokenizer is parsed before the rest.
    """
    token = _kept.set((folder, add))
    try:
        yield
    finally:
        _kept.reset(token)


def main_text(page: bytes) -> str | None:
    """The main text; None when there is none, or nothing that is a page.

    A page is UTF-8, or else what it declares. Raises UnicodeDecodeError when it is neither.
    """
    decoded = decode_page(page)
    kept = _kept.get()
    if kept is None:
        return _main_text(decoded)
    folder, add = kept
    place = folder / hashlib.sha256(page).hexdigest()
    with suppress(OSError):
        content = place.read_bytes()
        return None if content[:1] == _NONE else content[1:].decode("utf-8", "surrogatepass")
    text = _main_text(decoded)
    if add:
        with suppress(OSError):  # no room: it is parsed again, then
            part = place.with_name(f"{place.name}.{os.getpid()}")
            part.write_bytes(_NONE if text is None else _TEXT + text.encode("utf-8", "surrogatepass"))
            part.rename(place)
    return text


def _main_text(decoded: str) -> str | None:
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
