"""Rows of Parquet files and of Arrow IPC files and streams, a few at a time.

pyarrow itself, not `datasets`: that one takes seconds to import and decodes every column of a row, where
this asks for the named columns only and holds one batch of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.documents import Damage, Record, too_large
from data_prep.files import SourceFile
from data_prep.readers.columns import chosen_columns
from llmtrain.errors import DataError

BATCH_ROWS = 256
BATCH_BYTES = 4 << 20  # of the encoded columns, on average
ARROW_MAGIC = b"ARROW1"
Batches = Callable[[Path, Sequence[str]], Iterator[Any]]


def read_parquet(file: SourceFile, columns: Sequence[str], longest: int) -> Iterator[Record]:
    """The rows of a Parquet file. Raises DataError when it lacks one of `columns`."""
    return _read(file, columns, longest, "parquet", _parquet_batches)


def read_arrow(file: SourceFile, columns: Sequence[str], longest: int) -> Iterator[Record]:
    """The rows of an Arrow file, or of a stream in a file, such as those in the cache of `datasets`."""
    return _read(file, columns, longest, "arrow", _arrow_batches)


def _read(
    file: SourceFile, columns: Sequence[str], longest: int, kind: str, batches: Batches
) -> Iterator[Record]:
    number = 0
    try:
        for batch in batches(file.path, columns):
            for row in _rows(batch):
                number += 1
                yield Record(within(row, longest), file.name, number)
    except DataError:
        raise
    except OSError as error:
        reason = f"unreadable file ({os.strerror(error.errno)})" if error.errno else f"damaged {kind} file"
        yield Record(Damage(reason, str(error)), file.name, number + 1)
    except Exception as error:  # pyarrow raises many kinds for a file that is none of its own
        yield Record(Damage(f"damaged {kind} file", str(error)), file.name, number + 1)


def within(row: Mapping[str, Any], longest: int) -> Mapping[str, Any] | Damage:
    """The row, unless one of its values has more than `longest` bytes."""
    for value in row.values():
        if isinstance(value, str | bytes) and (
            len(value) > longest
            or (isinstance(value, str) and 4 * len(value) > longest and len(_utf8(value)) > longest)
        ):
            return too_large(longest)
    return row


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _parquet_batches(path: Path, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    options = {"pre_buffer": False, "buffer_size": 1 << 20}
    # pages that have a checksum are checked; by their writer's choice many have none
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, **options) as table:
        columns = chosen_columns(table.schema_arrow.names, wanted, str(path))
        groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
        for number, group in enumerate(groups):
            average = max(1, group.total_byte_size // max(1, group.num_rows))
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // average))
            yield from table.iter_batches(rows, [number], columns, use_threads=False)


def _arrow_batches(path: Path, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as mapped:
        if mapped.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
            table = pyarrow.ipc.open_file(mapped)
            whole = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            mapped.seek(0)
            table = pyarrow.ipc.open_stream(mapped)
            whole = iter(table)
        columns = chosen_columns(table.schema.names, wanted, str(path))
        for batch in whole:
            chosen = batch.select(columns)
            chosen.validate(full=True)  # what its offsets point at lies inside the file
            for start in range(0, chosen.num_rows, BATCH_ROWS):
                yield chosen.slice(start, BATCH_ROWS)


def _rows(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Rows as dicts; a batch with text that is no UTF-8 is taken apart, so that only its row is bad."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for start in range(batch.num_rows):
            row = batch.slice(start, 1)
            yield {name: _value(row.column(name)) for name in row.schema.names}


def _value(column: Any) -> Any:
    """The only value of a column, or bytes that are no text where they should be."""
    try:
        return column[0].as_py()
    except UnicodeDecodeError as error:
        return error.object
