"""What a worker does with a chunk in one pass: its documents in, and out what becomes of them.

The steps of a corpus are cut into passes at each one that must see the whole corpus:

    first pass    read, parse, steps  ->  documents spilled, and noted for the corpus-wide step
    next passes   spilled documents, what the corpus-wide step decided, steps  ->  spilled and noted again
    last pass     …  ->  splits, weights, tokens

A corpus without such a step has one pass, from source to tokens. The same chunk gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.batches import Batch, batches_of, groups_of
from data_prep.chain import AsideTally, Clock, passes_of, run_steps
from data_prep.chat.documents import SampleParser
from data_prep.chunks import Chunk
from data_prep.documents import Document, Tally, parse
from data_prep.engines import open_engine
from data_prep.files import SourceFile, survey
from data_prep.leases import holder
from data_prep.readers.html import kept_pages
from data_prep.results import (
    BY_WEIGHT,
    DOCUMENT,
    NOTES,
    REJECTED,
    SPILL,
    Result,
    ResultWriter,
    read_spill,
    to_spill,
)
from data_prep.sources import Source, read_source
from data_prep.splits import TRAIN, fraction, split_of
from data_prep.steps.step import CorpusWideStep
from data_prep.tokenizer import Encoder
from data_prep.work import Work
from llmtrain.data.manifest import TOKENIZER, TokenizerEntry
from llmtrain.data.shards import token_dtype
from llmtrain.errors import DataError

PAGES = "pages"  # in the work folder, texts of the pages that were parsed for the tokenizer's sample
TOKENIZER_ENTRY = "tokenizer.json"
UNKNOWN, OTHER = "", "other"  # of documents without a language; of those whose field says too many things
MOST_LANGUAGES = 500


class CorpusChangedError(DataError):
    """A file of the corpus is not what the build has seen."""


class Worker:
    """Works on the chunks of one work folder."""

    def __init__(self, folder: Path):
        self.work = Work.open(folder)
        self.corpus = self.work.plan.corpus
        self.passes = passes_of(self.corpus)
        self.sources = [
            Source(section, number, (), settled.digest, settled.revision)
            for number, (section, settled) in enumerate(
                zip(self.corpus.sources, self.work.plan.sources, strict=True)
            )
        ]
        self._encoder: Encoder | None = None
        self._samples: SampleParser | None = None
        self._entry: TokenizerEntry | None = None
        self._unchanged: set[tuple[Path, int]] = set()

    def do(self, number: int, chunk_number: int, advance: Callable[[int], None]) -> Result:
        """Makes the result of a chunk in a pass, unless someone else does first.

        Raises DataError for what the corpus must not hold, and CorpusChangedError.
        """
        chunk = self.work.chunks[chunk_number]
        scratch = self.work.folder / "scratch" / holder()
        output = ResultWriter(scratch, self.work.result(number, chunk_number))
        try:
            task = _Task(self, number, chunk, output, advance)
            with kept_pages(self.work.folder / PAGES):
                task.run()
            output.publish(task.result)
        except BaseException:
            output.discard()
            raise
        return task.result

    def check_unchanged(self, file: SourceFile) -> None:
        """Raises CorpusChangedError unless a file is the one that was surveyed."""
        if (file.path, file.mtime_ns) in self._unchanged:
            return
        try:
            facts = file.path.stat()
            same = facts.st_size == file.bytes and (
                facts.st_mtime_ns == file.mtime_ns or _digest(file) == file.sha256
            )
        except OSError:
            same = file.mtime_ns == 0  # it could not be read then either
        if not same:
            raise CorpusChangedError(
                f"{file.path} is not what it was when this build began: leave a corpus as it is while it is "
                "built"
            )
        self._unchanged.add((file.path, file.mtime_ns))

    @property
    def entry(self) -> TokenizerEntry:
        """The tokenizer of the dataset."""
        if self._entry is None:
            text = (self.work.folder / TOKENIZER_ENTRY).read_text(encoding="utf-8")
            self._entry = TokenizerEntry.model_validate_json(text)
        return self._entry

    @property
    def encoder(self) -> Encoder:
        """Text to tokens, loaded once."""
        if self._encoder is None:
            engine = open_engine(self.work.folder / TOKENIZER, self.entry.engine)
            eos_id = self.entry.eos_id if self.corpus.append_eos else None
            self._encoder = Encoder(engine, eos_id, self.entry.bos_id)
        return self._encoder

    @property
    def samples(self) -> SampleParser | None:
        """What makes samples of the records of fine-tuning data, loaded once; None for text."""
        if self._samples is None and self.corpus.kind != "text":
            folder = self.work.folder / TOKENIZER
            self._samples = SampleParser.open(self.corpus, folder, self.entry.eos_id)
        return self._samples


def _digest(file: SourceFile) -> str:
    whole = replace(file, start=0, end=None, first=0)
    return survey([whole], lambda _: None, 1, lambda _: None)[0].sha256


class _Task:
    """One chunk in one pass."""

    def __init__(
        self, worker: Worker, number: int, chunk: Chunk, output: ResultWriter, advance: Callable[[int], None]
    ):
        self.worker = worker
        self.corpus = worker.corpus
        self.number = number
        self.what = worker.passes[number]
        self.chunk = chunk
        self.source = worker.sources[chunk.source]
        self.output = output
        self.advance = advance
        self.clock = Clock()
        tally = Tally(self.corpus.strict)
        if self.corpus.keep_rejected:
            tally = AsideTally(self.corpus.strict, chunk.source, self._aside)
        self.result = Result(tally)
        self.languages: dict[str, int] = {}

    @property
    def tally(self) -> Tally:
        return self.result.tally

    def run(self) -> None:
        """Everything but the last word."""
        for file in self.chunk.files:
            self.worker.check_unchanged(file)
        if self.what.notes_for is not None:
            self.output.append(NOTES, b"")  # there even when there is nothing to note
        for documents in self._read() if self.number == 0 else self._reread():
            going_on = run_steps(self.what.steps, self._held(documents), self.tally, self.clock)
            if self.what.notes_for is not None:
                self._spill(self._held(going_on), self.what.notes_for)
            else:
                self._tokenize(self._held(going_on))
                if self._is_enough():
                    break
        self.result.seconds = self.clock.seconds
        self.result.languages = list(self.languages)
        came_in = self.tally.documents_in if self.number == 0 else self.result.coming_in
        left_out = sum(self.tally.rejected.values())
        assert came_in == self.result.going_on + left_out, (
            f"chunk {self.chunk.number} lost documents in pass {self.number}: {came_in} in, "
            f"{self.result.going_on} go on, {left_out} left out"
        )

    def _held(self, documents: list[Document]) -> list[Document]:
        if isinstance(self.tally, AsideTally):
            self.tally.hold(documents)
        return documents

    def _aside(self, row: bytes) -> None:
        self.output.append_packed(REJECTED, row)

    def _read(self) -> Iterator[list[Document]]:
        """The documents of the source, batch by batch."""
        records = read_source(
            self.source, self.corpus.max_document_bytes, self._advance, self.chunk.files or None
        )
        for batch in self.clock.pulls("read", batches_of(records)):
            if isinstance(self.tally, AsideTally):
                self.tally.hold_records(batch.records)
            with self.clock("parse"):
                documents = self._parsed(batch)
            self.result.parsed_bytes += sum(map(_size, documents))
            yield documents

    def _parsed(self, batch: Batch) -> list[Document]:
        samples, names = self.worker.samples, self.source.section.field
        if samples is None:
            return documents_of(batch, self.source, self.tally)
        assert isinstance(names, dict), "fine-tuning data names its fields"
        return list(samples.parse(batch.records, batch.encoding, names, self.tally))

    def _advance(self, count: int) -> None:
        self.result.read_bytes += count
        self.advance(count)

    def _reread(self) -> Iterator[list[Document]]:
        """The documents that the pass before let through, less what was decided against."""
        step = self.what.verdict_of
        assert step is not None, "a pass after the first follows a corpus-wide step"
        spilled = self.worker.work.result(self.number - 1, self.chunk.number) / SPILL
        verdict = np.load(self.worker.work.verdict(self.number - 1, self.chunk.number), allow_pickle=False)
        documents = step.apply(self._counted(read_spill(spilled)), verdict, self.tally)
        yield from self.clock.pulls(step.name, groups_of(documents))

    def _counted(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            self.result.coming_in += 1
            if isinstance(self.tally, AsideTally):
                self.tally.held[document.id] = document.text
            yield document

    def _spill(self, documents: list[Document], step: CorpusWideStep) -> None:
        if not documents:
            return
        with self.clock(step.name):
            notes = np.asarray(step.notes(documents, self.result.going_on), step.dtype)
        with self.clock("write"):
            self.output.append(NOTES, notes.tobytes())
            self.output.append_packed(SPILL, b"".join(map(to_spill, documents)))
        self.result.going_on += len(documents)

    def _tokenize(self, documents: list[Document]) -> None:
        by_split: dict[str, list[tuple[Document, int]]] = {}
        for split, document in self._chosen(documents):
            by_split.setdefault(split, []).append((document, self.result.going_on))
            self.result.going_on += 1
            self.tally.documents_out += 1
        for split, placed in by_split.items():
            with self.clock("tokenize"):
                tokens, rows, mask = self._encoded([document for document, _ in placed])
            each = [max(len(document.samples), 1) for document, _ in placed]
            rows["place"] = np.repeat([place for _, place in placed], each)
            rows["language"] = np.repeat([self._language(document) for document, _ in placed], each)
            rows["last_copy"] = np.repeat([self._has_last_copy(document) for document, _ in placed], each)
            with self.clock("write"):
                self._write(split, tokens, rows)
                if mask is not None:
                    self.output.append(f"{split}.mask", mask.tobytes())

    def _encoded(self, documents: list[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Tokens, DOCUMENT rows with their lengths, and the mask of fine-tuning data."""
        if self.worker.samples is None:
            texts = [document.text for document in documents]
            tokens, lengths = self.worker.encoder.encode(texts)
            rows = np.zeros(len(lengths), DOCUMENT)
            rows["tokens"], rows["bytes"] = lengths, [_size(document) for document in documents]
            return tokens, rows, None
        samples = [sample for document in documents for sample in document.samples]
        rows = np.zeros(len(samples), DOCUMENT)
        rows["tokens"] = [len(sample.tokens) for sample in samples]
        rows["bytes"] = [sample.text_bytes for sample in samples]
        tokens = np.concatenate([sample.tokens for sample in samples])
        return tokens, rows, np.concatenate([sample.marks for sample in samples])

    def _language(self, document: Document) -> int:
        """The place in the result's languages of what a step, or the source, says of a document."""
        name = str(document.meta.get("language") or UNKNOWN)
        if name not in self.languages:
            name = name if len(name) <= 20 and len(self.languages) < MOST_LANGUAGES else OTHER
        return self.languages.setdefault(name, len(self.languages))

    def _write(self, split: str, tokens: np.ndarray, rows: np.ndarray) -> None:
        vocab_size = self.worker.entry.vocab_size
        if len(tokens) and int(tokens.max()) >= vocab_size:
            raise DataError(
                f"token id {int(tokens.max())} does not fit a vocabulary of {vocab_size}: "
                "the tokenizer and the vocabulary size disagree"
            )
        self.output.append(f"{split}.tokens", tokens.astype(token_dtype(vocab_size)).tobytes())
        self.output.append(f"{split}.documents", rows.tobytes())
        self.result.text_bytes += int(rows["bytes"].sum())
        self.result.tokens += len(tokens)

    def _is_enough(self) -> bool:
        """Whether a source with a limit on what is written has reached it within this chunk.

        In a later pass the rest is read nevertheless, so that every spilled document is accounted for.
        """
        limit = self.source.section.limit_written
        return limit is not None and self.number == 0 and self.result.written(limit.unit) >= limit.most

    def _chosen(self, documents: list[Document]) -> Iterator[tuple[str, Document]]:
        """The documents to write and their splits. A weight below 1 thins out train, and only train."""
        weight = self.source.section.weight
        for document in documents:
            split = split_of(document, self.corpus.splits, self.corpus.split_by == "file")
            if split == TRAIN and weight < 1 and fraction(document.id, "weight") >= weight:
                self.tally.drop(BY_WEIGHT, document.id)
            else:
                yield split, document

    def _has_last_copy(self, document: Document) -> bool:
        weight = self.source.section.weight
        part = weight - math.floor(weight)
        return part == 0 or fraction(document.id, "weight") < part


def _size(document: Document) -> int:
    """UTF-8 bytes of its text; of fine-tuning data, of that of its samples."""
    text = document.text
    if document.samples:
        return sum(sample.text_bytes for sample in document.samples)
    return len(text) if text.isascii() else len(text.encode())


def documents_of(batch: Batch, source: Source, tally: Tally) -> list[Document]:
    """The documents of a batch; what is none is in the tally."""
    section = source.section
    assert not isinstance(section.field, dict), "a text corpus names no fields"
    return list(parse(batch.records, batch.encoding, section.field, tally, section.named_meta))
