"""Which split a document belongs to: a hash of its id, so that adding text moves no other document."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from data_prep.documents import Document
from llmtrain.errors import DataError

if TYPE_CHECKING:
    from data_prep.corpus import CorpusConfig
    from data_prep.sources import Source

TRAIN = "train"


def fraction(identity: str, use: str) -> float:
    """A number in 0 … 1 that is fixed for an identity and a use of it."""
    digest = hashlib.blake2b(f"{use}\0{identity}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def split_of(document: Document, splits: Mapping[str, float], by_file: bool) -> str:
    """`train`, or one of `splits`, each with its share of the documents (or of the files)."""
    place = fraction(document.file if by_file else document.id, "split")
    for name, share in splits.items():
        if place < share:
            return name
        place -= share
    return TRAIN


def refuse_empty_splits(corpus: CorpusConfig, sources: Iterable[Source]) -> None:
    """Raises DataError when a split can get no document, as far as the files' names tell before any is read.

    They do where a file is one document, and with `split_by: file`; what a Hub dataset has is not known.
    """
    names: list[str] = []
    for source in sources:
        if not source.files or not (corpus.split_by == "file" or source.file_is_document):
            return
        names += [file.name for file in source.files]
    counts = dict.fromkeys((TRAIN, *corpus.splits), 0)
    for name in names:
        counts[split_of(Document("", name), corpus.splits, by_file=True)] += 1
    refuse_empty_split(counts, "files" if corpus.split_by == "file" else "documents", corpus.name)


def refuse_empty_split(counts: Mapping[str, int], unit: str, corpus: str) -> None:
    """Raises DataError when one of the splits got nothing of so many documents, or files."""
    total = sum(counts.values())
    for split, count in counts.items():
        if count == 0:
            enough = min(0.5, math.ceil(400 / max(total, 1)) / 100)  # misses all of them once in fifty
            share = f"give it a larger share (splits.{split}={enough:g}), do without (splits: {{}})"
            raise DataError(
                f"split '{split}' got none of the {total} {unit} of corpus '{corpus}': "
                + (share if split != TRAIN else "do without other splits (splits: {})")
                + ", or cut files into more documents with a separator"
            )
