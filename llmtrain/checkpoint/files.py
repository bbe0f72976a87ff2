"""Files that are hashed while written, synced before they count, and checked before they are read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash
from pydantic import Field, model_validator

from llmtrain.config.schema import Section
from llmtrain.errors import CheckpointError

PRIVATE_FILE = 0o640  # owner and group; the umask takes away more, never adds
PRIVATE_FOLDER = 0o750
PIECE = 8 << 20  # bytes handed to the hash and to the disk at a time
_HASH_PIECE = 256 << 10  # bytes read at a time to be hashed: they stay in the processor's cache


class FileEntry(Section):
    """One file of a checkpoint: its name, size in bytes, and `xxh3_128:` with the hash in hex.

    The name has no separator, no leading dot and no NUL, so it can't lead out of its folder.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    size: int = Field(ge=0)
    digest: str = Field(pattern="^(xxh3_128:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, content: Any) -> Any:
        """Its manifests have `sha256` and the hex."""
        if isinstance(content, dict) and "sha256" in content and "digest" not in content:
            content = {**content, "digest": f"sha256:{content['sha256']}"}
            del content["sha256"]
        return content


class HashedFile:
    """A new file that is hashed while it is written, which costs less than handing its bytes to the system.

    `finish` syncs; without it the file is closed and nothing is claimed about it.
    """

    def __init__(self, path: Path, mode: int = PRIVATE_FILE):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.path = path
        self.size = 0
        self._descriptor = os.open(path, flags, mode)
        self._hash = xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`; it may be reused as soon as this returns."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self._hash.update(piece)
            self._write_all(piece)

    def _write_all(self, piece: memoryview) -> None:
        start = self.size
        while len(piece):
            try:
                written = os.write(self._descriptor, piece)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            self.size += written
            piece = piece[written:]
        # asks the disk to begin now instead of at the sync, and not to crowd others out of the page cache
        os.posix_fadvise(self._descriptor, start, self.size - start, os.POSIX_FADV_DONTNEED)

    def finish(self) -> FileEntry:
        """Syncs to the disk and tells what was written."""
        os.fsync(self._descriptor)
        return FileEntry(name=self.path.name, size=self.size, digest=f"xxh3_128:{self._hash.hexdigest()}")

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def write_file(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> FileEntry:
    """Writes and syncs a small new file."""
    with HashedFile(path, mode) as file:
        file.write(content)
        return file.finish()


def open_plain(folder: Path, name: str) -> int:
    """A descriptor of the regular file `name` in `folder`; links are not followed.

    Raises CheckpointError when it is missing or anything else than a regular file.
    """
    path = folder / name
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise CheckpointError(f"{path} is a link or not a plain file, so it is not read")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from None


def read_plain(folder: Path, name: str, limit: int = 1 << 30) -> bytes:
    """The content of a small plain file."""
    with open(open_plain(folder, name), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{folder / name} is larger than {limit} bytes, so it is not read")
    return content


def check_file(folder: Path, entry: FileEntry, hashed: bool = True) -> None:
    """Raises CheckpointError, naming the file, unless its size (and its hash) is the entry's."""
    path = folder / entry.name
    with open(open_plain(folder, entry.name), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise CheckpointError(f"{path} has {size} bytes, its manifest says {entry.size}")
        if not hashed:
            return
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # more is read ahead while hashing
        algorithm, _, expected = entry.digest.partition(":")
        found = hashlib.sha256() if algorithm == "sha256" else xxhash.xxh3_128()
        buffer = memoryview(bytearray(_HASH_PIECE))
        while count := file.readinto(buffer):
            found.update(buffer[:count])
    if found.hexdigest() != expected:
        raise CheckpointError(f"{path} is damaged: its {algorithm} differs from its manifest's")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
