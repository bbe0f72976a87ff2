"""Batches through workers into shards, in order, in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_prep.batches import CorpusReader
from data_prep.corpus import CorpusConfig
from data_prep.documents import Tally
from data_prep.output import SplitWriter
from data_prep.sources import Source
from data_prep.splits import TRAIN
from data_prep.worker import Batch, Result, Worker, start, work
from llmtrain import __version__
from llmtrain.data.manifest import (
    MASKED_VERSION,
    TOKENIZER,
    VERSION,
    Counts,
    Manifest,
    SourceEntry,
    TokenizerEntry,
    fingerprint,
)
from llmtrain.data.shards import token_dtype
from llmtrain.errors import DataError

UNDER_WAY = 3  # batches per worker that are read but not yet written
ALONE_BELOW_BYTES = 4 << 20  # a smaller corpus is done before a second process has started

Progress = Callable[[str, int, int], None]
"""Hears (what is being done, bytes done, bytes in all or 0 when unknown), many times."""


def write_shards(
    corpus: CorpusConfig,
    sources: Sequence[Source],
    tokenizer: TokenizerEntry,
    folder: Path,
    workers: int,
    tell: Progress,
) -> Manifest:
    """Writes all splits below `folder`; the manifest that vouches for them lacks only its pipeline.

    Raises DataError when a split comes out empty, or at the first bad record of a strict corpus.
    """
    tally = Tally()
    documents, tokens = [0] * len(sources), [0] * len(sources)
    reader = CorpusReader(corpus, sources)
    facts = tokenizer.vocab_size, corpus.shard_tokens, corpus.kind != "text"
    writers = {split: SplitWriter(folder, split, *facts) for split in (TRAIN, *corpus.splits)}
    if 0 < reader.total_bytes < ALONE_BELOW_BYTES:
        workers = 1
    for result in _results(reader, (corpus, folder / TOKENIZER, tokenizer.eos_id), workers):
        tally.add(result.tally)
        for split, encoded in result.splits.items():
            writers[split].add(encoded.tokens, encoded.lengths, encoded.text_bytes, encoded.mask)
            documents[result.source] += len(encoded.lengths)
            tokens[result.source] += len(encoded.tokens)
        tell("tokenizing", result.read_bytes, reader.total_bytes)
    tally.refuse_above(corpus.max_reject_fraction)
    splits = {split: writer.close() for split, writer in writers.items()}
    _refuse_empty(tally, {name: entry.documents for name, entry in splits.items()}, corpus)
    dtype = token_dtype(tokenizer.vocab_size).name
    assert dtype in ("uint16", "int32"), dtype
    return Manifest(
        name=corpus.name,
        created_by=f"llmtrain {__version__}",
        version=VERSION if corpus.kind == "text" else MASKED_VERSION,
        kind=corpus.kind,
        fingerprint=fingerprint(
            splits, dtype, tokenizer.vocab_size, tokenizer.sha256, corpus.all_end_with_eos, corpus.kind
        ),
        dtype="uint16" if dtype == "uint16" else "int32",
        vocab_size=tokenizer.vocab_size,
        append_eos=corpus.all_end_with_eos,
        tokenizer=tokenizer,
        splits=splits,
        sources=tuple(
            SourceEntry(
                source=source.section.label,
                files=len(source.files),
                bytes=source.bytes,
                digest=source.digest,
                documents=documents[source.number],
                tokens=tokens[source.number],
            )
            for source in sources
        ),
        counts=_counts(tally),
        pipeline={},
        pipeline_sha256="",
    )


def _counts(tally: Tally) -> Counts:
    left_out = sum(tally.rejected.values())
    assert tally.documents_in == tally.documents_out + left_out, f"documents were lost: {tally}"
    return Counts(
        documents_in=tally.documents_in,
        documents_out=tally.documents_out,
        rejected=dict(sorted(tally.rejected.items())),
        examples={reason: tuple(kept) for reason, kept in sorted(tally.examples.items())},
        repeats=tally.repeats,
        found=dict(sorted(tally.found.items())),
    )


def _results(
    batches: Iterable[Batch], worker: tuple[CorpusConfig, Path, int], workers: int
) -> Iterator[Result]:
    """The result of each batch in the order of the batches, whichever worker is done first."""
    if workers == 1:
        with _one_thread():
            yield from map(Worker(*worker), batches)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start, worker)
    under_way: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            under_way.append(pool.submit(work, batch))
            if len(under_way) >= UNDER_WAY * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps `tokenizers` from starting threads in this process for a while."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _refuse_empty(tally: Tally, documents: dict[str, int], corpus: CorpusConfig) -> None:
    """Raises DataError when there is no document at all, or none in one of the splits."""
    if tally.documents_out == 0:
        reasons = "; ".join(
            f"{count} {reason} (such as {tally.examples[reason][0]})"
            for reason, count in tally.rejected.items()
        )
        raise DataError(
            f"corpus '{corpus.name}' is empty: {tally.documents_in} documents in, none out. {reasons}".strip()
        )
    for split, count in documents.items():
        if count == 0:
            raise DataError(
                f"split '{split}' got none of the {tally.documents_out} documents of corpus '{corpus.name}': "
                "change its share in splits, leave it out, or cut files into more documents with a separator"
            )
