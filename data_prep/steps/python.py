"""A step of one's own: a Python file with a function `step(documents, tally, **settings)`."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from data_prep.documents import Document, Tally
from data_prep.steps.step import InputFile, Step
from llmtrain.config.schema import Section
from llmtrain.errors import DataError, LlmtrainError


class Python(Section):
    """`file` defines `step`, which takes an iterator of documents and gives one; `settings` are its keywords.

    The file runs as a part of the build, with all its rights. A changed file makes another dataset.
    """

    file: InputFile
    settings: dict[str, Any] = Field(default={})

    @field_validator("file")
    @classmethod
    def _defines_a_step(cls, file: str) -> str:
        _load(file)
        return file


def make(settings: Python) -> Step:
    """The step with these settings. Raises DataError where the user's function fails, naming both places."""
    function = _load(settings.file)
    name = Path(settings.file).name

    def run(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        last = "before the first document"

        def followed() -> Iterator[Document]:
            nonlocal last
            for document in documents:
                last = f"at {document.id}"
                yield document

        def guarded() -> Iterator[Document]:
            given = function(followed(), tally, **settings.settings)
            if not hasattr(given, "__iter__"):
                raise DataError(f"step in {name} returns {_kind(given)}: it must yield documents")
            for document in given:
                if not isinstance(document, Document) or not isinstance(document.text, str):
                    raise DataError(
                        f"step in {name} yields {_kind(document)} {last}: it must yield documents"
                    )
                yield document

        try:
            yield from guarded()
        except (LlmtrainError, GeneratorExit):
            raise
        except Exception as error:
            raise DataError(f"step in {_where(error, settings.file)} fails {last}: {_said(error)}") from error

    return run


def _load(file: str) -> Callable[..., Any]:
    """The function `step` of a user's file. Raises ValueError when there is none."""
    path = Path(file).expanduser().absolute()  # as frames name it
    spec = importlib.util.spec_from_file_location(f"step_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError("is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"can't be imported: {_where(error, file)}: {_said(error)}") from None
    step = getattr(module, "step", None)
    if not callable(step):
        raise ValueError("defines no function step(documents, tally)")
    return step


def _where(error: BaseException, file: str) -> str:
    """`file:line` of the user's line that an error passed through last."""
    path = Path(file).expanduser().absolute()  # as frames name it
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path.name}:{error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path
    ]
    return f"{path.name}:{lines[-1]}" if lines else path.name


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {getattr(error, 'msg', None) or error}"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
