"""Exact duplicates: of whole documents, or of paragraphs. The first one stays.

Texts are compared by 128-bit hashes (xxh3_128). Hashes are sorted on disk, so memory does not grow with
the corpus.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.disk_sort import SortedRuns, with_leaders
from llmtrain.config.schema import Section

_ROWS = 2**16  # notes read at once
_PLACE = [("document", "<u4"), ("part", "<u4")]
_HASH = [("key", "<u8"), ("rest", "<u8")]
_BLANK_LINES = re.compile(r"\n\s*\n")


class Dedup(Section):
    """Drops documents, or paragraphs, whose text came before.

    by          document: the whole text; paragraph: what stands between blank lines, of which those of
                `min_chars` or more are compared, so that headings and bare brackets stay
    normalise   exact: every character counts; folded: white space and case
                don't; white space around a paragraph never does
    """

    by: Literal["document", "paragraph"] = "document"
    normalise: Literal["exact", "folded"] = "exact"
    min_chars: int = Field(default=40, ge=1)


def make(settings: Dedup) -> ExactDedup:
    """The step with these settings."""
    return ExactDedup(settings)


class ExactDedup:
    """Notes a hash per document or paragraph; all but the first of each hash are dropped."""

    name = "dedup"
    dtype = np.dtype(_PLACE + _HASH)

    def __init__(self, settings: Dedup):
        self.settings = settings

    def notes(self, documents: Sequence[Document], first: int) -> np.ndarray:
        """The hash of every part that is compared."""
        places, hashes = [], []
        for number, document in enumerate(documents, first):
            for part, text in enumerate(self._parts(document.text)):
                if self._counts(text):
                    places.append((number, part))
                    hashes.append(xxhash.xxh3_128_digest(self._normal(text).encode()))
        notes = np.empty(len(places), self.dtype)
        if not places:
            return notes
        notes["document"], notes["part"] = np.array(places, np.uint32).T
        halves = np.frombuffer(b"".join(hashes), ">u8").reshape(-1, 2)
        notes["key"], notes["rest"] = halves[:, 0], halves[:, 1]
        return notes

    def resolve(
        self,
        notes: Sequence[Path],
        verdicts: Sequence[Path],
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """The places of all but the first of each hash, by chunk.

        Of two texts that differ and share the first half of their hash, the second one's repeats stay; no
        text is ever dropped for another's sake.
        """
        begins = np.cumsum([0] + [path.stat().st_size // self.dtype.itemsize for path in notes])
        total = int(begins[-1])
        hashes = SortedRuns(scratch / "hashes", np.dtype([*_HASH, ("row", "<u8")]))
        for path, begin in zip(notes, begins, strict=False):
            for block, row in _blocks(path, self.dtype, int(begin)):
                records = np.empty(block.size, hashes.dtype)
                records["key"], records["rest"] = block["key"], block["rest"]
                records["row"] = np.arange(row, row + block.size)
                hashes.add(records)
                progress(row + block.size, 2 * total)
        repeats = SortedRuns(scratch / "repeats", np.dtype([("key", "<u8")]))
        read = 0
        for block, leaders in with_leaders(hashes.merged()):
            again = (block["row"] != leaders["row"]) & (block["rest"] == leaders["rest"])
            found = np.empty(int(again.sum()), repeats.dtype)
            found["key"] = block["row"][again]
            repeats.add(found)
            read = min(read + block.size, total)
            progress(total + read, 2 * total)
        self._write(notes, verdicts, begins, repeats)
        return {f"{self.settings.by}s": total, "repeats": repeats.records, "by": self.settings.by}

    def _write(
        self, notes: Sequence[Path], verdicts: Sequence[Path], begins: np.ndarray, repeats: SortedRuns
    ) -> None:
        """Turns rows, which come in order, into places of their chunk's documents."""
        blocks = repeats.merged()
        rows = np.empty(0, np.uint64)
        for path, verdict, begin, end in zip(notes, verdicts, begins, begins[1:], strict=False):
            mine = []
            while True:
                cut = int(np.searchsorted(rows, end))
                mine.append(rows[:cut])
                rows = rows[cut:]
                if rows.size or (block := next(blocks, None)) is None:
                    break
                rows = block["key"]
            chosen = np.concatenate(mine) - np.uint64(begin)
            np.save(verdict, _places(path, self.dtype, chosen))

    def apply(self, documents: Iterator[Document], verdict: np.ndarray, tally: Tally) -> Iterator[Document]:
        """Documents without their repeated parts; those that were nothing else are dropped."""
        repeats: dict[int, set[int]] = {}
        for number, part in zip(verdict["document"].tolist(), verdict["part"].tolist(), strict=True):
            repeats.setdefault(number, set()).add(part)
        for number, document in enumerate(documents):
            repeated = repeats.get(number)
            if not repeated:
                yield document
            elif self.settings.by == "document":
                tally.drop("dedup: same text", document.id)
            else:
                tally.find("dedup: paragraph", len(repeated))
                text = _without(document.text, repeated)
                if text and not text.isspace():
                    yield dataclasses.replace(document, text=text)
                else:
                    tally.drop("dedup: repeated paragraphs only", document.id)

    def _parts(self, text: str) -> list[str]:
        if self.settings.by == "document":
            return [text]
        return [paragraph.strip() for paragraph in _BLANK_LINES.split(text)]

    def _counts(self, text: str) -> bool:
        return self.settings.by == "document" or len(text) >= self.settings.min_chars

    def _normal(self, text: str) -> str:
        return text if self.settings.normalise == "exact" else " ".join(text.casefold().split())


def _blocks(path: Path, dtype: np.dtype, row: int) -> Iterator[tuple[np.ndarray, int]]:
    """A chunk's notes, and the row of the first one among all."""
    with path.open("rb") as file:
        while (block := np.fromfile(file, dtype, _ROWS)).size:
            yield block, row
            row += block.size


def _places(path: Path, dtype: np.dtype, rows: np.ndarray) -> np.ndarray:
    """Document and part of some of a chunk's notes."""
    places = np.empty(rows.size, _PLACE)
    if rows.size:
        chosen = np.memmap(path, dtype, "r")[rows]
        places["document"], places["part"] = chosen["document"], chosen["part"]
    return places


def _without(text: str, repeated: set[int]) -> str:
    """A text without some of its paragraphs and the blank lines after them."""
    ends = [match.end() for match in _BLANK_LINES.finditer(text)]
    pieces = [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    kept = [piece for part, piece in enumerate(pieces) if part not in repeated]
    if len(pieces) - 1 in repeated and kept:
        kept[-1] = kept[-1].rstrip()
    return "".join(kept)
