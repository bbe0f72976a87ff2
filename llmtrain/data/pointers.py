"""Git-lfs pointers: what lies in a clone in place of a large file that was never fetched."""

from __future__ import annotations

from pathlib import Path

from llmtrain.errors import DataError

POINTER = "git-lfs pointer"
FETCH = "fetch the file itself with `git lfs pull`"
POINTER_BYTES = 1024  # more is none
_START = b"version https://git-lfs.github.com/spec/"


def is_pointer(content: bytes) -> bool:
    """Whether a file that begins so is a pointer and not the file."""
    return content.startswith(_START) and len(content) <= POINTER_BYTES


def points(path: Path) -> bool:
    """Whether a pointer lies at a path, instead of a file."""
    try:
        if path.stat().st_size > POINTER_BYTES:
            return False
        with open(path, "rb") as file:
            return is_pointer(file.read(POINTER_BYTES))
    except OSError:
        return False


def refuse_pointer(path: Path) -> None:
    """Raises DataError when a pointer lies at a path, instead of a file."""
    if points(path):
        raise DataError(f"{path} is a {POINTER}, not the file: {FETCH}")
