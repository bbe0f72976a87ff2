"""What is in files that torch.save wrote, as JSON, without running any of it. A program of its own.

    python -I -S unpickle.py FD FD …        each FD is an open file; the answer is one JSON list on stdout

Only the standard library is in this process, and it may open nothing more: no file, no socket, no process.
A pickle is a program that names what it wants called. This reader knows the names in `KNOWN`, has stand-ins
for them that do nothing, and ends at any other. Tensors are not read: the answer says where their bytes lie
in the file, and whoever asked reads them there. Status 0, or 3 with the file's place and a reason on stderr.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from typing import Any, BinaryIO

MEMORY = 2 << 30  # bytes this process may take
ANSWER = 64 << 20  # bytes of JSON
PICKLE = 64 << 20  # bytes of one file's pickle; a model of 100 billion parameters has some megabytes
SECONDS = 120  # of processor time, and one more for each 100 MB, whose CRC is computed
PIECE = 1 << 20
NODES = 1_000_000  # values in an answer: a pickle of a kilobyte may stand for any number of them
REFUSED = 3

STORAGES = {
    "FloatStorage": ("F32", 4),
    "BFloat16Storage": ("BF16", 2),
    "HalfStorage": ("F16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}


class RefusedError(Exception):
    """Why a file is not read."""


class Inert:
    """Stands for an object of another library: keeps what it was made with, and can do nothing."""

    __slots__ = ("args", "state")
    called = ""

    def __init__(self, *args: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Storage:
    """Where the elements of some tensors lie in the file."""

    __slots__ = ("offset", "count", "dtype", "width")

    def __init__(self, offset: int, count: int, dtype: str, width: int):
        self.offset, self.count, self.dtype, self.width = offset, count, dtype, width


class Tensor:
    """A tensor's place: first byte, dtype and shape."""

    __slots__ = ("offset", "dtype", "shape")

    def __init__(self, offset: int, dtype: str, shape: list[int]):
        self.offset, self.dtype, self.shape = offset, dtype, shape


def rebuild_tensor(storage: Any, start: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """What torch calls `_rebuild_tensor_v2`, for tensors that lie in one piece."""
    numbers = [start, *shape, *strides]
    if type(storage) is not Storage or any(type(n) is not int or n < 0 for n in numbers):
        raise RefusedError("a tensor is described by something else than numbers")
    count = 1
    expected: list[int] = []
    for extent in reversed(shape):
        expected.insert(0, count)
        count *= extent
    there = zip(shape, strides, expected, strict=True)
    if count and any(extent > 1 and stride != wanted for extent, stride, wanted in there):
        raise RefusedError("a tensor does not lie in one piece")
    if start + count > storage.count and count:
        raise RefusedError("a tensor lies outside its storage")
    return Tensor(storage.offset + start * storage.width, storage.dtype, list(shape))


def rebuild_subclass(rebuild: Any, kind: Any, args: Any, state: Any) -> Tensor:
    """`_rebuild_from_type_v2`: a tensor that carries attributes, which are left behind."""
    if rebuild is not rebuild_tensor:
        raise RefusedError("a tensor is made in an unknown way")
    return rebuild_tensor(*args)


def shape_of(extents: Any = ()) -> list[Any]:
    """`torch.Size`."""
    return list(extents)


def _inert(name: str) -> type[Inert]:
    return type(name, (Inert,), {"__slots__": (), "called": name})


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): shape_of,
    ("torch", "Tensor"): _inert("Tensor"),
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_subclass,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): _inert("ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): _inert("LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): _inert("DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"): _inert("fragment_address"),
    **{("torch", name): kind for name, kind in STORAGES.items()},
    **{("torch", name): name for name in ("float16", "bfloat16", "float32")},  # a loss scaler's dtype
}


class Reader(pickle.Unpickler):
    """Knows the names in `KNOWN`, and of storages only where they lie."""

    def __init__(self, content: bytes, archive: Archive):
        super().__init__(io.BytesIO(content))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        """Never imports."""
        if (module, name) not in KNOWN:
            raise RefusedError(
                f"it asks for {module}.{name}, which is not one of the names a checkpoint needs"
            )
        return KNOWN[module, name]

    def persistent_load(self, saved: Any) -> Storage:
        """A storage: ("storage", kind, key, device, number of elements)."""
        if type(saved) is not tuple or len(saved) != 5 or saved[0] != "storage":
            raise RefusedError("it refers to something that is no storage")
        _, kind, key, _, count = saved
        if kind not in STORAGES.values() or type(key) is not str or type(count) is not int or count < 0:
            raise RefusedError("a storage is described wrongly")
        dtype, width = kind
        return Storage(self._archive.place(key, count * width), count, dtype, width)


