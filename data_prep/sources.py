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
from data_prep.layouts import is_saved, of_split
from data_prep.packings import OF_TAR, DamagedFileError, named_packing, packing_of
from data_prep.readers.columns import chosen_columns
from data_prep.readers.delimited import read_delimited
from data_prep.readers.html import installed
from data_prep.readers.json_values import read_json
from data_prep.readers.tables import read_arrow, read_parquet, within
from data_prep.readers.tar import read_tar
from data_prep.readers.warc import read_warc
from llmtrain.config.hub_names import looks_like_a_path, no_such_path
from llmtrain.data.pointers import FETCH, POINTER, points
from llmtrain.errors import DataError

Advance = Callable[[int], None]  # hears how many more bytes of the sources were read
_FORMATS = {
    **dict.fromkeys((".jsonl", ".jsonlines", ".ndjson", ".ldjson", ".jl"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".tar": "tar",
    ".warc": "warc",
    ".wet": "warc",
}
WITHOUT_FIELDS = ("text", "html", "warc")
NOTES_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
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
    left_out: tuple[str, ...] = ()  # files of a folder that hold no records

    @property
    def bytes(self) -> int:
        """Size of its files as they lie; 0 when nothing is known."""
        return sum(file.bytes for file in self.files)

    @property
    def has_pages(self) -> bool:
        """Whether some of its files are web pages, whose parsing is what takes the time."""
        return any(_format_of(self.section, file.path) in ("html", "warc") for file in self.files)

    @property
    def file_is_document(self) -> bool:
        """Whether each of its files is one document, which has the file's name."""
        whole = ("html",) if self.section.separator is not None else ("html", "text")
        return all(_format_of(self.section, file.path) in whole for file in self.files)


def settle(section: SourceSection, number: int, advance: Advance) -> Source:
    """Finds a source's files and hashes them. Raises DataError when there is nothing to read."""
    field = f"sources.{number}"
    if section.hub is not None and not Path(section.hub).expanduser().is_dir():
        revision = _hub_revision(section, field)
        identity = json.dumps([section.hub, section.subset, section.split or "train", revision])
        return Source(section, number, (), hashlib.sha256(identity.encode()).hexdigest(), revision)
    files, left_out = _files_of(section, field)
    _refuse_unreadable(section, files, field)
    _refuse_without_effect(section, files, field)
    cut_bytes = chunk_bytes(sum(file.bytes for file in files))
    surveyed = survey(files, lambda file: _separator_of(section, file), cut_bytes, advance)
    _refuse_pointers(section, surveyed, field)
    return Source(section, number, tuple(surveyed), content_digest(surveyed), left_out=left_out)


def _with_records(
    section: SourceSection, files: list[SourceFile]
) -> tuple[list[SourceFile], tuple[str, ...]]:
    """The files of fine-tuning data that hold records, if any do, and the names of the others: a data set's
    README, its licence, and what `datasets` notes beside it."""
    if not isinstance(section.field, dict) or section.format != "auto":
        return files, ()
    others = [
        file
        for file in files
        if _format_of(section, file.path) in WITHOUT_FIELDS or file.path.name in NOTES_OF_DATASETS
    ]
    if len(others) == len(files):
        return files, ()
    return [file for file in files if file not in others], tuple(file.name for file in others)


def _refuse_pointers(section: SourceSection, files: list[SourceFile], field: str) -> None:
    """Raises DataError when files of data are pointers of git-lfs; among files of text each is bad input."""
    found = [file for file in files if file.really == POINTER and _format_of(section, file.path) != "text"]
    if found:
        raise DataError(
            f"{field}: {len(found)} of {len(files)} files are {POINTER}s, not the files (such as "
            f"{found[0].path}): {FETCH}"
        )


def _files_of(section: SourceSection, field: str) -> tuple[list[SourceFile], tuple[str, ...]]:
    """The files that are read of a `path`, `stdlib` or Hub dataset that lies here; the names of others."""
    if section.stdlib:
        return list_files(section, f"{field}.stdlib"), ()
    place = f"{field}.{'hub' if section.hub else 'path'}"
    where = section if section.hub is None else section.model_copy(update={"path": section.hub, "hub": None})
    if section.hub is not None and section.revision is not None:
        raise DataError(f"{field}.revision: {section.hub} is a folder here, which has none: leave it out")
    if section.hub is not None and is_saved(Path(section.hub).expanduser()):
        raise DataError(f"{place} = {section.hub!r} was written by `save_to_disk`: give it by `path`")
    files, left_out = _with_records(section, list_files(where, place))
    formats = [(file, _format_of(section, file.path)) for file in files]
    return of_split(formats, section, f"{place} = {section.hub or section.path!r}"), left_out


def _refuse_unreadable(section: SourceSection, files: list[SourceFile], field: str) -> None:
    """Raises DataError when a file needs an extra that is not installed, or has no fields and needs some."""
    for file in files:
        form = _format_of(section, file.path)
        if isinstance(section.field, dict) and form in WITHOUT_FIELDS:
            raise DataError(
                f"{field}: {file.path} is {form}, and fine-tuning data has fields "
                f"({', '.join(section.field)}): give .jsonl, .json, .parquet, .arrow, "
                ".csv or a Hub dataset, or name the format"
            )
        if (form == "html" or (form == "warc" and ".wet" not in file.path.suffixes)) and not installed():
            raise DataError(
                f"{field}: {file.path} is read by trafilatura, which is not installed: "
                "pip install trafilatura lxml_html_clean, or set format: text to keep the markup"
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
    form = _format_of(section, file.path)
    if form not in ("jsonl", "text") or packing_of(file.path) is not None:
        return None
    if form == "jsonl":
        return b"\n"
    return section.separator.encode() if section.separator is not None else None


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
    if form == "text" and points(file.path):
        yield "text", Record(Damage(POINTER, FETCH), file.name)
        return
    chunks = read_chunks(file.path, advance, file.start, file.end)
    if form in ("parquet", "arrow"):
        if packing_of(file.path) is not None:
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
    if path.suffix.lower() in OF_TAR:
        return "tar"
    suffix = Path(path.stem).suffix if named_packing(path) is not None else path.suffix
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
            os.path.expanduser(section.hub or ""),
            section.subset,
            split=section.split or "train",
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

    if looks_like_a_path(section.hub or ""):
        raise DataError(f"{field}.hub = {section.hub!r}: {no_such_path(section.hub or '', 'dataset')}")
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
