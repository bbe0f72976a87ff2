"""Records and documents in groups of about BATCH_BYTES: what is held in memory at a time.

How they are grouped does not show in the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.documents import Document, Encoding, Record

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 2048


@dataclass
class Batch:
    """Consecutive records of one source and encoding."""

    encoding: Encoding
    records: list[Record] = field(default_factory=list)


def batches_of(records: Iterable[tuple[Encoding, Record]]) -> Iterator[Batch]:
    """Consecutive records of one encoding, up to BATCH_BYTES (one record may be larger) and BATCH_RECORDS."""
    batch: Batch | None = None
    size = 0
    for encoding, record in records:
        full = size >= BATCH_BYTES or (batch is not None and len(batch.records) >= BATCH_RECORDS)
        if batch is not None and (full or batch.encoding != encoding):
            yield batch
            batch = None
        if batch is None:
            batch, size = Batch(encoding), 0
        batch.records.append(record)
        size += record.size
    if batch is not None:
        yield batch


def groups_of(documents: Iterable[Document], characters: int = BATCH_BYTES) -> Iterator[list[Document]]:
    """Consecutive documents: a group ends when it has so many characters, or BATCH_RECORDS documents."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= characters or len(group) >= BATCH_RECORDS:
            yield group
            group, size = [], 0
    if group:
        yield group
