"""Steps driven without a build: documents in chunks, notes in files, verdicts from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Document, Tally
from data_prep.steps.step import CorpusWideStep, Step


@dataclass
class Outcome:
    """What came of a corpus: documents in order, counts, and what `resolve` reported."""

    documents: list[Document]
    tally: Tally
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def numbers(self) -> list[int]:
        """Places in the corpus, from 0, of the documents that were kept."""
        return [document.number - 1 for document in self.documents]


def documents_from(texts: Sequence[str]) -> list[Document]:
    return [Document(text, "d.jsonl", number) for number, text in enumerate(texts, 1)]


def pass_through(step: Step, texts: Sequence[str]) -> Outcome:
    """A step of one pass."""
    tally = Tally()
    return Outcome(list(step(iter(documents_from(texts)), tally)), tally)


def in_two_passes(
    step: CorpusWideStep, texts: Sequence[str], folder: Path, chunk: int = 7, call: int = 3
) -> Outcome:
    """A corpus-wide step over chunks of `chunk` documents, noted `call` at a time, last chunk first."""
    folder.mkdir(parents=True)
    documents = documents_from(texts)
    chunks = [documents[at : at + chunk] for at in range(0, len(documents), chunk)]
    notes = [folder / f"{number}.notes" for number in range(len(chunks))]
    verdicts = [folder / f"{number}.npy" for number in range(len(chunks))]
    for part, path in reversed(list(zip(chunks, notes, strict=True))):
        with path.open("wb") as file:
            for at in range(0, len(part), call):
                noted = step.notes(part[at : at + call], at)
                assert noted.dtype == step.dtype
                noted.tofile(file)
    scratch = folder / "scratch"
    scratch.mkdir()
    heard: list[tuple[int, int]] = []
    report = step.resolve(notes, verdicts, scratch, lambda done, whole: heard.append((done, whole)))
    assert heard == sorted(heard) and all(0 <= done <= whole for done, whole in heard)
    tally = Tally()
    kept = [
        document
        for part, verdict in zip(chunks, verdicts, strict=True)
        for document in step.apply(iter(part), np.load(verdict, allow_pickle=False), tally)
    ]
    return Outcome(kept, tally, report)
