"""Sorting more than memory holds: sorted runs on disk, merged a block at a time.

Memory is one run while records come in, and about one run while they are merged, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmtrain.errors import DataError

RUN_BYTES = 2**22
FAN_IN = 128  # runs merged at once; more are merged in rounds


class SortedRuns:
    """Records with a field `key` go in, in blocks; they come out ordered by key, equal keys as they came.

    The folder is made, and emptied again by the last record that is read.
    """

    def __init__(self, folder: Path, dtype: np.dtype, run_bytes: int = RUN_BYTES, fan_in: int = FAN_IN):
        folder.mkdir()
        self.folder, self.dtype = folder, dtype
        self.fan_in = fan_in
        self.room = max(run_bytes // dtype.itemsize, fan_in)
        self.records = 0
        self._buffer = np.empty(self.room, dtype)
        self._used = 0
        self._runs: list[Path] = []
        self._made = 0

    def add(self, records: np.ndarray) -> None:
        """Takes records in; a full run is sorted and written."""
        self.records += records.size
        while records.size:
            part = records[: self.room - self._used]
            self._buffer[self._used : self._used + part.size] = part
            self._used += part.size
            records = records[part.size :]
            if self._used == self.room:
                self._flush()

    def merged(self) -> Iterator[np.ndarray]:
        """All records in order, in blocks. Once only: nothing can be added or read again."""
        self._flush()
        self._buffer = np.empty(0, self.dtype)
        block = max(self.room // self.fan_in, 1)
        while len(self._runs) > self.fan_in:
            rounds = [self._runs[at : at + self.fan_in] for at in range(0, len(self._runs), self.fan_in)]
            self._runs = [self._combine(runs, block) for runs in rounds]
        yield from _merge(self._runs, self.dtype, block)
        self._runs = []

    def _flush(self) -> None:
        if self._used:
            records = self._buffer[: self._used]
            records[np.argsort(records["key"], kind="stable")].tofile(path := self._new_run())
            self._runs.append(path)
            self._used = 0

    def _new_run(self) -> Path:
        self._made += 1
        return self.folder / f"{self._made:06d}"

    def _combine(self, runs: Sequence[Path], block: int) -> Path:
        path = self._new_run()
        with path.open("wb") as file:
            for records in _merge(runs, self.dtype, block):
                records.tofile(file)
        return path


class _Run:
    """A sorted run, read a block at a time; removed when it has been read."""

    def __init__(self, path: Path, dtype: np.dtype, block: int):
        self.path, self.dtype, self.block = path, dtype, block
        self.left = path.stat().st_size // dtype.itemsize  # records not read yet
        self._read = 0
        self.head = np.empty(0, dtype)
        self.refill()

    def refill(self) -> None:
        if self.head.size or not self.left:
            return
        offset = self._read * self.dtype.itemsize
        self.head = np.fromfile(self.path, self.dtype, self.block, offset=offset)
        if not self.head.size:
            raise DataError(f"{self.path} ends before its {self.left} last records")
        self._read += self.head.size
        self.left -= self.head.size
        if not self.left:
            self.path.unlink()

    def take(self, cutoff: np.uint64, with_equal: bool) -> np.ndarray:
        count = int(np.searchsorted(self.head["key"], cutoff, "right" if with_equal else "left"))
        taken, self.head = self.head[:count], self.head[count:]
        return taken


def _merge(paths: Sequence[Path], dtype: np.dtype, block: int) -> Iterator[np.ndarray]:
    runs = [run for path in paths if (run := _Run(path, dtype, block)).head.size]
    while runs:
        cutoff = min(run.head["key"][-1] for run in runs)
        taken, with_equal = [], True
        for run in runs:
            ends_in_cutoff = bool(run.head["key"][-1] == cutoff) and run.left > 0
            taken.append(run.take(cutoff, with_equal))
            # more of this key may follow in the run, and must come before that of later runs
            with_equal = with_equal and not ends_in_cutoff
            run.refill()
        runs = [run for run in runs if run.head.size]
        records = np.concatenate(taken)
        yield records[np.argsort(records["key"], kind="stable")]


def with_leaders(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sorted blocks again, each beside the first record that had the same key, in this block or before.

    The leader of the last group is carried on as the first record of the next block, beside itself.
    """
    carried: np.ndarray | None = None
    for block in blocks:
        if carried is not None:
            block = np.concatenate([carried, block])
        starts = np.ones(block.size, bool)
        starts[1:] = block["key"][1:] != block["key"][:-1]
        leaders = block[np.maximum.accumulate(np.where(starts, np.arange(block.size), 0))]
        yield block, leaders
        carried = leaders[-1:].copy()
