"""Length in characters."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.step import Step
from llmtrain.config.schema import Section


class Length(Section):
    """Keeps documents of `min_chars` to `max_chars` characters."""

    min_chars: int = Field(default=1, ge=1)
    max_chars: int | None = Field(default=None, ge=1)


def make(settings: Length) -> Step:
    """The step with these settings."""

    def keep(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < settings.min_chars:
                tally.drop("length: too short", document.id)
            elif settings.max_chars is not None and len(document.text) > settings.max_chars:
                tally.drop("length: too long", document.id)
            else:
                yield document

    return keep
