"""The two kinds of step: one that judges documents as they pass, one that must see the whole corpus first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import AfterValidator, PlainSerializer, SerializationInfo

from data_prep.documents import Document, Tally
from llmtrain.data.manifest import file_sha256

Step = Callable[[Iterator[Document], Tally], Iterator[Document]]

BY_CONTENT = {"files": "content"}  # context of a dump that says what decides a dataset


def _readable(name: str) -> str:
    try:
        with open(Path(name).expanduser(), "rb"):
            return name
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror}); give the path of a file") from None


def _by_content(name: str, info: SerializationInfo) -> Any:
    return {"sha256": file_sha256(Path(name).expanduser())} if info.context == BY_CONTENT else name


# A file that a step reads. What stands in it decides the dataset, not what it is called.
InputFile = Annotated[str, AfterValidator(_readable), PlainSerializer(_by_content)]


@runtime_checkable
class CorpusWideStep(Protocol):
    """A step in two passes: `notes` of every document, `resolve` over all of them, then `apply`.

    A corpus is worked on in chunks, in any order, by any number of processes. What is decided depends on
    the chunks' numbers and the places of documents in them, never on who was first.
    """

    name: str
    dtype: np.dtype  # of a note; its first field is `document`, the place in the chunk (u4, from 0)

    def notes(self, documents: Sequence[Document], first: int) -> np.ndarray:
        """What is remembered of documents `first`, `first` + 1, … of a chunk, as [notes] of `dtype`."""

    def resolve(
        self,
        notes: Sequence[Path],
        verdicts: Sequence[Path],
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """Reads each chunk's notes (raw `dtype`), writes each chunk's verdict, in memory that is bounded.

        notes     one file per chunk, in the order of the corpus; earlier documents have precedence
        verdicts  one `.npy` file per chunk to write, of whatever array `apply` understands
        scratch   an empty folder for sorted runs and the like
        progress  hears (done, in all)
        Returns what the report shows (counts, clusters). The same notes give the same bytes.
        """

    def apply(self, documents: Iterator[Document], verdict: np.ndarray, tally: Tally) -> Iterator[Document]:
        """The documents of a chunk, in the order they were noted, without what was decided against."""
