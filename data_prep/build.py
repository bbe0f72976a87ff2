"""One corpus file in, one dataset folder out.

    settle the sources (which files, what content, where they are cut)
    ->  reuse what is there, if it is exactly this; go on with what a killed build has left, if it is this
    ->  tokenizer (found, or trained on a sample of train)
    ->  passes: every chunk, by any number of processes (`crew`), then what a step decides over all of them
    ->  shards, in the order of the corpus  ->  manifest, and the folder moves into place

A worker holds one batch of one chunk, so memory does not grow with the corpus. What is done is kept file by
file in the work folder (`work`), so nothing but the chunks in hand is lost when anything dies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from data_prep.autotokenizer import as_transformers_reads
from data_prep.chain import Clock, passes_of
from data_prep.chat.documents import SampleParser, template_sha256
from data_prep.chat.turn_ends import turn_ends
from data_prep.corpus import CorpusConfig
from data_prep.crew import CLAIMS, Alone, Hands, Processes
from data_prep.leases import Heart, holder, remove
from data_prep.notes import notes_of
from data_prep.output import MARK, publish, refuse_foreign, sole_builder, sync_folder
from data_prep.passes import DECIDED, Progress, decide, finish_pass
from data_prep.report import BuildReport
from data_prep.report_facts import write_report
from data_prep.results import REJECTED
from data_prep.sample import sample_train
from data_prep.sources import Source, settle
from data_prep.splits import refuse_empty_splits
from data_prep.steps.step import BY_CONTENT
from data_prep.tokenizer import find_tokenizer
from data_prep.tokenizer_of_build import make_tokenizer
from data_prep.work import Work, clear_work, open_work, refuse_no_work
from data_prep.worker import PAGES
from data_prep.write import Written, assemble, bytes_to_write, write_rejected
from llmtrain.config.load import load_yaml_model
from llmtrain.data.manifest import (
    TOKENIZER,
    Manifest,
    TokenizerEntry,
    file_sha256,
    read_manifest,
    write_manifest,
)
from llmtrain.errors import DataError, InputError, LlmtrainError

PIPELINE_VERSION = 4  # counts up whenever the same corpus would give other bytes
ALONE_BELOW_BYTES = 4 << 20  # a smaller corpus is done before a second process has started
BUILT = "build.json"  # how the build went; no part of the dataset, which is the same however it was made
On = Literal["processes", "ray"]


def build(
    corpus_path: str | Path,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    overwrite: bool = False,
    on: On = "processes",
) -> BuildReport:
    """Builds the dataset a corpus file describes, or finds it built already.

    Raises ConfigError for the file, DataError for what it names, and for another dataset in the output
    folder unless `overwrite`. Whatever is raised, the output folder is as it was before. What was done is
    kept for the next build, unless it was the input that was wrong.
    """
    corpus = load_yaml_model(corpus_path, CorpusConfig, overrides).config
    tell = progress or _silent
    output = output_of(corpus)
    workers = workers_of(corpus)
    clock, began = Clock(), time.monotonic()
    with _readable_errors(corpus.folder), sole_builder(output), TemporaryDirectory() as scratch:
        with clock("finding and hashing the sources"):
            sources = _settle_all(corpus, tell)
            refuse_empty_splits(corpus, sources)
        with clock("finding the tokenizer"):
            found, notes = _found_tokenizer(corpus, Path(scratch))
        pipeline = _pipeline(corpus, sources, found)
        partial, rejected = work_folder(output), output.with_name(output.name + ".rejected")
        refuse_no_work(partial)
        there = _already_there(output, pipeline, overwrite)
        if there is not None and (rejected.exists() or not corpus.keep_rejected):
            if (partial / BUILT).exists():  # killed after the dataset had its name
                clear_work(partial)
            said = tuple(_built_before(output).get("notes", ()))
            return BuildReport(corpus.folder, there, reused=True, seconds=0.0, workers=workers, notes=said)
        _refuse_foreign_rejected(rejected, corpus)
        work = open_work(partial, corpus, sources, pipeline, overwrite)
        kept = work.check()
        if 0 < sum(source.bytes for source in sources) < ALONE_BELOW_BYTES and on == "processes":
            workers = 1
        with _kept_unless_input_is_wrong(work):
            heart = Heart()
            heart.content, heart.sign = holder(), partial / MARK
            heart.beat()
            try:
                with clock("making the tokenizer"):
                    sample = sample_train(corpus, sources, work.folder / PAGES, workers)
                    tokenizer = make_tokenizer(corpus, found, sample, work.folder, tell)
                    parser = SampleParser.open(corpus, work.folder / TOKENIZER, None)  # is it of use?
                with clock("passes over the text"):
                    _run_passes(work, workers, on, tell)
                with clock("writing shards"):
                    manifest, written = _write_dataset(work, tokenizer, pipeline, tell)
            finally:
                heart.sign = None
            notes = (*notes_of(corpus, sources, written, tokenizer.engine), *_unused(sources, parser), *notes)
            seconds = time.monotonic() - began
            _write_built(work, manifest, written, _Spent(seconds, workers, clock.seconds, notes))
            (partial / BUILT).touch()
            _publish(work, output, rejected)
            clear_work(partial)
    return BuildReport(corpus.folder, manifest, False, seconds, workers, kept, notes, written.read_bytes)


def _unused(sources: Sequence[Source], parser: SampleParser | None) -> Iterator[str]:
    """What of the input has no part in the dataset."""
    yield from parser.unused_templates() if parser else ()
    for source in sources:
        if source.left_out:
            yield f"{source.section.label}: no records are read from {', '.join(source.left_out)}"


def output_of(corpus: CorpusConfig) -> Path:
    """Where the dataset goes, links followed."""
    return Path(os.path.realpath(Path(corpus.folder).expanduser()))


def work_folder(output: Path) -> Path:
    """Where a build of `output` keeps its work."""
    return output.with_name(output.name + ".partial")


def workers_of(corpus: CorpusConfig) -> int:
    """How many processes of this machine work."""
    return len(os.sched_getaffinity(0)) if corpus.workers == "auto" else corpus.workers


def _silent(what: str, done: int, total: int, dropped: int = 0) -> None:
    """Progress nobody follows."""


@contextmanager
def _readable_errors(output: str) -> Iterator[None]:
    """Says what the machine could not do, instead of showing where in the program it happened."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = f"{error.strerror}: {error.filename}"
            raise DataError(f"output = {output!r} can't be written ({reason}): choose another") from None
        if error.errno == errno.ENOSPC:
            raise LlmtrainError(f"no space left while writing {output}: make room and try again") from None
        raise


