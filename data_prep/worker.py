"""What a worker does: a batch of records in, tokens by split and a tally out. Nothing else is shared."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.chat.documents import SampleParser, stack
from data_prep.corpus import CorpusConfig
from data_prep.documents import Document, Encoding, Record, Tally, parse
from data_prep.splits import TRAIN, fraction, split_of
from data_prep.steps.registry import apply_steps, make_steps
from data_prep.steps.step import CorpusWideStep, Step
from data_prep.tokenizer import Encoder, load_tokenizer


@dataclass
class Batch:
    """Consecutive records of one source; `turn` counts the times the source was read before."""

    source: int
    turn: int
    encoding: Encoding
    records: list[Record]
    read_bytes: int = 0  # bytes of the sources' files read up to the end of this batch, from the start


@dataclass
class Encoded:
    """Documents of one split, in order."""

    tokens: np.ndarray  # uint32, back to back
    lengths: np.ndarray  # int64, tokens of each document
    text_bytes: int
    mask: np.ndarray | None = None  # uint8, of fine-tuning data: 1 where a token is trained on


@dataclass
class Result:
    """A batch, done."""

    source: int
    read_bytes: int
    tally: Tally
    splits: dict[str, Encoded] = field(default_factory=dict)


class Worker:
    """Turns batches into results, always the same for the same batch."""

    def __init__(self, corpus: CorpusConfig, tokenizer_folder: Path, eos_id: int):
        self.corpus = corpus
        self.steps = make_steps(corpus.steps)
        self.encoder = Encoder(load_tokenizer(tokenizer_folder), eos_id if corpus.append_eos else None)
        self.samples = SampleParser.open(corpus, tokenizer_folder, eos_id)

    def __call__(self, batch: Batch) -> Result:
        """Raises DataError at the first bad record when the corpus is strict."""
        by_split: dict[str, list[Document]] = {}
        tally = Tally(self.corpus.strict)
        for split, document in self._chosen(batch, tally):
            by_split.setdefault(split, []).append(document)
        if batch.turn:  # these records were counted when they were read the first time
            tally = Tally(repeats=sum(map(len, by_split.values())))
        result = Result(batch.source, batch.read_bytes, tally)
        for split, documents in by_split.items():
            result.splits[split] = self._encoded(documents)
        return result

    def _encoded(self, documents: list[Document]) -> Encoded:
        if self.samples is not None:
            tokens, mask, lengths, size = stack(documents)
            return Encoded(tokens, lengths, size, mask)
        texts = [document.text for document in documents]
        tokens, lengths = self.encoder.encode(texts)
        return Encoded(tokens, lengths, sum(len(text.encode()) for text in texts))

    def _chosen(self, batch: Batch, tally: Tally) -> list[tuple[str, Document]]:
        """The documents to write and their splits. A source's weight thins out and repeats only train."""
        source = self.corpus.sources[batch.source]
        share = source.weight - batch.turn
        chosen = []
        if self.samples is not None:
            names = source.field
            assert isinstance(names, dict), "fine-tuning data names its fields"
            documents = list(self.samples.parse(batch.records, batch.encoding, names, tally))
        else:
            documents = documents_of(batch, self.corpus, self.steps, tally)
        for document in documents:
            split = split_of(document, self.corpus.splits, self.corpus.split_by == "file")
            if split == TRAIN:
                if share < 1 and fraction(document.id, "weight") >= share:
                    tally.drop("left out by weight", document.id)
                    continue
            elif batch.turn:
                continue
            tally.documents_out += 1
            chosen.append((split, document))
        return chosen


def documents_of(
    batch: Batch, corpus: CorpusConfig, steps: list[Step | CorpusWideStep], tally: Tally
) -> list[Document]:
    """The documents of a batch that all steps let through."""
    source = corpus.sources[batch.source]
    assert not isinstance(source.field, dict), "a text corpus names no fields"
    parsed = parse(batch.records, batch.encoding, source.field, tally, source.named_meta)
    return list(apply_steps(steps, parsed, tally))


_worker: Worker | None = None  # one per process, made by `start`


def start(corpus: CorpusConfig, tokenizer_folder: Path, eos_id: int) -> None:
    """First thing in a worker process: one thread, no say in Ctrl-C, and gone when its parent is."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(corpus, tokenizer_folder, eos_id)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def work(batch: Batch) -> Result:
    """A batch, in a worker process."""
    assert _worker is not None, "work() before start()"
    return _worker(batch)
