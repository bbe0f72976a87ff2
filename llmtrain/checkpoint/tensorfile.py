"""safetensors files: written as a stream of tensors, read by byte range.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header length, a JSON
header `{key: {dtype, shape, data_offsets}}`, the tensors' bytes without holes. The library's own writer
wants all tensors of a file in memory at once; here one piece is, because the sizes are known beforehand.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from llmtrain.checkpoint.files import PIECE, PRIVATE_FILE, FileEntry, HashedFile, open_plain
from llmtrain.errors import CheckpointError, EngineError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100 << 20  # bytes; the library's own limit


class TensorSpec(NamedTuple):
    """What a tensor of a file will be, before its values are there."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return elements(self.shape) * self.dtype.itemsize


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def header_of(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the first tensor. Keys must be unique and wide dtypes come first (alignment)."""
    if sys.byteorder != "little":
        raise EngineError("safetensors files are little-endian, and this machine is not")
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for spec in specs:
        assert spec.key not in content, f"two tensors named {spec.key} in one file"
        assert start % spec.dtype.itemsize == 0, f"{spec.key} would not be aligned: sort by dtype width"
        content[spec.key] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, start + spec.size],
        }
        start += spec.size
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise EngineError(f"{len(specs)} tensors are too many for one safetensors file")
    return len(text).to_bytes(8, "little") + text


class TensorFileWriter:
    """Writes one file; tensors come in the order of `specs`, from any device, one at a time."""

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str] | None = None,
        mode: int = PRIVATE_FILE,
    ):
        self._left = list(reversed(specs))
        self._file = HashedFile(path, mode)
        try:
            self._file.write(header_of(specs, metadata))
        except BaseException:
            self._file.__exit__(None, None, None)
            raise

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """The next tensor; at most `PIECE` bytes of it are copied to the CPU at a time."""
        spec = self._left.pop()
        assert key == spec.key, f"{key} was written, {spec.key} announced"
        assert tensor.dtype == spec.dtype, f"{spec.key} is {tensor.dtype}, announced as {spec.dtype}"
        assert tensor.numel() == elements(spec.shape), f"{spec.key} has not the announced length"
        flat = tensor.detach().reshape(-1)
        step = max(1, PIECE // tensor.dtype.itemsize)
        for start in range(0, flat.numel(), step):
            piece = flat[start : start + step].cpu().contiguous()
            self._file.write(piece.view(torch.uint8).numpy().data)

    def finish(self) -> FileEntry:
        """Syncs the file, after the last tensor."""
        assert not self._left, f"{len(self._left)} announced tensors were not written"
        return self._file.finish()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


class TensorFileReader:
    """Reads ranges of elements with pread: a file that shrank gives an error, where a map would be killed."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self._descriptor = open_plain(folder, name)
        try:
            self._start, self._tensors = self._header()
        except BaseException:
            self.close()
            raise

    def _header(self) -> tuple[int, dict[str, tuple[torch.dtype, int, int]]]:
        """Where the data begins, and per key: dtype, first byte, last byte + 1, counted from there."""
        size = os.fstat(self._descriptor).st_size
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{self.path} is not a whole safetensors file")
        start = 8 + length
        try:
            content = json.loads(os.pread(self._descriptor, length, 8))
            tensors = {}
            for key, entry in content.items():
                if key == "__metadata__":
                    continue
                first, last = entry["data_offsets"]
                dtype = DTYPES[entry["dtype"]]
                if not 0 <= first <= last <= size - start:
                    raise ValueError(f"{key} lies outside the file")
                if last - first != elements(entry["shape"]) * dtype.itemsize:
                    raise ValueError(f"{key} has not the size of its shape")
                tensors[key] = (dtype, first, last)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path} has a damaged header ({error})") from None
        return start, tensors

    def read_into(self, key: str, start: int, target: torch.Tensor) -> None:
        """Fills the 1-D contiguous CPU tensor `target` from element `start` of tensor `key` on."""
        if key not in self._tensors:
            raise CheckpointError(f"{self.path} holds no tensor {key}")
        dtype, first, last = self._tensors[key]
        begin = first + start * dtype.itemsize
        if dtype != target.dtype or begin + target.numel() * dtype.itemsize > last:
            raise CheckpointError(f"{self.path}: {key} is not what the manifest says")
        buffer = target.view(torch.uint8).numpy().data
        offset = self._start + begin
        while len(buffer):
            count = os.preadv(self._descriptor, [buffer[: 1 << 30]], offset)
            if count == 0:
                raise CheckpointError(f"{self.path} ends inside {key}")
            buffer, offset = buffer[count:], offset + count

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
