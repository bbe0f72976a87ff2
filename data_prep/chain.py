"""The steps of a corpus in a row: cut into passes, timed, and with an eye on what they leave out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from data_prep.corpus import CorpusConfig
from data_prep.documents import Damage, Document, Record, Tally
from data_prep.steps.registry import make_steps
from data_prep.steps.step import CorpusWideStep, Step


@dataclass
class Pass:
    """What is done between two corpus-wide steps: the verdict of one, steps by name, notes for the next."""

    verdict_of: CorpusWideStep | None = None
    steps: list[tuple[str, Step]] = field(default_factory=list)
    notes_for: CorpusWideStep | None = None


def passes_of(corpus: CorpusConfig) -> list[Pass]:
    """The steps of a corpus, cut at those that must see the whole of it."""
    names = [name for section in corpus.steps for name in section.named]
    passes = [Pass()]
    for name, step in zip(names, make_steps(corpus.steps), strict=True):
        if isinstance(step, CorpusWideStep):
            passes[-1].notes_for = step
            passes.append(Pass(verdict_of=step))
        else:
            passes[-1].steps.append((name, step))
    return passes


class Clock:
    """Seconds by what they were spent on; `now` may be another clock, such as that of the processor."""

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Counts the time that is spent inside."""
        began = self.now()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + self.now() - began

    def pulls(self, what: str, items: Iterator) -> Iterator:
        """The same items; the time it takes to get each is counted."""
        while True:
            with self(what):
                item = next(items, self)
            if item is self:
                return
            yield item


def run_steps(
    steps: list[tuple[str, Step]], documents: list[Document], tally: Tally, clock: Clock
) -> list[Document]:
    """A batch of documents through steps, one after the other."""
    for name, step in steps:
        with clock(name):
            documents = list(step(iter(documents), tally))
    return documents


class AsideTally(Tally):
    """A tally that hands on every document that is left out, with its text."""

    def __init__(self, strict: bool, source: int, write: Callable[[bytes], None]):
        super().__init__(strict)
        self.source = source
        self.write = write
        self.held: dict[str, str | None] = {}  # by place, the texts of which some may be left out

    def hold(self, documents: list[Document]) -> None:
        """These come next; what was held before has been decided on."""
        self.held = {document.id: document.text for document in documents}

    def hold_records(self, records: list[Record]) -> None:
        """As `hold`, of records that may turn out to be no documents."""
        self.held = {record.where: _shown(record) for record in records}

    def drop(self, reason: str, where: str) -> None:
        """Counts it, and hands it on."""
        super().drop(reason, where)
        row = {"reason": reason, "source": self.source, "where": where, "text": self._held(where)}
        self.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def _held(self, where: str) -> str | None:
        """The text from a place, which a detail in brackets may follow."""
        return self.held.get(where, self.held.get(where.partition(" (")[0]))


def _shown(record: Record) -> str | None:
    """A record as text, whatever it is; bytes that are no UTF-8 as \\xNN."""
    if isinstance(record.content, Damage):
        return None
    if isinstance(record.content, bytes):
        return record.content.decode("utf-8", "backslashreplace")
    return record.content if isinstance(record.content, str) else repr(record.content)
