"""A bounded, fixed sample of a corpus's train part, for training its tokenizer.

Files are taken in the order of a hash of their names, and no file gives more than its share while there
are others, so that the sample is not the head of the alphabet. A Hub dataset gives its first rows.
Steps that must see the whole corpus first are left out: they come after the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_prep.batches import batches_of
from data_prep.chain import Clock, passes_of, run_steps
from data_prep.corpus import CorpusConfig
from data_prep.documents import Tally
from data_prep.files import SourceFile
from data_prep.sources import Source, read_source
from data_prep.splits import TRAIN, fraction, split_of
from data_prep.worker import documents_of

PARTS = 8  # one file gives at most this part of the sample, unless there are fewer files


def sample_train(corpus: CorpusConfig, sources: Sequence[Source]) -> Iterator[str]:
    """Texts of train documents, `tokenizer.sample_bytes` in all at most, shared by the sources' weights."""
    weights = sum(source.section.weight for source in sources)
    for source in sources:
        budget = int(corpus.tokenizer.sample_bytes * source.section.weight / weights)
        if not source.files:
            yield from _texts(corpus, source, None, budget)
            continue
        share = budget // min(PARTS, len(source.files))
        for file in sorted(source.files, key=lambda file: fraction(file.name, "sample")):
            for text in _texts(corpus, source, [file], min(share, budget)):
                budget -= len(text)
                yield text
            if budget <= 0:
                break


def _texts(
    corpus: CorpusConfig, source: Source, files: Sequence[SourceFile] | None, budget: int
) -> Iterator[str]:
    """Train texts of some files (None: all), the last one cut to what is left of `budget` characters."""
    records = read_source(source, corpus.max_document_bytes, _ignore, files)
    steps = [step for each in passes_of(corpus) for step in each.steps]
    for batch in batches_of(records):
        tally = Tally()
        for document in run_steps(steps, documents_of(batch, source, tally), tally, Clock()):
            if split_of(document, corpus.splits, corpus.split_by == "file") == TRAIN:
                yield document.text[:budget]
                budget -= len(document.text)
            if budget <= 0:
                return


def _ignore(_: int) -> None:
    """Progress nobody follows."""
