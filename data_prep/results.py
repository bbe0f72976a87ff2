"""What a worker makes of a chunk in one pass: a folder of files, there whole under its name or not at all.

result.json                        counts, bytes and seconds, and the size of every other file
SPLIT.tokens  .mask  .documents    last pass: what goes to the shards, in the dataset's dtype
spill.zst  notes                   other passes: the documents that go on, what a step noted of them
rejected.jsonl.zst                 the documents that were left out, when they are to be kept
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import zstandard

from data_prep.documents import Document, Tally
from data_prep.output import sync_folder
from llmtrain.errors import DataError

RESULT = "result.json"
SPILL = "spill.zst"
NOTES = "notes"
REJECTED = "rejected.jsonl.zst"
_FACTS = json.JSONEncoder(ensure_ascii=False, default=str)  # a date of a table, say, as text
BY_WEIGHT = "left out by weight"

# A row of SPLIT.documents: what a document has; its place among all that its chunk gives, over the splits and
# in the order of the corpus (one place for all samples of a record of fine-tuning data); its language, as a
# place in the result's `languages`; whether it is in the last copy, which a weight such as 2.5 makes of half.
DOCUMENT = np.dtype(
    [("tokens", "<i8"), ("bytes", "<i8"), ("place", "<u4"), ("language", "<u2"), ("last_copy", "u1")]
)


@dataclass
class Result:
    """The counts of one chunk in one pass; `going_on` documents were spilled or tokenized."""

    tally: Tally = field(default_factory=Tally)
    coming_in: int = 0  # documents read from the pass before; in the first pass records, which tally counts
    going_on: int = 0
    read_bytes: int = 0
    parsed_bytes: int = 0  # of the text of all documents that were read, before any step
    text_bytes: int = 0
    tokens: int = 0
    languages: list[str] = field(default_factory=list)  # that documents are in, the first seen first
    seconds: dict[str, float] = field(default_factory=dict)

    def written(self, unit: Literal["documents", "bytes", "tokens"]) -> int:
        """How much of something goes to the shards."""
        return {"documents": self.going_on, "bytes": self.text_bytes, "tokens": self.tokens}[unit]


class ResultWriter:
    """Collects the files of a result in `scratch`; `publish` gives it the name `final`."""

    def __init__(self, scratch: Path, final: Path):
        self.scratch = scratch
        self.final = final
        self.files: dict[str, BinaryIO] = {}
        self.packers: dict[str, Any] = {}
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    def append(self, name: str, raw: bytes) -> None:
        """Adds to the file of that name."""
        if name not in self.files:
            self.files[name] = open(self.scratch / name, "wb")  # noqa: SIM115 - closed by publish or discard
        self.files[name].write(raw)

    def append_packed(self, name: str, raw: bytes) -> None:
        """Adds to the file of that name, as zstd."""
        if name not in self.packers:
            self.packers[name] = zstandard.ZstdCompressor(level=1).compressobj()
        self.append(name, self.packers[name].compress(raw))

    def publish(self, result: Result) -> None:
        """All that was added is on disk and is the chunk's result, unless another was first."""
        for name, packer in self.packers.items():
            self.append(name, packer.flush())
        for file in self.files.values():
            _settle(file)
        sizes = {name: (self.scratch / name).stat().st_size for name in self.files}
        with open(self.scratch / RESULT, "wb") as file:
            file.write(json.dumps(asdict(result) | {"sizes": sizes}).encode())
            _settle(file)
        sync_folder(self.scratch)
        try:
            self.scratch.rename(self.final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            self.discard()
        sync_folder(self.final.parent)

    def discard(self) -> None:
        """Nothing of it is kept."""
        for file in self.files.values():
            with suppress(OSError):  # a full disk has no room for what is still to be written
                file.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def read_result(folder: Path) -> Result:
    """The counts of a chunk's result."""
    content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    del content["sizes"]
    return Result(**content | {"tally": Tally(**content["tally"])})


def is_whole(folder: Path) -> bool:
    """Whether all files of a result have their sizes: a machine that lost its power may have lost some."""
    try:
        sizes = json.loads((folder / RESULT).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def to_spill(document: Document) -> bytes:
    """A document as it is spilled: a line of JSON, and the text, which is not escaped for it."""
    text = document.text.encode("utf-8", "surrogatepass")
    facts = _FACTS.encode([len(text), document.file, document.number, document.meta])
    return facts.encode("utf-8", "surrogatepass") + b"\n" + text


def read_spill(path: Path) -> Iterator[Document]:
    """The documents that a pass let through, in their order."""
    if not path.exists():  # none
        return
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
        rows = io.BufferedReader(unpacked, 1 << 20)
        while facts := rows.readline():
            size, *place = json.loads(facts.decode("utf-8", "surrogatepass"))
            text = rows.read(size)
            if len(text) != size:
                raise DataError(f"{path} ends within a document: remove it with its folder, and build again")
            yield Document(text.decode("utf-8", "surrogatepass"), *place)
