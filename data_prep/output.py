"""The output folder of a build: written beside its final place, moved there whole, or not there at all.

    data/stdlib            the finished dataset
    data/stdlib.rejected   what was left out of it, when that is to be kept
    data/stdlib.partial    a build that is running, or was killed: no dataset, the next one goes on with it
    data/stdlib.old        what was there before, while it is replaced
    data/stdlib.lock       held while a build runs; a killed build lets go of it

The next build ends what a kill left half done.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llmtrain.data.manifest import MANIFEST, ShardEntry, SplitEntry
from llmtrain.data.shards import TRAINED, ShardWriter
from llmtrain.errors import DataError

MARK = "UNFINISHED"  # in the work folder: what has no such file, and no manifest, is never cleared away


@contextmanager
def sole_builder(output: Path) -> Iterator[None]:
    """Holds the lock of an output folder. Raises DataError when another build does."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(output.name + ".lock")
    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"another build is writing {output}: wait for it or choose another output"
            ) from None
        if not path.exists() or os.fstat(lock.fileno()).st_ino != path.stat().st_ino:
            raise DataError(f"another build of {output} has just ended: run the command again")
        try:
            _recover(output)
            yield
        finally:
            path.unlink(missing_ok=True)


def _recover(output: Path) -> None:
    """Ends a replacement that was cut short: the older dataset comes back unless the newer one is there."""
    old = output.with_name(output.name + ".old")
    if old.exists():
        refuse_foreign(old)
        if output.exists():
            shutil.rmtree(old)
        else:
            old.rename(output)


def publish(finished: Path, output: Path) -> None:
    """Moves a finished folder into place; an older one there goes only after that."""
    old = output.with_name(output.name + ".old")
    if output.exists():
        output.rename(old)
    finished.rename(output)
    sync_folder(output.parent)
    if old.exists():
        shutil.rmtree(old)


def refuse_foreign(folder: Path) -> None:
    """Raises DataError when a folder holds anything but a dataset: it must not be replaced."""
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise DataError(f"{folder} exists and is not a dataset: choose another output, nothing was touched")


def sync_folder(folder: Path) -> None:
    """The names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SplitWriter:
    """The shards of one split. One ends with the document that brings it to `shard_tokens` tokens."""

    def __init__(self, folder: Path, split: str, vocab_size: int, shard_tokens: int, masked: bool = False):
        self.folder = folder
        self.split = split
        self.vocab_size = vocab_size
        self.shard_tokens = shard_tokens
        self.masked = masked
        self.text_bytes = self.trained = 0
        self._shards: list[ShardEntry] = []
        self._writer: ShardWriter | None = None
        (folder / split).mkdir()

    def add(
        self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int, mask: np.ndarray | None = None
    ) -> None:
        """Appends documents, `tokens` (and `mask`) back to back and cut by `lengths`."""
        ends = np.cumsum(lengths)
        done = start = 0
        while done < len(lengths):
            if self._writer is None:
                prefix = self.folder / self._name
                self._writer = ShardWriter(prefix, self.vocab_size, masked=self.masked)
            room = self.shard_tokens - self._writer.tokens
            upto = min(int(np.searchsorted(ends, start + room)) + 1, len(lengths))
            end = int(ends[upto - 1])
            part = None if mask is None else mask[start:end]
            self._writer.add(tokens[start:end], lengths[done:upto], part)
            done, start = upto, end
            if self._writer.tokens >= self.shard_tokens:
                self._finish_shard()
        self.text_bytes += text_bytes
        self.trained += 0 if mask is None else int(np.count_nonzero(mask & TRAINED))

    def close(self) -> SplitEntry:
        """Finishes the last shard and says what the split holds."""
        self._finish_shard()
        return SplitEntry(
            documents=sum(shard.documents for shard in self._shards),
            tokens=sum(shard.tokens for shard in self._shards),
            text_bytes=self.text_bytes,
            trained_tokens=self.trained if self.masked else None,
            shards=tuple(self._shards),
        )

    @property
    def _name(self) -> str:
        return f"{self.split}/{len(self._shards):05d}"

    def _finish_shard(self) -> None:
        if self._writer is not None:
            name = self._name
            self._shards.append(ShardEntry.of(name, self._writer.close()))
            self._writer = None
