"""Which steps there are, under which key of the corpus file, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from data_prep.documents import Document, Tally
from data_prep.steps import (
    c4,
    decontaminate,
    dedup,
    fineweb,
    gopher_quality,
    gopher_repetition,
    language,
    length,
    minhash,
    normalize,
    pii,
    presidio,
    python,
    urls,
)
from data_prep.steps.c4 import C4
from data_prep.steps.decontaminate import Decontaminate
from data_prep.steps.dedup import Dedup
from data_prep.steps.fineweb import FineWeb
from data_prep.steps.gopher_quality import GopherQuality
from data_prep.steps.gopher_repetition import GopherRepetition
from data_prep.steps.language import Language
from data_prep.steps.length import Length
from data_prep.steps.minhash import MinHash
from data_prep.steps.normalize import Normalize
from data_prep.steps.pii import Pii
from data_prep.steps.presidio import Presidio
from data_prep.steps.python import Python
from data_prep.steps.step import CorpusWideStep, Step
from data_prep.steps.urls import Urls
from llmtrain.config.schema import Section


class StepSection(Section):
    """One step, named by its key: `- length: {min_chars: 200}`."""

    length: Length | None = None
    urls: Urls | None = None
    normalize: Normalize | None = None
    language: Language | None = None
    gopher_repetition: GopherRepetition | None = None
    gopher_quality: GopherQuality | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None
    decontaminate: Decontaminate | None = None
    python: Python | None = None
    dedup: Dedup | None = None
    minhash: MinHash | None = None
    pii: Pii | None = None
    presidio: Presidio | None = None

    @model_validator(mode="after")
    def _one_of(self) -> StepSection:
        if len(self.named) != 1:
            raise ValueError(f"name one step: {', '.join(type(self).model_fields)}")
        return self

    @model_serializer(mode="wrap")
    def _only_the_named(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A step that a later version brings changes nothing in what is written of this one."""
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def named(self) -> dict[str, Any]:
        """The settings given, by the step's name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


_MAKERS: dict[str, Callable[[Any], Step | CorpusWideStep]] = {
    "length": length.make,
    "urls": urls.make,
    "normalize": normalize.make,
    "language": language.make,
    "gopher_repetition": gopher_repetition.make,
    "gopher_quality": gopher_quality.make,
    "c4": c4.make,
    "fineweb": fineweb.make,
    "decontaminate": decontaminate.make,
    "python": python.make,
    "dedup": dedup.make,
    "minhash": minhash.make,
    "pii": pii.make,
    "presidio": presidio.make,
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