@contextmanager
def _kept_unless_input_is_wrong(work: Work) -> Iterator[None]:
    """What is done stays for the next build, which nothing but a change of its input could help otherwise."""
    try:
        yield
    except InputError:
        clear_work(work.folder.parent)
        raise
    except BaseException as error:
        for name in ("dataset", "rejected", "scratch"):  # room for what is kept
            shutil.rmtree(work.folder / name, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise LlmtrainError(_room_needed(work)) from None
        raise


def _room_needed(work: Work) -> str:
    """One sentence on how much room is wanting, estimated from the chunks that are done."""
    done = sum(len(work.done(number)) for number in range(work.plan.passes))
    used = sum(path.stat().st_size for path in work.folder.rglob("*") if path.is_file())
    shards = bytes_to_write(work)
    if done:
        rest = work.plan.passes * work.plan.chunks / done - 1
        need = used * rest + shards * (1 + rest)
    else:
        need = float(sum(source.bytes for source in work.plan.sources))
    have = shutil.disk_usage(work.folder).free
    return (
        f"no space left while writing {work.folder.parent}: about {need / 1e6:,.1f} MB more are needed and "
        f"{have / 1e6:,.1f} MB are free; make room and run the command again, what is done is kept"
    )


def _run_passes(work: Work, workers: int, on: On, tell: Progress) -> None:
    """Every chunk through every pass."""
    names = [each.notes_for.name for each in passes_of(work.plan.corpus) if each.notes_for is not None]
    hands: Hands | None = None
    dropped = 0
    try:
        for number, what in enumerate(passes_of(work.plan.corpus)):
            if hands is None:
                hands = _hands(work, workers, on)
            doing = "tokenizing" if what.notes_for is None else f"{names[number]}: reading"
            dropped = finish_pass(work, number, hands, tell, doing, dropped)
            if what.notes_for is not None:
                decide(work, number, what.notes_for, tell, dropped)
    finally:
        if hands is not None:
            hands.end()


def _hands(work: Work, workers: int, on: On) -> Hands:
    if on == "ray":
        from data_prep.on_ray import RayTasks

        return RayTasks(work.folder)
    return Alone(work.folder) if workers == 1 else Processes(work.folder, workers)


def _write_dataset(
    work: Work, tokenizer: TokenizerEntry, pipeline: dict[str, Any], tell: Progress
) -> tuple[Manifest, Written]:
    folder = work.folder / "dataset"
    remove(folder)
    folder.mkdir()
    if shutil.disk_usage(folder).free < bytes_to_write(work):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    shutil.copytree(work.folder / TOKENIZER, folder / TOKENIZER)
    content, written = assemble(work, tokenizer, folder, tell)
    facts: dict[str, Any] = {"pipeline": pipeline, "pipeline_sha256": _sha256(pipeline)}
    if work.plan.corpus.kind != "text":
        facts["turn_ends"] = turn_ends(work.folder / TOKENIZER, work.plan.corpus.samples)
    manifest = content.model_copy(update=facts)
    if work.plan.corpus.keep_rejected:
        remove(work.folder / "rejected")
        write_rejected(work, work.folder / "rejected")
    write_manifest(folder, manifest)
    return manifest, written


@dataclass(frozen=True)
class _Spent:
    """What a build took: seconds of the clock in all and by stage; and what is to be said of it."""

    seconds: float
    workers: int
    stages: dict[str, float]
    notes: tuple[str, ...]


def _found_tokenizer(corpus: CorpusConfig, scratch: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of the tokenizer, if it is to be one that exists, and what to say about it."""
    if corpus.tokenizer.source is None:
        return None, ()
    proven = as_transformers_reads(find_tokenizer(corpus.tokenizer), corpus, scratch)
    return proven.folder, proven.notes


def _built_before(output: Path) -> dict[str, Any]:
    """How the dataset that is there was built, if it says so."""
    try:
        return dict(json.loads((output / BUILT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_built(work: Work, manifest: Manifest, written: Written, spent: _Spent) -> None:
    """How the build went, which differs from build to build, and the report."""
    folder = work.folder / "dataset"
    decided = [work.verdicts(number) / DECIDED for number in range(work.plan.passes - 1)]
    facts = {
        "seconds": spent.seconds,
        "workers": spent.workers,
        "notes": spent.notes,
        "read_bytes": written.read_bytes,
        "seconds_by_stage": spent.stages,
        "seconds_by_step": dict(sorted(written.seconds.items())),
        "corpus_wide": [json.loads(path.read_text(encoding="utf-8")) for path in decided],
        "chunks": work.plan.chunks,
        "passes": work.plan.passes,
        "chunks_taken": len((work.folder / CLAIMS).read_text(encoding="utf-8").splitlines()),
    }
    (folder / BUILT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_report(folder, work.plan.corpus, manifest, written, facts)
    sync_folder(folder)


def _publish(work: Work, output: Path, rejected: Path) -> None:
    """What was left out first, then the dataset: when it is there, all is there."""
    if rejected.exists():
        shutil.rmtree(rejected)
    if work.plan.corpus.keep_rejected:
        (work.folder / "rejected").rename(rejected)
    publish(work.folder / "dataset", output)


def _refuse_foreign_rejected(rejected: Path, corpus: CorpusConfig) -> None:
    """Raises DataError when something else lies where the rejected documents of the build go."""
    if rejected.exists() and (not rejected.is_dir() or set(os.listdir(rejected)) - {REJECTED}):
        raise DataError(
            f"{rejected} is in the way and holds no rejected documents: move it or choose another output"
        )


def _settle_all(corpus: CorpusConfig, tell: Progress) -> list[Source]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell("reading sources", done, 0)

    return [settle(section, number, advance) for number, section in enumerate(corpus.sources)]


def _pipeline(corpus: CorpusConfig, sources: Sequence[Source], found: Path | None) -> dict[str, Any]:
    """All that decides the bytes of the dataset, and no path, name or worker count."""
    deciding = {"steps", "splits", "split_by", "append_eos"}
    content = corpus.model_dump(mode="json", include=deciding, context=BY_CONTENT)
    content |= corpus.model_dump(mode="json", include={"max_document_bytes", "shard_tokens"})
    where = {"path", "hub", "stdlib", "exclude", "subset", "split", "revision"}
    content["sources"] = [
        source.section.model_dump(mode="json", exclude=where) | {"content": source.digest}
        for source in sources
    ]
    tokenizer = corpus.tokenizer.model_dump(mode="json", exclude={"source", "revision", "engine"})
    if found is not None:
        tokenizer = {"eos": corpus.tokenizer.eos, "sha256": file_sha256(found / "tokenizer.json")}
    if corpus.prepend_bos:
        content["prepend_bos"] = True
        tokenizer["bos"] = corpus.tokenizer.bos
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
    keys = dict.fromkeys([*pipeline, *manifest.pipeline])
    changed = [key for key in keys if pipeline.get(key) != manifest.pipeline.get(key)]
    raise DataError(f"{output} holds another dataset (it differs in {', '.join(changed)}): {ask}")
