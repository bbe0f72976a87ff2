"""Sources as streams of records, in an order that depends on nothing but their content.

The one place that imports `datasets`: parquet files and Hub datasets come through it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.corpus import SourceSection
from data_prep.documents import Damage, Encoding, Record
from data_prep.files import (
    DamagedFileError,
    SourceFile,
    content_digest,
    join_chunks,
    list_files,
    read_chunks,
    split_chunks,
    survey,
)
from llmtrain.errors import DataError

Advance = Callable[[int], None]  # hears how many more bytes of the sources were read
_PACKED = (".gz", ".zst")
LEAST_CHUNK_BYTES = 1 << 20
MOST_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Source:
    """A source whose content is settled: its files, or the revision of a Hub dataset."""

    section: SourceSection
    number: int  # its place in the corpus file
    files: tuple[SourceFile, ...]
    digest: str
    revision: str | None = None

    @property
    def bytes(self) -> int:
        """Size of its files as they lie; 0 when nothing is known."""
        return sum(file.bytes for file in self.files)


def settle(section: SourceSection, number: int, advance: Advance) -> Source:
    """Finds a source's files and hashes them. Raises DataError when there is nothing to read."""
    field = f"sources.{number}"
    if section.hub is not None and not Path(section.hub).is_dir():
        revision = _hub_revision(section, field)
        identity = json.dumps([section.hub, section.subset, section.split, revision])
        return Source(section, number, (), hashlib.sha256(identity.encode()).hexdigest(), revision)
    where = section if section.hub is None else section.model_copy(update={"path": section.hub, "hub": None})
    files = list_files(where, f"{field}.{'stdlib' if section.stdlib else 'hub' if section.hub else 'path'}")
    cut_bytes = chunk_bytes(sum(file.bytes for file in files))
    surveyed = survey(files, lambda file: _separator_of(section, file), cut_bytes, advance)
    return Source(section, number, tuple(surveyed), content_digest(surveyed))


def chunk_bytes(total: int) -> int:
    """How much of a source of so many bytes a worker takes at a time: enough parts for many workers."""
    return max(min(total // 64, MOST_CHUNK_BYTES), LEAST_CHUNK_BYTES, total >> 16)


def _separator_of(section: SourceSection, file: SourceFile) -> bytes | None:
    """What ends a record in a file that can be read from any record on; None for any other file."""
    if file.path.suffix in _PACKED:
        return None
    form = _format_of(section, file.path)
    if form == "jsonl":
        return b"\n"
    return section.separator.encode() if form == "text" and section.separator is not None else None


def read_source(
    source: Source,
    longest: int,
    advance: Advance,
    files: Iterable[SourceFile] | None = None,
) -> Iterator[tuple[Encoding, Record]]:
    """The records of a source and how each is encoded; of `files`, or parts of files, only when given.

    Records of more than `longest` bytes, and what can't be read of a damaged file, come as `Damage`.
    """
    records = _read_all(source, longest, advance, files)
    for number, item in enumerate(records):
        if source.section.limit is not None and number >= source.section.limit:
            return
        yield item


def _read_all(
    source: Source, longest: int, advance: Advance, files: Iterable[SourceFile] | None
) -> Iterator[tuple[Encoding, Record]]:
    if source.section.hub is not None:
        yield from (("value", record) for record in _read_hub(source))
        return
    for file in source.files if files is None else files:
        form = _format_of(source.section, file.path)
        if form == "parquet":
            yield from (("value", record) for record in _read_parquet(source.section, file))
            advance(file.bytes)
        elif form == "jsonl":
            yield from (("json", record) for record in _read_pieces(file, b"\n", longest, advance))
        elif source.section.separator is not None:
            separator = source.section.separator.encode()
            yield from (("text", record) for record in _read_pieces(file, separator, longest, advance))
        else:
            yield "text", _read_whole(file, longest, advance)


def _format_of(section: SourceSection, path: Path) -> str:
    if section.format != "auto":
        return section.format
    suffix = Path(path.stem).suffix if path.suffix in _PACKED else path.suffix
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffix.lower(), "text")


def _too_large(longest: int) -> Damage:
    return Damage("too large", f"more than max_document_bytes = {longest}")


def _read_whole(file: SourceFile, longest: int, advance: Advance) -> Record:
    try:
        content = join_chunks(read_chunks(file.path, advance), longest)
    except DamagedFileError as damage:
        return Record(Damage(str(damage), ""), file.name)
    return Record(_too_large(longest) if content is None else content, file.name)


def _read_pieces(file: SourceFile, separator: bytes, longest: int, advance: Advance) -> Iterator[Record]:
    number = file.first
    try:
        raw = read_chunks(file.path, advance, file.start, file.end)
        for piece in split_chunks(raw, separator, longest):
            number += 1
            yield Record(_too_large(longest) if piece is None else piece, file.name, number)
    except DamagedFileError as damage:
        yield Record(Damage(str(damage), ""), file.name, number + 1)


def _read_parquet(section: SourceSection, file: SourceFile) -> Iterator[Record]:
    number = 0
    try:
        rows = _datasets().load_dataset(
            "parquet", data_files={"train": [str(file.path)]}, split="train", streaming=True
        )
        names = rows.column_names
        if names is None or section.field in names:
            for row in rows.select_columns([section.field]):
                number += 1
                yield Record(row[section.field], file.name, number)
            return
    except Exception as error:  # pyarrow and datasets raise many kinds for a file that is no parquet
        yield Record(Damage("damaged parquet file", str(error)), file.name, number + 1)
        return
    raise DataError(
        f"{file.path} has no column '{section.field}' (it has {', '.join(names)}): set sources.….field"
    )


def _read_hub(source: Source) -> Iterator[Record]:
    section = source.section
    name = section.label
    try:
        rows = _datasets().load_dataset(
            section.hub, section.subset, split=section.split, revision=source.revision, streaming=True
        )
    except Exception as error:  # each of many kinds means the same to the user
        raise DataError(f"sources.{source.number}.hub = {name!r} can't be opened: {error}") from error
    names = rows.column_names
    if names is not None and section.field not in names:
        raise DataError(
            f"sources.{source.number}.hub = {name!r} has no column '{section.field}' "
            f"(it has {', '.join(names)}): set sources.{source.number}.field"
        )
    for number, row in enumerate(rows, start=1):
        yield Record(row.get(section.field), name, number)


def _hub_revision(section: SourceSection, field: str) -> str:
    """The commit that a Hub dataset's revision stands for now, so that the build reads only that."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(section.hub or "", revision=section.revision).sha
    except Exception as error:
        raise DataError(f"{field}.hub = {section.hub!r} can't be reached on the Hub: {error}") from error
    assert commit is not None, "the Hub names a commit for every revision"
    return commit


def _datasets() -> Any:
    """`datasets`, quiet: its progress bars and torch have no place here."""
    os.environ.setdefault("USE_TORCH", "0")
    import datasets

    datasets.disable_progress_bars()
    return datasets
