"""A corpus cut into chunks, which workers take one at a time. What is in a chunk depends on content alone.

Small files are grouped and large files of lines are cut; a packed file, a table and a Hub dataset are read
from their start, so such a file is never cut and such a dataset is one chunk. A source with a limit on
records is one chunk too: which records it has is known only to who reads them in order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.files import SourceFile
from data_prep.sources import Source, chunk_bytes


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one source: of these files and parts of files, or all when there are none."""

    number: int
    source: int
    bytes: int  # to be read, 0 when that is unknown
    files: tuple[SourceFile, ...]


def cut(sources: Sequence[Source]) -> Iterator[Chunk]:
    """All chunks of a corpus in its order, numbered from 0."""
    number = 0
    for source in sources:
        for files in _groups(source):
            size = sum(map(_size, files)) if files else source.bytes
            yield Chunk(number, source.number, size, files)
            number += 1


def _groups(source: Source) -> Iterator[tuple[SourceFile, ...]]:
    if source.section.hub is not None:
        yield ()
        return
    if isinstance(source.section.limit, int):
        yield source.files
        return
    enough = chunk_bytes(source.bytes)
    group: list[SourceFile] = []
    size = 0
    for file in source.files:
        for part in _parts(file):
            group.append(part)
            size += _size(part)
            if size >= enough:
                yield tuple(group)
                group, size = [], 0
    if group:
        yield tuple(group)


def _parts(file: SourceFile) -> Iterator[SourceFile]:
    starts = [(0, 0), *file.cuts]
    ends: list[int | None] = [at for at, _ in file.cuts]
    for (start, first), end in zip(starts, [*ends, None], strict=True):
        yield replace(file, cuts=(), start=start, end=end, first=first)


def _size(file: SourceFile) -> int:
    return (file.bytes if file.end is None else file.end) - file.start


def write_chunks(path: Path, chunks: Iterable[Chunk]) -> tuple[int, str]:
    """Writes a line per chunk; how many there are, and the sha256 of what is in each."""
    count, identity = 0, hashlib.sha256()
    with open(path, "w", encoding="ascii") as file:
        for chunk in chunks:
            parts = [[each.name, each.sha256, each.start, each.end, each.first] for each in chunk.files]
            identity.update(json.dumps([chunk.source, parts]).encode())
            files = [
                [str(each.path), each.mtime_ns, each.bytes, *part]
                for each, part in zip(chunk.files, parts, strict=True)
            ]
            file.write(json.dumps([chunk.source, chunk.bytes, files]) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count, identity.hexdigest()


class ChunkList(Sequence[Chunk]):
    """The chunks in a file of `write_chunks`, each read when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        ends, at = [0], 0
        with open(path, "rb") as file:
            for line in file:
                at += len(line)
                ends.append(at)
        self.ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> Chunk:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        with open(self.path, "rb") as file:
            file.seek(int(self.ends[number]))
            source, size, files = json.loads(file.readline())
        return Chunk(number, source, size, tuple(map(_file, files)))


def _file(fields: list) -> SourceFile:
    path, mtime_ns, size, name, sha256, start, end, first = fields
    return SourceFile(Path(path), name, size, sha256, (), start, end, first, mtime_ns)
