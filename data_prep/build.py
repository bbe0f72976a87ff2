"""One corpus file in, one dataset folder out.

    settle the sources (which files, what content)  ->  reuse what is there, if it is exactly this
    ->  tokenizer (found, or trained on a sample of train)  ->  batches -> workers -> shards, in order
    ->  manifest, and the folder moves into place

One process reads and writes, the workers parse, step, split and tokenize. Results are written in the
order of the batches, and a bounded number of batches is under way, so memory does not grow with the
corpus and the worker count does not change a byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.chat.documents import SampleParser, template_sha256
from data_prep.corpus import CorpusConfig
from data_prep.output import partial_folder, refuse_foreign, sole_builder
from data_prep.report import BuildReport
from data_prep.sample import sample_train
from data_prep.sources import Source, settle
from data_prep.tokenizer import (
    DEFAULT_EOS,
    copy_tokenizer,
    describe_tokenizer,
    find_tokenizer,
    train_bpe,
    write_trained,
)
from data_prep.write import Progress, write_shards
from llmtrain.config.load import load_yaml_model
from llmtrain.data.manifest import (
    TOKENIZER,
    Manifest,
    TokenizerEntry,
    file_sha256,
    read_manifest,
    write_manifest,
)
from llmtrain.errors import DataError, LlmtrainError

PIPELINE_VERSION = 2  # counts up whenever the same corpus would give other bytes


def build(
    corpus_path: str | Path,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    overwrite: bool = False,
) -> BuildReport:
    """Builds the dataset a corpus file describes, or finds it built already.

    Raises ConfigError for the file, DataError for what it names, and for another dataset in the output
    folder unless `overwrite`. Whatever is raised, the output folder is as it was before.
    """
    corpus = load_yaml_model(corpus_path, CorpusConfig, overrides).config
    tell = progress or _silent
    output = Path(os.path.realpath(Path(corpus.folder).expanduser()))
    workers = len(os.sched_getaffinity(0)) if corpus.workers == "auto" else corpus.workers
    began = time.monotonic()
    with _readable_errors(corpus.folder), sole_builder(output):
        sources = _settle_all(corpus, tell)
        found = find_tokenizer(corpus.tokenizer) if corpus.tokenizer.source is not None else None
        pipeline = _pipeline(corpus, sources, found)
        there = _already_there(output, pipeline, overwrite)
        if there is not None:
            return BuildReport(corpus.folder, there, reused=True, seconds=0.0, workers=workers)
        with partial_folder(output) as folder:
            tokenizer = _make_tokenizer(corpus, sources, found, folder / TOKENIZER, tell)
            SampleParser.open(
                corpus, folder / TOKENIZER, None
            )  # a template of no use is refused before reading
            content = write_shards(corpus, sources, tokenizer, folder, workers, tell)
            manifest = content.model_copy(update={"pipeline": pipeline, "pipeline_sha256": _sha256(pipeline)})
            write_manifest(folder, manifest)
    return BuildReport(corpus.folder, manifest, False, time.monotonic() - began, workers)


def _silent(what: str, done: int, total: int) -> None:
    """Progress nobody follows."""


@contextmanager
def _readable_errors(output: str) -> Iterator[None]:
    """Says what the machine could not do, instead of showing where in the program it happened."""
    try:
        yield
    except BrokenProcessPool:
        raise LlmtrainError(
            "a worker of the build died, most likely for want of memory: set fewer workers; "
            "nothing was left behind"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LlmtrainError(f"no space left while writing {output}: nothing was left behind") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = f"{error.strerror}: {error.filename}"
            raise DataError(f"output = {output!r} can't be written ({reason}): choose another") from None
        raise


def _settle_all(corpus: CorpusConfig, tell: Progress) -> list[Source]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell("reading sources", done, 0)

    return [settle(section, number, advance) for number, section in enumerate(corpus.sources)]


def _pipeline(corpus: CorpusConfig, sources: Sequence[Source], found: Path | None) -> dict[str, Any]:
    """All that decides the bytes of the dataset, and no path, name or worker count."""
    content = corpus.model_dump(mode="json", include={"steps", "splits", "split_by", "append_eos"})
    content |= corpus.model_dump(mode="json", include={"max_document_bytes", "shard_tokens"})
    where = {"path", "hub", "stdlib", "exclude", "subset", "split", "revision"}
    content["sources"] = [
        source.section.model_dump(mode="json", exclude=where) | {"content": source.digest}
        for source in sources
    ]
    tokenizer = corpus.tokenizer.model_dump(mode="json", exclude={"source", "revision"})
    if found is not None:
        tokenizer = {"eos": corpus.tokenizer.eos, "sha256": file_sha256(found / "tokenizer.json")}
    if found is not None and corpus.kind != "text":
        content |= corpus.model_dump(mode="json", include={"kind", "samples"})
        tokenizer["template"] = template_sha256(found)
    return content | {"tokenizer": tokenizer, "version": PIPELINE_VERSION}


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _already_there(output: Path, pipeline: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest in the output folder if it is of this very build; None when there is nothing to keep.

    Raises DataError when something else is there.
    """
    if not output.exists():
        return None
    refuse_foreign(output)
    if overwrite or not any(output.iterdir()):
        return None
    ask = "choose another output, or replace it with --overwrite"
    try:
        manifest = read_manifest(output)
    except DataError as error:
        raise DataError(f"{output} holds a damaged dataset ({error}); {ask}") from None
    if manifest.pipeline_sha256 == _sha256(pipeline):
        return manifest
    changed = [key for key in pipeline if pipeline[key] != manifest.pipeline.get(key)]
    raise DataError(f"{output} holds another dataset (it differs in {', '.join(changed)}): {ask}")


def _make_tokenizer(
    corpus: CorpusConfig, sources: Sequence[Source], found: Path | None, folder: Path, tell: Progress
) -> TokenizerEntry:
    section = corpus.tokenizer
    if found is not None:
        copy_tokenizer(found, folder)
        return describe_tokenizer(folder, section, str(section.source))
    eos = section.eos or DEFAULT_EOS
    done = 0

    def followed() -> Iterator[str]:
        nonlocal done
        for text in sample_train(corpus, sources):
            done += len(text)
            tell("training the tokenizer", done, section.sample_bytes)
            yield text

    write_trained(train_bpe(followed(), section.vocab_size, eos), folder, eos)
    return describe_tokenizer(folder, section, f"{corpus.name}-bpe")
