"""A pass over all chunks, followed from the build's process; and the decision between two passes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_prep.corpus import Limit
from data_prep.crew import Hands
from data_prep.leases import Queue, remove
from data_prep.output import sync_folder
from data_prep.results import NOTES, Result, read_result
from data_prep.steps.step import CorpusWideStep
from data_prep.work import Work
from llmtrain import errors
from llmtrain.errors import DataError, InputError

DECIDED = "decided.json"


class Progress(Protocol):
    """Hears many times how far a build is."""

    def __call__(self, what: str, done: int, total: int, dropped: int = 0) -> None:
        """What is being done, bytes done, bytes in all (0 when unknown), documents left out so far."""


class Follow:
    """How far a pass is: which chunks are done, and which are still wanted."""

    def __init__(self, work: Work, number: int, tell: Progress, what: str, dropped: int):
        self.work = work
        self.number = number
        self.tell = tell
        self.what = what
        self.dropped = dropped
        self.read = self.shown = 0
        self.done: set[int] = set()
        self.last = number == work.plan.passes - 1
        sections, sources = work.plan.corpus.sources, work.plan.sources
        self.known = all(source.bytes for source in sources) and not any(
            isinstance(section.limit, int) for section in sections
        )
        self.limited = self._limited() if self.last else []
        self.unwanted: set[int] = set()
        self.look()

    def _limited(self) -> list[LimitedSource]:
        sections = self.work.plan.corpus.sources
        found = {
            number: LimitedSource(section.limit_written)
            for number, section in enumerate(sections)
            if section.limit_written is not None
        }
        if found:
            for chunk in self.work.chunks:
                if chunk.source in found:
                    found[chunk.source].chunks.append(chunk.number)
        return list(found.values())

    @property
    def missing(self) -> list[int]:
        """The chunks that are wanted and not done."""
        numbers = range(self.work.plan.chunks)
        return [number for number in numbers if number not in self.done and number not in self.unwanted]

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is done."""
        return len(self.done | self.unwanted) == self.work.plan.chunks

    def look(self) -> None:
        """Takes in the chunks that were done since the last look."""
        for chunk in self.work.done(self.number):
            if chunk not in self.done:
                result = read_result(self.work.result(self.number, chunk))
                self.done.add(chunk)
                self.read += self.work.chunks[chunk].bytes
                self.dropped += sum(result.tally.rejected.values())
                for source in self.limited:
                    source.hear(chunk, result)
        for source in self.limited:
            self.unwanted.update(source.unwanted)

    @property
    def total(self) -> int:
        """Bytes to be read, as far as is known by now: 0 when unknown, fewer once a limit is reached."""
        if not self.known:
            return 0
        left_out = (self.work.chunks[number].bytes for number in self.unwanted - self.done)
        return sum(source.bytes for source in self.work.plan.sources) - sum(left_out)

    def show(self, in_hand: int) -> None:
        """Tells how far it is; `in_hand` more bytes are read of chunks that are not done."""
        self.shown = max(self.shown, self.read + in_hand)
        total = self.total
        if total:
            self.shown = min(self.shown, total)
        self.tell(self.what, self.shown, total, self.dropped)


class LimitedSource:
    """A source that may write only so much: chunks after the one that reaches it are not wanted."""

    def __init__(self, limit: Limit):
        self.limit = limit
        self.chunks: list[int] = []
        self.amounts: dict[int, int] = {}
        self.place = self.total = 0  # of the first chunks, which are all done

    def hear(self, chunk: int, result: Result) -> None:
        """A chunk, of this source or another, is done."""
        self.amounts[chunk] = result.written(self.limit.unit)
        while self.total < self.limit.most and self.place < len(self.chunks):
            amount = self.amounts.get(self.chunks[self.place])
            if amount is None:
                return
            self.total += amount
            self.place += 1

    @property
    def unwanted(self) -> list[int]:
        """The chunks that will not be written."""
        return self.chunks[self.place :] if self.total >= self.limit.most else []


def finish_pass(work: Work, number: int, hands: Hands, tell: Progress, what: str, dropped: int) -> int:
    """Sees to it that every chunk is done; how many documents were left out up to here.

    Raises what was wrong with the first chunk, in the order of the corpus, that failed.
    """
    follow = Follow(work, number, tell, what, dropped)
    queue = Queue.create(work.queue(number), follow.missing)
    looked, pause = time.monotonic(), 0.0

    def hear(in_hand: int) -> None:
        nonlocal looked, pause
        now = time.monotonic()
        if in_hand:
            follow.show(in_hand)
        elif now - looked > pause:
            follow.look()
            follow.show(sum(queue.at_work().values()))
            pause = 10 * (time.monotonic() - now)  # not all the time in a folder of very many chunks
            looked = time.monotonic()

    while not follow.complete:
        if queue.failures():
            _raise_first(queue)
        hands.step(number, hear)
        follow.look()
        for chunk in follow.unwanted:
            queue.withdraw(chunk)
    follow.show(0)
    queue.close()
    return follow.dropped


def _raise_first(queue: Queue) -> None:
    """Raises the error of the first chunk that failed, once no chunk before it may still fail."""
    while any(chunk < min(queue.failures()) for chunk in queue.at_work()):
        time.sleep(0.05)
    error = queue.failure(min(queue.failures()))
    kind = getattr(errors, error["kind"], None)
    if "errno" in error:
        raise OSError(error["errno"], error["message"], error["filename"])
    if error["kind"] == "CorpusChangedError" or (isinstance(kind, type) and issubclass(kind, InputError)):
        raise errors.DataError(error["message"])
    if isinstance(kind, type) and issubclass(kind, errors.LlmtrainError):
        raise errors.LlmtrainError(error["message"])
    raise RuntimeError(f"a worker failed:\n{error['trace']}")


def decide(work: Work, number: int, step: CorpusWideStep, tell: Progress, dropped: int) -> None:
    """Lets a corpus-wide step see all notes of a pass and keeps what it decides, unless that is there."""
    if work.verdicts(number).exists():
        return
    new = work.folder / "deciding"
    scratch = work.folder / "deciding.scratch"
    for folder in (new, scratch):
        remove(folder)
        folder.mkdir()
    chunks: Sequence[int] = range(work.plan.chunks)
    verdicts = [new / work.verdict(number, chunk).name for chunk in chunks]
    notes = [work.result(number, chunk) / NOTES for chunk in chunks]
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        tell(f"{step.name}: deciding", done, total, dropped)

    found = step.resolve(notes, verdicts, scratch, progress)
    for path in verdicts:
        if not path.is_file():
            raise DataError(f"{step.name} decided nothing about chunk {path.name}")
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    facts = {"step": step.name, "seconds": time.monotonic() - began, "found": found}
    with open(new / DECIDED, "w", encoding="utf-8") as text:
        json.dump(facts, text, default=_plain)
        text.flush()
        os.fsync(text.fileno())
    sync_folder(new)
    new.rename(work.verdicts(number))
    remove(scratch)


def _plain(value: object) -> object:
    """Numbers of numpy as those of Python."""
    if not isinstance(value, np.generic | np.ndarray):
        raise TypeError(f"a step reports a {type(value).__name__}")
    return value.tolist()
