"""Parquet with a column `input_ids`, a list of ids per row: a row is a document. Read by batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.formats.token_files import TokenFile, TokenFormat, Vocabulary, found_by_suffix, named_by_suffix
from llmtrain.errors import DataError

COLUMN = "input_ids"
BATCH_ROWS = 1024


def _read(path: Path, vocabulary: Vocabulary) -> Iterator[TokenFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as table:
            names = table.schema_arrow.names
            kind = table.schema_arrow.field(COLUMN).type if COLUMN in names else None
            lists = kind is not None and (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))
            if kind is None or not lists or not pyarrow.types.is_integer(kind.value_type):
                raise DataError(
                    f"{path} has no column {COLUMN} of lists of integers (it has {', '.join(names)})"
                )
            for batch in table.iter_batches(BATCH_ROWS, columns=[COLUMN], use_threads=False):
                column = batch.column(0)
                values = column.flatten()
                if column.null_count or values.null_count:
                    raise DataError(f"{path} has rows or ids that are null in {COLUMN}: leave them out")
                lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
                yield TokenFile(path, values.to_numpy(), np.cumsum(lengths))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from None


class _Writer:
    def __init__(self, path: Path, vocabulary: Vocabulary):
        import pyarrow
        import pyarrow.parquet

        self.path = path
        self._part = self.path.with_name(self.path.name + ".part")
        self._pyarrow = pyarrow
        self._type = pyarrow.large_list(pyarrow.int32())
        self._writer = pyarrow.parquet.ParquetWriter(self._part, pyarrow.schema([(COLUMN, self._type)]))

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = self._pyarrow.LargeListArray.from_arrays(offsets, tokens.astype(np.int32))
        self._writer.write_table(self._pyarrow.table({COLUMN: rows}))

    def close(self) -> Sequence[Path]:
        self._writer.close()
        self._part.replace(self.path)
        return [self.path]

    def discard(self) -> None:
        self._writer.close()
        self._part.unlink(missing_ok=True)


PARQUET = TokenFormat(
    found_by_suffix(".parquet"), lambda path: [path], named_by_suffix(".parquet"), _read, _Writer
)
