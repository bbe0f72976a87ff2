"""Packed rows: some rows of some datasets, laid out by arithmetic at once and read when asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llmtrain.data.dataset import Dataset
from llmtrain.data.packing import Packing
from llmtrain.data.rows import IGNORED, RowArrays
from llmtrain.errors import DataError


@dataclass(frozen=True)
class _Layout:
    """Where the pieces of one dataset go. Places count through all positions of all rows; all arrays rise.

    at, start, length, continues [pieces]   see `llmtrain.data.packing.Pieces`; `at` is the place
    untaught [u]                            places whose token is followed by nothing
    joints   [j]                            places whose token is followed by another document's first
    padding  [p, 2]                         first place and stop of each padding
    """

    dataset: Dataset
    at: np.ndarray
    start: np.ndarray
    length: np.ndarray
    continues: np.ndarray
    untaught: np.ndarray
    joints: np.ndarray
    padding: np.ndarray

    def pieces(self, first: int, stop: int) -> slice:
        """The pieces that begin in these places."""
        return _among(self.at, first, stop)

    def marks(self, some: slice) -> list[tuple[int, np.ndarray]]:
        """(place, uint8 marks of what follows each of its tokens) of a masked dataset's pieces."""
        length = self.length[some] - ~self.continues[some]  # what follows an end is not the document's
        has = length > 0
        marks = self.dataset.masks(self.start[some][has] + 1, length[has])
        return list(zip(self.at[some][has].tolist(), marks, strict=True))


@dataclass(frozen=True)
class PackedRows:
    """Some rows of some datasets (`llmtrain.data.rows.Rows`), read when asked.

    source  int64 [count]   index into `packings`
    row     int64 [count]   the row of that dataset

    The last token of a piece is followed by its document's next token, if there is one; else by nothing
    (IGNORED), or by the next document of the row when documents are not told apart. Padding is a document
    of its own: end-of-document tokens, none of them trained on.
    """

    packings: tuple[Packing, ...]
    source: np.ndarray
    row: np.ndarray
    seq_len: int
    mask_documents: bool

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """What the rows are of."""
        return tuple(packing.dataset for packing in self.packings)

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self.row)

    @property
    def valid_tokens(self) -> int:
        """Labels that are trained on, known from the index alone (and the masks of fine-tuning data)."""
        total = 0
        for layout in self._layouts:
            if layout.dataset.masked:
                total += sum(int(marks.sum()) for _, marks in layout.marks(slice(None)))
            else:
                total += int(layout.length.sum()) - len(layout.untaught)
        return total

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token: the mean of the datasets', weighted by rows."""
        each = np.array([dataset.bytes_per_token for dataset in self.datasets])
        return float(each[self.source].mean())

    def parts(self, rows: int) -> list[PackedRows]:
        """The same rows, at most `rows` at a time."""
        starts = range(0, self.count, rows)
        return [replace(self, source=self.source[at:][:rows], row=self.row[at:][:rows]) for at in starts]

    def read(self, start: int, stop: int) -> RowArrays:
        """Rows `start` to `stop` (exclusive) as arrays. Raises DataError for an id outside the vocabulary."""
        assert 0 <= start <= stop <= self.count, f"rows {start} … {stop} of {self.count}"
        shape = (stop - start, self.seq_len)
        arrays = RowArrays(*(np.empty(shape, np.int64) for _ in range(3)))
        if not self.mask_documents:
            arrays.positions[:] = np.arange(self.seq_len)
        for layout in self._layouts:
            self._fill(layout, start * self.seq_len, stop * self.seq_len, arrays)
        self._refuse_foreign_ids(arrays, start)
        return arrays

    def _refuse_foreign_ids(self, arrays: RowArrays, start: int) -> None:
        """A damaged byte is often found here: later it is an error of the device, which names nothing."""
        size, last = self.datasets[0].vocab_size, arrays.labels[:, -1:]
        # every other label is a token of its row, or IGNORED; as unsigned numbers, negative ones are huge
        for ids in (arrays.tokens, np.where(last == IGNORED, 0, last)):
            if ids.size and ids.view(np.uint64).max() >= size:
                row, column = np.argwhere(ids.view(np.uint64) >= size)[0].tolist()
                found = self.datasets[self.source[start + row]]
                raise DataError(
                    f"{found.folder} split '{found.split}' holds token id {ids[row, column]}, outside its "
                    f"vocabulary of {size}: a shard is damaged, which `llmtrain data verify` names"
                )

    def _fill(self, layout: _Layout, base: int, stop: int, arrays: RowArrays) -> None:
        """Writes what one dataset has in the places `base` … `stop`, which are those of the arrays."""
        tokens, labels, positions = (
            array.reshape(-1) for array in (arrays.tokens, arrays.labels, arrays.positions)
        )
        some = layout.pieces(base, stop)
        length, continues = layout.length[some], layout.continues[some]
        windows = layout.dataset.windows(layout.start[some], length + continues)
        first = layout.at[some] - base
        places = (first.tolist(), (first + length).tolist(), (first + length - ~continues).tolist())
        count = np.arange(self.seq_len)
        for window, at, end, taught in zip(windows, *places, strict=True):
            tokens[at:end] = window[: end - at]
            labels[at:taught] = window[1:]
            if self.mask_documents:
                positions[at:end] = count[: end - at]
        joints = layout.joints[_among(layout.joints, base, stop)] - base
        labels[joints] = tokens[joints + 1]
        labels[layout.untaught[_among(layout.untaught, base, stop)] - base] = IGNORED
        for at, end in (layout.padding[_among(layout.padding[:, 0], base, stop)] - base).tolist():
            tokens[at:end] = layout.dataset.eos_id
            labels[at:end] = IGNORED
            if self.mask_documents:
                positions[at:end] = count[: end - at]
        if layout.dataset.masked:
            for place, marks in layout.marks(some):
                at = place - base
                labels[at : at + len(marks)][marks == 0] = IGNORED

    @cached_property
    def _layouts(self) -> list[_Layout]:
        present = np.unique(self.source).tolist()
        return [self._layout(self.packings[number], self.source == number) for number in present]

    def _layout(self, packing: Packing, chosen: np.ndarray) -> _Layout:
        pieces = packing.pieces(self.row[chosen])
        at = np.flatnonzero(chosen)[pieces.row] * self.seq_len + pieces.column
        ends = at + pieces.length
        last = np.diff(pieces.row, append=-1) != 0  # no other piece follows in the row
        bare = ~pieces.continues
        nothing = bare if self.mask_documents else bare & last
        row_ends = -(-ends // self.seq_len) * self.seq_len
        padded = last & (ends < row_ends)
        return _Layout(
            dataset=packing.dataset,
            at=at,
            start=pieces.start,
            length=pieces.length,
            continues=pieces.continues,
            untaught=ends[nothing] - 1,
            joints=ends[bare & ~nothing] - 1,
            padding=np.stack([ends[padded], row_ends[padded]], axis=1),
        )


def _among(rising: np.ndarray, first: int, stop: int) -> slice:
    """Where in a rising array the values of `first` … `stop` (exclusive) stand."""
    low, high = np.searchsorted(rising, (first, stop)).tolist()
    return slice(low, high)
