"""The work folder of a build, `OUTPUT.partial`, in which everything is kept that a killed build had done.

UNFINISHED             says that this is no dataset; the build that runs here touches it
ID/                    the work on exactly this: corpus, content, steps, tokenizer
    plan.json          what is built; chunks.jsonl: the chunks
    tokenizer/         and tokenizer.json, the manifest's entry for it, when it is made
    queue-0/           tickets of a pass (`leases`)
    pass-0/000012/     the result of chunk 12 in the first pass (`results`)
    verdicts-0/        what the corpus-wide step at the end of the first pass decided, a file per chunk
    scratch/           results that are being made
    dataset/ rejected/ what moves to the output in the end
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.chunks import ChunkList, write_chunks
from data_prep.chunks import cut as cut_into_chunks
from data_prep.corpus import CorpusConfig
from data_prep.leases import DIGITS, GONE, remove
from data_prep.output import MARK, sync_folder
from data_prep.results import DOCUMENT, SPILL, is_whole
from data_prep.sources import Source
from data_prep.steps.registry import make_steps
from data_prep.steps.step import CorpusWideStep
from llmtrain.config.schema import Section
from llmtrain.data.manifest import MANIFEST
from llmtrain.errors import DataError

PLAN = "plan.json"
CHUNKS = "chunks.jsonl"
KEPT_NAMES = 3  # files named where a corpus has changed


class SettledSource(Section):
    """What a worker needs of a source besides its section."""

    digest: str
    revision: str | None
    files: int
    bytes: int


class Plan(Section):
    """What is built in a work folder. `id` covers all that decides what its files hold."""

    id: str
    pipeline: dict[str, Any]
    corpus: CorpusConfig
    sources: tuple[SettledSource, ...]
    chunks: int
    passes: int


class Work:
    """One build's work folder and what is done there."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder = folder
        self.plan = plan
        self.chunks = ChunkList(folder / CHUNKS)

    @classmethod
    def open(cls, folder: Path) -> Work:
        """The work that someone has begun in this folder."""
        plan = Plan.model_validate_json((folder / PLAN).read_text(encoding="utf-8"))
        return cls(folder, plan)

    def queue(self, number: int) -> Path:
        """The tickets of a pass."""
        return self.folder / f"queue-{number}"

    def results(self, number: int) -> Path:
        """The results of a pass."""
        return self.folder / f"pass-{number}"

    def result(self, number: int, chunk: int) -> Path:
        """The result of a chunk in a pass."""
        return self.results(number) / f"{chunk:0{DIGITS}d}"

    def verdicts(self, number: int) -> Path:
        """What was decided at the end of a pass."""
        return self.folder / f"verdicts-{number}"

    def verdict(self, number: int, chunk: int) -> Path:
        """What was decided about the documents of a chunk at the end of a pass."""
        return self.verdicts(number) / f"{chunk:0{DIGITS}d}.npy"

    def done(self, number: int) -> list[int]:
        """The chunks that have a result in a pass, in order."""
        folder = self.results(number)
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.exists() else []

    def check(self) -> int:
        """Takes away results that are not whole; how many are left."""
        count = 0
        for number in range(self.plan.passes):
            self.results(number).mkdir(exist_ok=True)
            for chunk in self.done(number):
                if is_whole(self.result(number, chunk)):
                    count += 1
                else:
                    remove(self.result(number, chunk))
        return count