class Archive:
    """The zip file that torch.save writes: one pickle, and one entry for each storage, none compressed."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise RefusedError("it is no zip file, as torch has written since 1.6") from None
        pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedError("it is a zip file, but not one of torch's")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._whole: set[str] = set()

    def pickle(self) -> bytes:
        """The pickle's bytes."""
        length = self._zip.getinfo(self._prefix + "data.pkl").file_size
        if length > PICKLE:
            raise RefusedError(f"its pickle has {length} bytes, more than any checkpoint's")
        if f"{self._prefix}byteorder" in self._zip.namelist():
            start = self._start(self._prefix + "byteorder", 6)
            if self._bytes(start, 6) != b"little":
                raise RefusedError("its numbers are big-endian")
        return self._bytes(self._start(self._prefix + "data.pkl", length), length)

    def place(self, key: str, length: int) -> int:
        """The first byte of a storage of at least `length` bytes."""
        return self._start(f"{self._prefix}data/{key}", length)

    def _start(self, name: str, length: int) -> int:
        try:
            entry = self._zip.getinfo(name)
        except KeyError:
            raise RefusedError(f"it has no {name}") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < length:
            raise RefusedError(f"{name} is compressed or too short")
        head = self._bytes(entry.header_offset, 30)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if len(head) < 30 or start + entry.file_size > self._size:
            raise RefusedError(f"{name} lies outside the file")
        if name not in self._whole:
            self._check(entry, start)
        return start

    def _check(self, entry: zipfile.ZipInfo, start: int) -> None:
        """torch looks at no CRC when it loads, so a flipped bit would go into the model."""
        found = 0
        for offset in range(0, entry.file_size, PIECE):
            found = zlib.crc32(self._bytes(start + offset, min(PIECE, entry.file_size - offset)), found)
        if found != entry.CRC:
            raise RefusedError(f"{entry.filename} is damaged: its CRC-32 is not the one in the file")
        self._whole.add(entry.filename)

    def _bytes(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return self._file.read(length)


class Writer:
    """Python values as JSON values: dictionaries with any keys, tensors and stand-ins under a mark."""

    def __init__(self) -> None:
        self._left = NODES

    def plain(self, value: Any) -> Any:
        """Raises RefusedError for a value that no checkpoint needs."""
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"it stands for more than {NODES} values")
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind in (list, tuple):
            return [self.plain(item) for item in value]
        if kind in (dict, OrderedDict):
            return {"dict": [[self.plain(key), self.plain(item)] for key, item in value.items()]}
        if kind is Tensor:
            return {"tensor": [value.offset, value.dtype, value.shape]}
        if isinstance(value, Inert):
            # made without __init__ by one of the two ways in which a pickle makes objects
            made = [getattr(value, "args", ()), getattr(value, "state", None)]
            return {"object": [value.called, *map(self.plain, made)]}
        raise RefusedError(f"it holds a value of kind {kind.__name__}")


def read(file: BinaryIO, writer: Writer) -> Any:
    """One file's content."""
    try:
        archive = Archive(file)
        return writer.plain(Reader(archive.pickle(), archive).load())
    except RefusedError:
        raise
    except MemoryError:
        raise RefusedError(f"reading it takes more than {MEMORY >> 20} MB") from None
    except RecursionError:
        raise RefusedError("its values contain themselves, or are nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle may raise anything
        raise RefusedError(f"its pickle can't be read ({type(error).__name__}: {str(error)[:200]})") from None


def confine(seconds: int = SECONDS) -> None:
    """From now on this process can open, start and take next to nothing."""
    codecs.lookup("cp437")  # what zipfile would import later
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: ANSWER,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def main() -> int:
    """Reads the files whose descriptors are given."""
    files = [os.fdopen(int(word), "rb") for word in sys.argv[1:]]
    confine(SECONDS + sum(os.fstat(file.fileno()).st_size for file in files) // 10**8)
    writer, answers = Writer(), []
    for place, file in enumerate(files):
        try:
            answers.append(read(file, writer))
        except RefusedError as error:
            print(f"{place} {error}", file=sys.stderr)
            return REFUSED
    try:
        for piece in json.JSONEncoder().iterencode(answers):
            sys.stdout.write(piece)
        sys.stdout.flush()
    except (OSError, ValueError, MemoryError) as error:
        print(f"0 what it holds can't be told ({type(error).__name__})", file=sys.stderr)
        os._exit(REFUSED)  # what is left to be written can't be
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
