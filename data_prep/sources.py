"""Sources as streams of records, in an order that depends on nothing but their content.

The one place that imports `datasets`: Hub datasets come through it. Files are read by `readers`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.corpus import SourceSection
from data_prep.documents import Damage, Encoding, Record, too_large
from data_prep.files import (
    SourceFile,
    content_digest,
    join_chunks,
    list_files,
    read_chunks,
    split_chunks,
    survey,
)
from data_prep.packings import PACKINGS, DamagedFileError
from data_prep.readers.columns import chosen_columns
from data_prep.readers.delimited import read_delimited
from data_prep.readers.html import installed
from data_prep.readers.json_values import read_json
from data_prep.readers.tables import read_arrow, read_parquet, within
from data_prep.readers.tar import read_tar
from data_prep.readers.warc import read_warc
from llmtrain.errors import DataError

Advance = Callable[[int], None]  # hears how many more bytes of the sources were read
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".tar": "tar",
    ".warc": "warc",
    ".wet": "warc",
}
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
    _refuse_unreadable(section, files, field)
    _refuse_without_effect(section, files, field)
    cut_bytes = chunk_bytes(sum(file.bytes for file in files))
    surveyed = survey(files, lambda file: _separator_of(section, file), cut_bytes, advance)
    return Source(section, number, tuple(surveyed), content_digest(surveyed))


def _refuse_unreadable(section: SourceSection, files: list[SourceFile], field: str) -> None:
    """Raises DataError when a file needs an extra that is not installed, or has no fields and needs some."""
    for file in files:
        form = _format_of(section, file.path)
        if isinstance(section.field, dict) and form in ("text", "html", "warc"):
            raise DataError(
                f"{field}: {file.path} is {form}, and fine-tuning data has fields "
                f"({', '.join(section.field)}): give .jsonl, .json, .parquet, .arrow, "
                ".csv or a Hub dataset, or name the format"
            )
        if (form == "html" or (form == "warc" and ".wet" not in file.path.suffixes)) and not installed():
            raise DataError(
                f"{field}: {file.path} is read by trafilatura, which is not installed: "
                "pip install 'llmtrain[html]', or set format: text to keep the markup"
            )


def _refuse_without_effect(section: SourceSection, files: list[SourceFile], field: str) -> None:
    """Raises DataError when the source sets what means nothing for any of its files."""
    forms = {_format_of(section, file.path) for file in files}
    shown = ", ".join(sorted(forms))
    if forms <= {"text", "html"}:
        for key, value in (("field", section.field), ("meta", section.meta)):
            if value != SourceSection.model_fields[key].default:
                raise DataError(
                    f"{field}.{key} = {value!r}: {section.label} is {shown}, which has no fields: "
                    f"leave {key} out, or name the format"
                )
    if section.separator is not None and "text" not in forms:
        raise DataError(
            f"{field}.separator = {section.separator!r}: {section.label} is {shown}, and only text is cut: "
            "leave separator out, or set format: text"
        )


def chunk_bytes(total: int) -> int:
    """How much of a source of so many bytes a worker takes at a time: enough parts for many workers."""
    return max(min(total // 64, MOST_CHUNK_BYTES), LEAST_CHUNK_BYTES, total >> 16)


def _separator_of(section: SourceSection, file: SourceFile) -> bytes | None:
    """What ends a record in a file that can be read from any record on; None for any other file."""
    if file.path.suffix in PACKINGS:
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
    limit = source.section.limit
    records = _read_all(source, longest, advance, files)
    yield from islice(records, limit) if isinstance(limit, int) else records


def _read_all(
    source: Source, longest: int, advance: Advance, files: Iterable[SourceFile] | None
) -> Iterator[tuple[Encoding, Record]]:
    if source.section.hub is not None:
        yield from _encoded("row", _read_hub(source, longest))
        return
    for file in source.files if files is None else files:
        yield from _read_file(source.section, file, longest, advance)


def _read_file(
    section: SourceSection, file: SourceFile, longest: int, advance: Advance
) -> Iterator[tuple[Encoding, Record]]:
    """The records of one file, or of a part of one, by its format."""
    form = _format_of(section, file.path)
    chunks = read_chunks(file.path, advance, file.start, file.end)
    if form in ("parquet", "arrow"):
        if file.path.suffix in PACKINGS:
            yield "row", Record(Damage(f"packed {form} file", "unpack it"), file.name)
        else:
            read = read_parquet if form == "parquet" else read_arrow
            yield from _encoded("row", read(file, section.columns, longest))
        advance(file.bytes)
    elif form in ("csv", "tsv"):
        delimiter = "," if form == "csv" else "\t"
        yield from _encoded("row", read_delimited(file, chunks, delimiter, section.columns, longest))
    elif form == "jsonl":
        yield from _encoded("json", _read_pieces(file, chunks, b"\n", longest))
    elif form == "json":
        yield from _encoded("json", read_json(file, chunks, longest))
    elif form == "tar":
        yield from _encoded("sample", read_tar(file, chunks, section.columns, longest))
    elif form == "warc":
        yield from read_warc(file, chunks, longest)
    elif form == "text" and section.separator is not None:
        yield from _encoded("text", _read_pieces(file, chunks, section.separator.encode(), longest))
    else:
        yield ("html" if form == "html" else "text"), _read_whole(file, chunks, longest)


def _encoded(encoding: Encoding, records: Iterator[Record]) -> Iterator[tuple[Encoding, Record]]:
    return ((encoding, record) for record in records)


def _format_of(section: SourceSection, path: Path) -> str:
    if section.format != "auto":
        return section.format
    suffix = Path(path.stem).suffix if path.suffix in PACKINGS else path.suffix
    return _FORMATS.get(suffix.lower(), "text")


def _read_whole(file: SourceFile, chunks: Iterator[bytes], longest: int) -> Record:
    try:
        content = join_chunks(chunks, longest)
    except DamagedFileError as damage:
        return Record(Damage(str(damage), ""), file.name)
    return Record(too_large(longest) if content is None else content, file.name)


def _read_pieces(
    file: SourceFile, chunks: Iterator[bytes], separator: bytes, longest: int
) -> Iterator[Record]:
    number = file.first
    try:
        for piece in split_chunks(chunks, separator, longest):
            number += 1
            yield Record(too_large(longest) if piece is None else piece, file.name, number)
    except DamagedFileError as damage:
        yield Record(Damage(str(damage), ""), file.name, number + 1)


def _read_hub(source: Source, longest: int) -> Iterator[Record]:
    section = source.section
    name = section.label
    field = f"sources.{source.number}.hub = {name!r}"
    try:
        rows = _datasets().load_dataset(
            section.hub,
            section.subset,
            split=section.split,
            revision=source.revision,
            streaming=section.streaming,
        )
    except Exception as error:  # each of many kinds means the same to the user
        raise DataError(f"{field} can't be opened: {error}") from error
    if rows.column_names is not None:  # other columns, pictures perhaps, are not even decoded
        rows = rows.select_columns(chosen_columns(rows.column_names, section.columns, field))
    for number, row in enumerate(rows, start=1):
        yield Record(within(row, longest), name, number)


def _hub_revision(section: SourceSection, field: str) -> str:
    """The commit that a Hub dataset's revision stands for now, so that the build reads only that."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(section.hub or "", revision=section.revision).sha
    except Exception as error:
        raise DataError(f"{field}.hub = {section.hub!r} can't be reached on the Hub: {error}") from error
    if commit is None:
        raise DataError(f"{field}.hub = {section.hub!r}: the Hub names no commit for its revision")
    return commit


def _datasets() -> Any:
    """`datasets`, quiet: its progress bars and torch have no place here."""
    os.environ.setdefault("USE_TORCH", "0")
    import datasets

    datasets.disable_progress_bars()
    return datasets
