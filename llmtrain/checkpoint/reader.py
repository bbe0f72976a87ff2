"""Reading a checkpoint by what an engine asks for, whichever files and slices it lies in."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

import torch

from llmtrain.checkpoint.manifest import Manifest, SliceEntry
from llmtrain.checkpoint.tensorfile import DTYPES, TensorFileReader, elements
from llmtrain.errors import CheckpointError, nearest

_OPEN_FILES = 64  # a checkpoint may have more files than a process may have open


class CheckpointReader:
    """A `SliceReader` that reads exactly the bytes it is asked for. Use it in one thread."""

    def __init__(self, folder: Path, manifest: Manifest):
        self._folder = folder
        self._tensors = manifest.tensors
        self._pieces: dict[tuple[str, str], list[SliceEntry]] = {}
        for name, tensor in manifest.tensors.items():
            for piece in tensor.slices:
                self._pieces.setdefault((name, piece.kind), []).append(piece)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)
        self._files: OrderedDict[str, TensorFileReader] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """The canonical tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return self._tensors[name].shape

    def kinds(self, name: str) -> list[str]:
        """What is kept of a tensor; empty when it is not there."""
        return self._tensors[name].kinds() if name in self._tensors else []

    def read(self, name: str, kind: str, start: int, length: int) -> torch.Tensor:
        """Elements `start … start + length`, 1-D on the CPU; CheckpointError when they are not there."""
        pieces = self._pieces.get((name, kind))
        if pieces is None:
            raise CheckpointError(self._absent(name, kind))
        total = elements(self._tensors[name].shape)
        if start < 0 or length < 0 or start + length > total:
            raise CheckpointError(
                f"{self._folder}: {name} has {total} elements, {start} to {start + length} were asked for"
            )
        result = torch.empty(length, dtype=DTYPES[pieces[0].dtype])
        done = 0
        at = bisect_right(pieces, start, key=lambda piece: piece.start) - 1
        while done < length:
            piece = pieces[at]
            inside = start + done - piece.start
            count = min(piece.length - inside, length - done)
            self._file(piece.file).read_into(piece.key(name), inside, result[done : done + count])
            done, at = done + count, at + 1
        return result

    def tensor(self, name: str, kind: str) -> torch.Tensor:
        """A whole tensor in its shape."""
        shape = self.shape(name)
        return self.read(name, kind, 0, elements(shape)).reshape(shape)

    def _absent(self, name: str, kind: str) -> str:
        if name in self._tensors:
            return f"{self._folder} has no {kind} of {name}, only {', '.join(self.kinds(name))}"
        return f"{self._folder} has no tensor {name} {nearest(name, self._tensors)}".rstrip()

    def _file(self, name: str) -> TensorFileReader:
        if name in self._files:
            self._files.move_to_end(name)
        else:
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[name] = TensorFileReader(self._folder, name)
        return self._files[name]

    def close(self) -> None:
        """Closes the files."""
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
