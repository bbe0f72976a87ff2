"""What the formats have in common: documents as one array of tokens and where each document ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from llmtrain.data.mapped import map_array
from llmtrain.errors import DataError

BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Vocabulary:
    """Ids run from 0 to one below `size`, `eos_id` ends a document. `name` is that of the tokenizer."""

    size: int
    eos_id: int
    name: str = ""


@dataclass(frozen=True)
class TokenFile:
    """Documents of a file: `tokens` [t], mapped where it can be; `ends` int64 [documents], the last is t."""

    path: Path
    tokens: np.ndarray
    ends: np.ndarray

    def __post_init__(self) -> None:
        last = int(self.ends[-1]) if len(self.ends) else 0
        if last != len(self.tokens) or (np.diff(self.ends, prepend=0) < 0).any():
            raise DataError(
                f"{self.path} contradicts itself: documents end at token {last} of {len(self.tokens)}"
            )

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and lengths of consecutive documents, about BLOCK_TOKENS at a time unless one is longer."""
        done = start = 0
        while done < len(self.ends):
            upto = max(done + 1, int(np.searchsorted(self.ends, start + BLOCK_TOKENS, side="right")))
            end = int(self.ends[upto - 1])
            yield self.tokens[start:end], np.diff(self.ends[done:upto], prepend=start)
            done, start = upto, end


class Writer(Protocol):
    """Takes documents and writes one token file, under names that end in `.part` until `close`."""

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Appends documents, `tokens` back to back, cut by `lengths`."""

    def close(self) -> Sequence[Path]:
        """Ends the files and gives them their names."""

    def discard(self) -> None:
        """Takes away what was written."""


@dataclass(frozen=True)
class TokenFormat:
    """A format: which files a given path stands for, how they are read, how one is written.

    find   the files, or names of groups of files, that a path as given stands for
    parts  all files that one of those consists of
    named  the same for a file to be written, of a path as given
    """

    find: Callable[[Path], list[Path]]
    parts: Callable[[Path], list[Path]]
    named: Callable[[Path], Path]
    read: Callable[[Path, Vocabulary], Iterator[TokenFile]]
    write: Callable[[Path, Vocabulary], Writer]


def found_by_suffix(suffix: str) -> Callable[[Path], list[Path]]:
    """Finds the file itself, or in a folder all files of that suffix, by name."""

    def find(path: Path) -> list[Path]:
        return sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path] if path.is_file() else []

    return find


def named_by_suffix(suffix: str) -> Callable[[Path], Path]:
    """Adds the suffix where it is left out."""
    return lambda path: path if path.suffix == suffix else path.with_name(path.name + suffix)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of nothing but tokens. Raises DataError when its size does not fit."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise DataError(
            f"{path} has {size} bytes, which is no whole number of {dtype.name} tokens: it is cut (fetch it "
            "again), or of another type"
        )
    return map_array(path, dtype)


def ends_by_mark(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Where documents end that end with `eos_id`; what follows the last mark is a document without one."""
    found = [
        np.flatnonzero(tokens[start : start + BLOCK_TOKENS] == eos_id) + start + 1
        for start in range(0, len(tokens), BLOCK_TOKENS)
    ]
    ends = np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)
    unended = len(tokens) > (int(ends[-1]) if len(ends) else 0)
    return np.append(ends, len(tokens)) if unended else ends


class FlatWriter:
    """Tokens of one dtype back to back. With `eos_id`, raises DataError unless that alone ends documents."""

    def __init__(self, path: Path, dtype: np.dtype, eos_id: int | None = None):
        self.path = path
        self.dtype = dtype
        self.eos_id = eos_id
        self.tokens = 0
        self._part = path.with_name(path.name + ".part")
        self._file = open(self._part, "wb")  # noqa: SIM115 - closed by close() and discard()

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Appends documents."""
        if self.eos_id is not None:
            ends = np.cumsum(lengths)
            marked = (lengths > 0).all() and (tokens[ends - 1] == self.eos_id).all()
            if not marked or int((tokens == self.eos_id).sum()) != len(lengths):
                raise DataError(
                    f"{self.path}: here token {self.eos_id} does not end each document and nothing else, and "
                    "this format has no other mark: export to megatron, datatrove or parquet"
                )
        for start in range(0, len(tokens), BLOCK_TOKENS):
            self._file.write(tokens[start : start + BLOCK_TOKENS].astype(self.dtype).tobytes())
        self.tokens += len(tokens)

    def close(self) -> Sequence[Path]:
        """Ends the file and gives it its name."""
        self._file.close()
        self._part.replace(self.path)
        return [self.path]

    def discard(self) -> None:
        """Takes away what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)
