"""Real text for `data.py`: files as they lie on the machine, pages of prose, more made of their sentences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from filters import docstrings, files_in, pages
from tokenizers_speed import real_texts

PROSE = (Path("/usr/share/doc"), Path("/usr/share/perl"))  # python3-doc, git-doc, perl-doc, where installed
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def prose_pages(folder: Path | None, megabytes: float) -> tuple[list[str], str]:
    """English pages as extracted web pages look, and where they are from.

    Where that is not enough, pages of their sentences in new orders follow.
    """
    real, where = _real_pages(folder, megabytes)
    missing = megabytes * 1e6 - sum(len(text.encode()) for text in real)
    if missing < 1e5:
        return real, where
    more = list(mixed_pages(real, missing))
    return real + more, f"{where}, and {len(more):,} of them made of their sentences in new orders"


def _real_pages(folder: Path | None, megabytes: float) -> tuple[list[str], str]:
    places = [folder] if folder else [place for place in PROSE if place.is_dir()]
    found = pages((text for place in places for text in files_in(place)), megabytes * 1e6)
    where = ", ".join(map(str, places))
    if not folder and sum(map(len, found)) < min(megabytes, 5) * 1e6:
        return pages(docstrings(), megabytes * 1e6), "the docstrings of the standard library"
    return found, f"the text files in {where}"


def files(megabytes: float) -> tuple[list[str], str]:
    """Whole files."""
    return list(real_texts(megabytes)), "the standard library's folder and /usr/share/doc"


def mixed_pages(from_pages: list[str], total: float) -> Iterator[str]:
    """Pages of real sentences in new orders, `total` bytes: no two are near-duplicates of each other."""
    rng = random.Random(0)
    sentences = [part for text in from_pages for part in _SENTENCE.split(text) if 20 < len(part) < 400]
    size = 0
    while size < total:
        lines = [" ".join(rng.choices(sentences, k=rng.randint(1, 6))) for _ in range(rng.randint(4, 16))]
        text = "\n".join(lines)
        size += len(text.encode())
        yield text


def write_jsonl(path: Path, texts: Iterator[str] | list[str]) -> int:
    """A line per text; how many bytes of text."""
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            size += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return size