def open_work(
    partial: Path,
    corpus: CorpusConfig,
    sources: Sequence[Source],
    pipeline: Mapping[str, Any],
    overwrite: bool,
) -> Work:
    """The work folder of this build, with what is done of it.

    Raises DataError when `partial` is no build's, or holds unfinished work on something else; with
    `overwrite` that goes.
    """
    refuse_no_work(partial)
    partial.mkdir(exist_ok=True)
    (partial / MARK).touch()
    new = partial / "new"
    remove(new)
    new.mkdir()
    count, identity = write_chunks(new / CHUNKS, cut_into_chunks(sources))
    decisive = [pipeline, corpus.keep_rejected, DOCUMENT.descr, SPILL]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    digest.update(identity.encode())
    plan = Plan(
        id=digest.hexdigest(),
        pipeline=dict(pipeline),
        corpus=corpus,
        sources=tuple(
            SettledSource(digest=each.digest, revision=each.revision, files=len(each.files), bytes=each.bytes)
            for each in sources
        ),
        chunks=count,
        passes=1 + sum(isinstance(step, CorpusWideStep) for step in make_steps(corpus.steps)),
    )
    _write(new / PLAN, plan.model_dump_json())
    folder = partial / plan.id[:16]
    _clear_others(partial, folder, new, overwrite)
    if folder.exists():  # the corpus may lie elsewhere now
        for name in (CHUNKS, PLAN):
            (new / name).replace(folder / name)
        remove(new)
    else:
        new.rename(folder)
    sync_folder(partial)
    return Work(folder, plan)


def refuse_no_work(partial: Path) -> None:
    """Raises DataError when something that is no build's lies where the work folder is to be."""
    if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
        return
    if not partial.is_dir() or not any((partial / name).is_file() for name in (MARK, MANIFEST)):
        raise DataError(f"{partial} is in the way and is not a build's: move it or choose another output")


def clear_work(partial: Path) -> None:
    """Takes the work folder away; what says that it is one goes last."""
    for path in partial.iterdir():
        if path.is_dir():
            remove(path)
        elif path.name != MARK:
            path.unlink()
    (partial / MARK).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _clear_others(partial: Path, folder: Path, new: Path, overwrite: bool) -> None:
    for other in sorted(partial.iterdir()):
        if other in (folder, new) or other.name == MARK:
            continue
        if (other / PLAN).is_file() and GONE not in other.name and not overwrite:
            work = Work.open(other)
            if any(work.done(number) for number in range(work.plan.passes)):
                what = _changes(work, Work.open(new))
                remove(new)
                raise DataError(
                    f"{partial} holds the unfinished build of another corpus ({what}): change that back to "
                    "go on with it, or start anew with --overwrite"
                )
        if other.is_dir():
            remove(other)
        else:
            other.unlink()


def _changes(old: Work, new: Work) -> str:
    """What differs, file by file where it is in the files."""
    was, now = old.plan.pipeline, new.plan.pipeline
    changed = [key for key in now if key != "sources" and was.get(key) != now[key]]
    if was["sources"] != now["sources"]:
        changed += _changed_sources(old, new)
    if old.plan.corpus.keep_rejected != new.plan.corpus.keep_rejected:
        changed.append("keep_rejected")
    return ", ".join(changed) if changed else "another version cut it into chunks"


def _changed_sources(old: Work, new: Work) -> list[str]:
    if len(old.plan.sources) != len(new.plan.sources):
        return ["sources"]
    changed = []
    was, now = _files(old), _files(new)
    for number, before in enumerate(old.plan.pipeline["sources"]):
        after = new.plan.pipeline["sources"][number]
        found = [
            f"sources.{number}.{key}" for key in after if key != "content" and after[key] != before.get(key)
        ]
        if before["content"] != after["content"]:
            names = _changed_files(was.get(number, {}), now.get(number, {}))
            more = f" and {len(names) - KEPT_NAMES} more" if len(names) > KEPT_NAMES else ""
            found.append(f"sources.{number}: " + (", ".join(names[:KEPT_NAMES]) + more or "another revision"))
        changed += found
    return changed


def _files(work: Work) -> dict[int, dict[str, str]]:
    """sha256 by file name by source."""
    found: dict[int, dict[str, str]] = {}
    for chunk in work.chunks:
        found.setdefault(chunk.source, {}).update({file.name: file.sha256 for file in chunk.files})
    return found


def _changed_files(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    kinds = {(True, True): "has changed", (True, False): "is gone", (False, True): "is new"}
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    return [f"{name} {kinds[name in was, name in now]}" for name in names]
