"""Training text that holds a part of an evaluation set, found by n-grams of words.

After GPT-3 (Brown et al. 2020, appendix C): 13 words in a row, whatever the case and the punctuation. An
evaluation text of 8 to 12 words is looked for as a whole; a shorter one is too common to prove anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data_prep.batches import groups_of
from data_prep.documents import Document, Tally
from data_prep.packings import PACKED_CHUNK_BYTES, DamagedFileError, packing_of, unpack
from data_prep.steps.shingles import shingle, words_of
from data_prep.steps.step import InputFile, Step
from llmtrain.config.schema import Section

LEAST_WORDS = 8  # of an evaluation text that is looked for
_BATCH_CHARS = 2**17  # documents are shingled together up to so many characters


class EvaluationSet(Section):
    """JSON lines, a JSON array or Parquet, and which fields are text or lists of texts, in this order."""

    path: InputFile
    fields: tuple[str, ...] = Field(min_length=1)
    name: str | None = None

    @property
    def label(self) -> str:
        """The set as shown to people."""
        return self.name or Path(self.path).name.partition(".")[0]

    @model_validator(mode="after")
    def _has_text(self) -> EvaluationSet:
        texts = texts_of(self)
        if not texts:
            raise ValueError(f"{self.path} is empty: nothing to look for")
        if not any(count >= LEAST_WORDS for count in shingle(texts, 1)[1]):
            raise ValueError(f"{self.path} has no text of {LEAST_WORDS} words or more: nothing to look for")
        return self


class Decontaminate(Section):
    """`drop` leaves out what shares `n` words in a row with a set; `report` only says so in `meta`."""

    sets: tuple[EvaluationSet, ...] = Field(min_length=1)
    n: int = Field(default=13, ge=LEAST_WORDS)
    mode: Literal["drop", "report"] = "drop"


@dataclass(frozen=True)
class _Table:
    """The n-grams of all sets, of one n: sorted hashes, and the number of the set each came from first."""

    n: int
    hashes: np.ndarray
    sets: np.ndarray


def make(settings: Decontaminate) -> Step:
    """The step with these settings. What it holds in memory grows with the evaluation sets alone."""
    tables = _tables(settings)
    labels = [section.label for section in settings.sets]

    def look(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for batch in groups_of(documents, _BATCH_CHARS):
            for document, found in zip(batch, _first_hits([one.text for one in batch], tables), strict=True):
                if found is None:
                    yield document
                    continue
                table, place, number = found
                gram = " ".join(words_of(document.text)[place : place + table.n])
                document.meta["contamination"] = {"set": labels[number], "ngram": gram}
                if settings.mode == "drop":
                    tally.drop(f"decontaminate: {labels[number]}", f"{document.id} ({gram})")
                else:
                    tally.find(f"decontaminate: {labels[number]}")
                    yield document

    return look


def texts_of(section: EvaluationSet) -> list[str]:
    """One text per row of an evaluation set. Raises ValueError, naming the row, for what is none."""
    texts = []
    for number, row in _rows(section.path):
        for field in section.fields:
            if not isinstance(row, dict) or field not in row:
                has = f" (it has {', '.join(row)})" if isinstance(row, dict) and row else ""
                raise ValueError(f"{section.path}:{number} has no field '{field}'{has}")
        texts.append("\n".join(part for field in section.fields for part in _parts(row[field])))
    return texts


def _rows(name: str) -> Iterator[tuple[int, Any]]:
    """The rows of a file, numbered from 1 or by their lines. Raises ValueError for what can't be read."""
    path = Path(name).expanduser()
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{name} is no readable Parquet file: {error}") from None
        return
    with open(path, "rb") as file:
        raw = iter(lambda: file.read(PACKED_CHUNK_BYTES), b"")
        packing = packing_of(path)
        try:
            content = b"".join(unpack(raw, packing) if packing else raw)
        except DamagedFileError as damage:
            raise ValueError(f"{name} can't be read: {damage}") from None
    text = content.decode("utf-8-sig", errors="replace")
    try:
        whole = json.loads(text)
    except ValueError:  # no array, then: lines
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parsed(line, f"{name}:{number}")
    else:
        yield from enumerate(whole if isinstance(whole, list) else [whole], 1)


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError(f"{place} is no JSON") from None


def _parts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [part for item in value for part in _parts(item)]
    return [] if value is None else [str(value)]


def _tables(settings: Decontaminate) -> list[_Table]:
    """One table for `n`, and one for each length of the shorter texts that are looked for as a whole."""
    by_length: dict[int, list[tuple[int, np.ndarray]]] = {}
    for number, section in enumerate(settings.sets):
        texts = texts_of(section)
        counts = np.minimum(shingle(texts, 1)[1], settings.n)
        for n in np.unique(counts[counts >= LEAST_WORDS]).tolist():
            chosen = [text for text, count in zip(texts, counts, strict=True) if count == n]
            by_length.setdefault(n, []).append((number, shingle(chosen, n)[0]))
    tables = []
    for n, parts in sorted(by_length.items(), reverse=True):
        hashes, first = np.unique(np.concatenate([part for _, part in parts]), return_index=True)
        sets = np.repeat([number for number, _ in parts], [part.size for _, part in parts])
        tables.append(_Table(n, hashes, sets[first].astype(np.int32)))
    return tables


def _first_hits(texts: Sequence[str], tables: Sequence[_Table]) -> list[tuple[_Table, int, int] | None]:
    """Per text the first n-gram that a set holds, the longest n first: its table, its place, its set."""
    found: list[tuple[_Table, int, int] | None] = [None] * len(texts)
    for table in tables:
        grams, counts = shingle(texts, table.n)
        at = np.minimum(np.searchsorted(table.hashes, grams), table.hashes.size - 1)
        hits = np.flatnonzero(table.hashes[at] == grams)
        ends = np.cumsum(counts)
        for hit, text in zip(hits.tolist(), np.searchsorted(ends, hits, side="right").tolist(), strict=True):
            if found[text] is None:
                place = hit - int(ends[text] - counts[text])
                found[text] = (table, place, int(table.sets[at[hit]]))
    return found
