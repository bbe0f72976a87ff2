"""CSV and TSV: a header, then rows as wide as it; quoted fields may hold line ends (RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from data_prep.documents import Damage, Record, too_large
from data_prep.files import DamagedFileError, SourceFile, split_chunks
from data_prep.readers.columns import chosen_columns


def read_delimited(
    file: SourceFile, chunks: Iterator[bytes], delimiter: str, columns: Sequence[str], longest: int
) -> Iterator[Record]:
    """The rows of a file, numbered by the line they start in. Raises DataError for a column it lacks."""
    csv.field_size_limit(longest)
    rows = csv.reader(_lines(chunks, longest), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    chosen: list[tuple[str, int]] = []
    unseen = 0  # lines that were too long for csv to count them
    while True:
        number = rows.line_num + unseen + 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except DamagedFileError as damage:
            yield Record(Damage(str(damage), ""), file.name, number)
            return
        except csv.Error as error:
            unseen += "should return strings" in str(error)
            large = "should return strings" in str(error) or "field larger" in str(error)
            why = too_large(longest) if large else Damage("broken CSV row", str(error))
            yield Record(why, file.name, number)
            if header is None:
                return  # nothing that follows has a name
            continue
        if header is None:
            header = row
            names = chosen_columns(header, columns, str(file.path))
            chosen = [(name, header.index(name)) for name in names]
        else:
            yield Record(_content(row, len(header), chosen), file.name, number)
    if header is None:
        yield Record(Damage("empty", "no header"), file.name)


def _content(row: list[str], width: int, chosen: list[tuple[str, int]]) -> dict[str, str] | Damage:
    if len(row) != width:
        return Damage("ragged CSV row", f"{len(row)} fields where the header has {width}") if row else _BLANK
    content = {name: row[place] for name, place in chosen}
    if any(text != text.encode("utf-8", "replace").decode() for text in content.values()):
        return Damage("not UTF-8", "")
    return content


_BLANK = Damage("empty", "a blank line")


def _lines(chunks: Iterator[bytes], longest: int) -> Iterator[str]:
    """Lines with their ends. One that is too long is no line: csv answers None by an error for that row."""
    first = True
    for line in split_chunks(chunks, b"\n", longest):
        if line is None:
            yield None  # type: ignore[misc]
        else:
            text = line.decode("utf-8", "surrogateescape") + "\n"
            yield text.removeprefix("\ufeff") if first else text
        first = False
