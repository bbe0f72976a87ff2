"""Records grouped into batches by their content alone, so that no worker count shows in the output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from data_prep.corpus import CorpusConfig
from data_prep.documents import Encoding, Record
from data_prep.sources import Source, read_source
from data_prep.worker import Batch

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 2048


def batches_of(records: Iterable[tuple[Encoding, Record]], source: int, turn: int) -> Iterator[Batch]:
    """Consecutive records of one encoding, up to BATCH_BYTES (one record may be larger) and BATCH_RECORDS."""
    batch: Batch | None = None
    size = 0
    for encoding, record in records:
        full = size >= BATCH_BYTES or (batch is not None and len(batch.records) >= BATCH_RECORDS)
        if batch is not None and (full or batch.encoding != encoding):
            yield batch
            batch = None
        if batch is None:
            batch, size = Batch(source, turn, encoding, []), 0
        batch.records.append(record)
        size += record.size
    if batch is not None:
        yield batch


class CorpusReader:
    """All batches of a corpus, source after source, then again what weights above 1 repeat.

    `total_bytes` is what there is to read, 0 when a Hub dataset or a limit makes that unknown.
    """

    def __init__(self, corpus: CorpusConfig, sources: Sequence[Source]):
        self.corpus = corpus
        self.sources = sources
        self.read_bytes = 0
        each = [source.bytes * self._turns(source) for source in sources]
        limited = any(source.section.limit is not None for source in sources)
        self.total_bytes = sum(each) if all(each) and not limited else 0

    def __iter__(self) -> Iterator[Batch]:
        for turn in range(max(map(self._turns, self.sources))):
            for source in self.sources:
                if turn < self._turns(source):
                    records = read_source(source, self.corpus.max_document_bytes, self._advance)
                    for batch in batches_of(records, source.number, turn):
                        batch.read_bytes = self.read_bytes
                        yield batch

    def _advance(self, count: int) -> None:
        self.read_bytes += count

    @staticmethod
    def _turns(source: Source) -> int:
        return math.ceil(source.section.weight)
