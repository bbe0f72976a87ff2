"""The tokenizer of a build: found, or trained on a sample; with the engine that encodes by it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.corpus import DEFAULT_EOS, CorpusConfig
from data_prep.engines import SAMPLE_BYTES, choose_engine
from data_prep.leases import remove
from data_prep.passes import Progress
from data_prep.tokenizer import copy_tokenizer, describe_tokenizer, name_marks, train_bpe, write_trained
from data_prep.worker import TOKENIZER_ENTRY
from llmtrain.data.manifest import TOKENIZER, TokenizerEntry


def make_tokenizer(
    corpus: CorpusConfig, found: Path | None, sample: Iterable[str], work: Path, tell: Progress
) -> TokenizerEntry:
    """The tokenizer of the dataset, made in the work folder or found there.

    found   the folder of one that exists, or None to train one
    sample  texts of the train part; they are read once, as far as they are needed
    """
    entry = work / TOKENIZER_ENTRY
    if entry.exists():
        return TokenizerEntry.model_validate_json(entry.read_text(encoding="utf-8"))
    remove(work / TOKENIZER)
    texts = _Kept(sample)
    described = _fill(corpus, found, texts, work / TOKENIZER, tell)
    if corpus.kind == "text":  # fine-tuning data needs to know where in the text each token stands
        tell("comparing tokenizer engines", 0, 0)
        engine = choose_engine(work / TOKENIZER, corpus.tokenizer.engine, texts.again())
        described = described.model_copy(update={"engine": str(engine)})
    part = entry.with_suffix(".part")
    part.write_text(described.model_dump_json(), encoding="utf-8")
    for path in [part, *(each for each in (work / TOKENIZER).rglob("*") if each.is_file())]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    part.rename(entry)
    return described


class _Kept:
    """Texts that are made once and, as far as engines are compared on them, remembered."""

    def __init__(self, texts: Iterable[str]):
        self._rest = iter(texts)
        self._first: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._rest:
            if self._size < SAMPLE_BYTES:
                self._first.append(text)
                self._size += len(text)
            yield text

    def again(self) -> Iterator[str]:
        """From the first on."""
        yield from self._first
        if self._size < SAMPLE_BYTES:
            yield from self


def _fill(
    corpus: CorpusConfig, found: Path | None, sample: Iterable[str], folder: Path, tell: Progress
) -> TokenizerEntry:
    section = corpus.tokenizer
    if found is not None:
        copy_tokenizer(found, folder)
        described = describe_tokenizer(folder, section, str(section.source), corpus.prepend_bos)
        name_marks(folder, {"eos_token": section.eos, "bos_token": section.bos})
        return described
    eos = section.eos or DEFAULT_EOS
    done = 0

    def followed() -> Iterator[str]:
        nonlocal done
        for text in sample:
            done += len(text)
            tell("training the tokenizer", done, section.sample_bytes)
            yield text

    trained = train_bpe(followed(), section.vocab_size, eos, section.special)
    write_trained(trained, folder, eos, section.special, section.bos)
    return describe_tokenizer(folder, section, f"{corpus.name}-bpe", corpus.prepend_bos)
