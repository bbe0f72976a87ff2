"""Files that torch.save wrote, read by `unpickle.py` in a process of its own; tensors stay where they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtrain.checkpoint.files import open_plain
from llmtrain.checkpoint.tensorfile import DTYPES, elements
from llmtrain.errors import CheckpointError

_TOGETHER = 64  # files that one process reads
_REFUSED = 3  # its status for a file that is not read, as `unpickle.py` has it
_LIMIT_S = 600  # and a second for each 20 MB, which are read once


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: nothing of it is in memory until `part` is used."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Its elements."""
        return elements(self.shape)

    def part(self, start: int, length: int) -> torch.Tensor:
        """Elements `start … start + length`, 1-D."""
        if not 0 <= start <= start + length <= self.count:
            raise CheckpointError(f"{self.path}: elements {start} … {start + length} of {self.count}")
        if not length:
            return torch.empty(0, dtype=self.dtype)
        width = self.dtype.itemsize
        # copy-on-write, so that torch may have it; pages are read as they are used
        raw = np.memmap(self.path, np.uint8, "c", self.offset + start * width, (length * width,))
        return torch.from_numpy(raw).view(self.dtype)

    def value(self) -> float:
        """Of a tensor with one element."""
        if self.count != 1:
            raise CheckpointError(f"{self.path}: a single number was expected, not {list(self.shape)}")
        return float(self.part(0, 1))


@dataclass(frozen=True)
class Foreign:
    """An object of another library: its class's name, what it was made with, and its attributes."""

    name: str
    args: list[Any]
    state: Any


def read_torch_files(paths: Sequence[Path]) -> list[Any]:
    """What each file holds: plain values, `Stored` tensors and `Foreign` objects. None of it is executed.

    Raises CheckpointError, naming the file, when it is missing, damaged or asks for anything unusual.
    """
    found: list[Any] = []
    for start in range(0, len(paths), _TOGETHER):
        found += _read(paths[start : start + _TOGETHER])
    return found


def read_torch_file(path: Path) -> Any:
    """One of them."""
    return read_torch_files([path])[0]


def _read(paths: Sequence[Path]) -> list[Any]:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(open_plain(path.parent, path.name))
        answers = _ask(paths, descriptors)
        sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return [_value(answer, path, size) for answer, path, size in zip(answers, paths, sizes, strict=True)]


def _ask(paths: Sequence[Path], descriptors: Sequence[int]) -> list[Any]:
    """The answer of the other process. -I and -S: it sees the standard library and nothing else."""
    program = str(Path(__file__).with_name("unpickle.py"))
    command = [sys.executable, "-I", "-S", "-B", program, *map(str, descriptors)]
    limit_s = _LIMIT_S + sum(os.fstat(descriptor).st_size for descriptor in descriptors) // 20_000_000
    names = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    with tempfile.TemporaryFile() as answer:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                env={},
                cwd="/",
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{names}: given up after {limit_s} s of reading the pickle") from None
        if done.returncode == _REFUSED:
            place, _, why = done.stderr.decode(errors="replace").strip().partition(" ")
            raise CheckpointError(f"{paths[int(place)]} is not read: {why}")
        if done.returncode:
            raise CheckpointError(
                f"{names}: the process that reads the pickle ended with {done.returncode}, so nothing is used"
            )
        answer.seek(0)
        content: list[Any] = json.load(answer)
    return content


def _value(node: Any, path: Path, size: int) -> Any:
    """The Python value of an answer's node."""
    if isinstance(node, list):
        return [_value(item, path, size) for item in node]
    if not isinstance(node, dict):
        return node
    ((mark, content),) = node.items()
    if mark == "dict":
        return {_key(_value(key, path, size)): _value(item, path, size) for key, item in content}
    if mark == "object":
        return Foreign(content[0], _value(content[1], path, size), _value(content[2], path, size))
    offset, dtype, shape = content
    stored = Stored(path, offset, DTYPES[dtype], tuple(shape))
    width = stored.dtype.itemsize
    if stored.count and (offset % width or offset + stored.count * width > size):
        raise CheckpointError(f"{path}: a tensor lies outside the file, or not where torch would put it")
    return stored


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
