"""Which steps there are, under which key of the corpus file, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import model_validator

from data_prep.documents import Document, Tally
from data_prep.steps import dedup, length, minhash
from data_prep.steps.dedup import Dedup
from data_prep.steps.length import Length
from data_prep.steps.minhash import MinHash
from data_prep.steps.step import CorpusWideStep, Step
from llmtrain.config.schema import Section


class StepSection(Section):
    """One step, named by its key: `- length: {min_chars: 200}`."""

    length: Length | None = None
    dedup: Dedup | None = None
    minhash: MinHash | None = None

    @model_validator(mode="after")
    def _one_of(self) -> StepSection:
        if len(self.named) != 1:
            raise ValueError(f"name one step: {', '.join(type(self).model_fields)}")
        return self

    @property
    def named(self) -> dict[str, Any]:
        """The settings given, by the step's name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


_MAKERS: dict[str, Callable[[Any], Step | CorpusWideStep]] = {
    "length": length.make,
    "dedup": dedup.make,
    "minhash": minhash.make,
}


def make_steps(sections: Sequence[StepSection]) -> list[Step | CorpusWideStep]:
    """The steps that a corpus asks for, in its order."""
    return [_MAKERS[name](settings) for section in sections for name, settings in section.named.items()]


def apply_steps(
    steps: Sequence[Step | CorpusWideStep], documents: Iterator[Document], tally: Tally
) -> Iterator[Document]:
    """All steps as one; corpus-wide ones need what is noted of every document first."""
    for step in steps:
        assert not isinstance(step, CorpusWideStep), f"{step.name} in one pass"
        documents = step(documents, tally)
    return documents
