"""Steps between reading and tokenizing, in the order of the corpus file.

A step takes documents and gives documents; what it leaves out it drops in the tally, with a reason that
begins with the step's name. To add one: its section in `corpus.py`, a function here, a line in `_MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_prep.corpus import LengthStep, StepSection
from data_prep.documents import Document, Tally

Step = Callable[[Iterator[Document], Tally], Iterator[Document]]


def make_steps(sections: Sequence[StepSection]) -> list[Step]:
    """The steps that a corpus asks for."""
    steps = []
    for section in sections:
        for name, make in _MAKERS.items():
            settings = getattr(section, name)
            if settings is not None:
                steps.append(make(settings))
    return steps


def apply_steps(steps: Sequence[Step], documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
    """All steps as one."""
    for step in steps:
        documents = step(documents, tally)
    return documents


def _length(settings: LengthStep) -> Step:
    def keep(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < settings.min_chars:
                tally.drop("length: too short", document.id)
            elif settings.max_chars is not None and len(document.text) > settings.max_chars:
                tally.drop("length: too long", document.id)
            else:
                yield document

    return keep


_MAKERS: dict[str, Callable[[Any], Step]] = {"length": _length}
