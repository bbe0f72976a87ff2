"""Which split a document belongs to: a hash of its id, so that adding text moves no other document."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from data_prep.documents import Document

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
