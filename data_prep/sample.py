"""A bounded, fixed sample of a corpus's train part, for training its tokenizer.

Files are taken in the order of a hash of their names, and no file gives more than its share while there
are others, so that the sample is not the head of the alphabet. A Hub dataset gives its first rows.
Steps that must see the whole corpus first are left out: they come after the tokenizer.

Pages are parsed by as many processes as the build has, a few files ahead of what is wanted, and kept for the
passes: the same texts in the same order for any number of processes.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data_prep.batches import batches_of
from data_prep.chain import Clock, passes_of, run_steps
from data_prep.corpus import CorpusConfig
from data_prep.crew import end_with_parent
from data_prep.documents import Tally
from data_prep.files import SourceFile
from data_prep.readers.html import kept_pages
from data_prep.sources import Source, read_source
from data_prep.splits import TRAIN, fraction, split_of
from data_prep.steps.step import Step
from data_prep.worker import documents_of
from llmtrain.config.search_path import SafeChildren
from llmtrain.errors import LlmtrainError

PARTS = 8  # one file gives at most this part of the sample, unless there are fewer files
AHEAD = 2  # files that are in work for each process


class Sampler:
    """Reads texts of train documents; pages are kept in `pages`, a folder."""

    def __init__(self, corpus: CorpusConfig, pages: Path):
        self.corpus = corpus
        self.pages = pages
        self.steps: list[tuple[str, Step]] = [step for each in passes_of(corpus) for step in each.steps]

    def texts(self, source: Source, files: Sequence[SourceFile] | None, budget: int) -> Iterator[str]:
        """Of some files (None: of all), the last one cut to what is left of `budget` characters."""
        corpus = self.corpus
        for batch in batches_of(read_source(source, corpus.max_document_bytes, _ignore, files)):
            tally = Tally()
            with kept_pages(self.pages, add=True):
                documents = documents_of(batch, source, tally)
            for document in run_steps(self.steps, documents, tally, Clock()):
                if split_of(document, corpus.splits, corpus.split_by == "file") == TRAIN:
                    yield document.text[:budget]
                    budget -= len(document.text)
                if budget <= 0:
                    return


def sample_train(
    corpus: CorpusConfig, sources: Sequence[Source], pages: Path, processes: int = 1
) -> Iterator[str]:
    """Texts of train documents, `tokenizer.sample_bytes` in all at most, shared by the sources' weights."""
    pages.mkdir(exist_ok=True)
    sampler = Sampler(corpus, pages)
    weights = sum(source.section.weight for source in sources)
    for source in sources:
        budget = int(corpus.tokenizer.sample_bytes * source.section.weight / weights)
        if not source.files:
            yield from sampler.texts(source, None, budget)
            continue
        share = budget // min(PARTS, len(source.files))
        files = sorted(source.files, key=lambda file: fraction(file.name, "sample"))
        of_files: Iterator[Iterable[str]]
        if processes == 1 or len(files) == 1 or not source.has_pages:
            of_files = (sampler.texts(source, [file], share) for file in files)
        else:
            of_files = _by_processes(sampler, source, files, share, processes)
        for texts in of_files:
            for text in texts:
                yield text[:budget]
                budget -= len(text)
                if budget <= 0:
                    break
            if budget <= 0:
                break


def _by_processes(
    sampler: Sampler, source: Source, files: Sequence[SourceFile], share: int, processes: int
) -> Iterator[list[str]]:
    """What `Sampler.texts` gives of each file, in their order, a few files ahead of what is asked for."""
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _begin, (sampler.corpus, sampler.pages, source)
    )
    ahead: deque[Future[list[str]]] = deque()
    try:
        for file in files:
            with SafeChildren():  # a process is started when there is work for it
                ahead.append(pool.submit(_texts, file, share))
            if len(ahead) == AHEAD * processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise LlmtrainError(
            "a process that reads the sample for the tokenizer died, most likely for want of memory: set "
            "fewer workers and run the command again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_mine: tuple[Sampler, Source] | None = None  # of a process of the pool


def _begin(corpus: CorpusConfig, pages: Path, source: Source) -> None:
    global _mine
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    _mine = Sampler(corpus, pages), source


def _texts(file: SourceFile, share: int) -> list[str]:
    assert _mine is not None, "the pool begins its processes with what they need"
    sampler, source = _mine
    return list(sampler.texts(source, [file], share))


def _ignore(_: int) -> None:
    """Progress nobody follows."""
