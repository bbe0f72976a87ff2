"""Names, places and what else Microsoft's presidio finds, by a spaCy model that is installed already.

    pip install presidio-analyzer, and a spaCy model; nothing is downloaded here

Orders of magnitude slower than `pii`, which finds what has a form of its own; this finds what needs a model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_prep.documents import Document, Tally
from data_prep.steps.pii_find import Span, apart, masked
from data_prep.steps.step import Step
from llmtrain.config.schema import Number, Section
from llmtrain.errors import DataError


class Presidio(Section):
    """What presidio finds is masked (<PERSON>), or the document dropped, or counted only.

    model     a spaCy model: an installed package, or a folder
    entities  names in presidio's list
    score     results below it are left alone
    """

    mode: Literal["mask", "drop", "report"] = "mask"
    language: str = "en"
    model: str = "en_core_web_sm"
    entities: tuple[str, ...] = Field(default=("PERSON", "LOCATION"), min_length=1)
    score: Number = Field(default=0.5, ge=0, le=1)


def make(settings: Presidio) -> Step:
    """The step with these settings. The model is loaded with the first document, where it is needed.

    Raises DataError when presidio or the model is missing.
    """
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise DataError(
            "steps: presidio is not installed: pip install presidio-analyzer, or take the step out"
        )
    if not Path(settings.model).is_dir() and importlib.util.find_spec(settings.model) is None:
        raise DataError(
            f"steps: presidio.model = {settings.model!r} is neither an installed spaCy model nor a folder: "
            "install it (nothing is downloaded during a build)"
        )
    loaded: list[Any] = []

    def clean(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            if not loaded:
                loaded.append(_analyzer(settings))
            spans = _found(loaded[0], document.text, settings)
            for span in spans:
                tally.find(f"presidio: {span.kind}")
            if spans and settings.mode == "drop":
                tally.drop(f"presidio: {spans[0].kind}", document.id)
                continue
            if spans and settings.mode == "mask":
                placeholders = {span.kind: f"<{span.kind}>" for span in spans}
                document = dataclasses.replace(document, text=masked(document.text, spans, placeholders))
            yield document

    return clean


def _analyzer(settings: Presidio) -> Any:
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": settings.language, "model_name": settings.model}]
    engine = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": models}
    ).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[settings.language])


def _found(analyzer: Any, text: str, settings: Presidio) -> list[Span]:
    """Where overlapping results disagree, the surest one counts."""
    results = analyzer.analyze(
        text=text,
        language=settings.language,
        entities=list(settings.entities),
        score_threshold=settings.score,
    )
    surest = sorted(results, key=lambda one: (-one.score, one.start, one.end, one.entity_type))
    return apart([Span(one.start, one.end, one.entity_type) for one in surest])
