"""Files of a source: which ones, in a fixed order, and their bytes in pieces of bounded size.

Symbolic links to folders are not followed, so no cycle can be walked; hidden files are left out.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from data_prep.corpus import SourceSection
from data_prep.packings import (
    CHUNK_BYTES,
    HEAD_BYTES,
    PACKED_CHUNK_BYTES,
    DamagedFileError,
    named_packing,
    packing_by,
    unpack,
)
from llmtrain.config.hub_names import no_such_path
from llmtrain.data.pointers import POINTER, is_pointer
from llmtrain.errors import DataError

STDLIB_EXCLUDED = ("site-packages/**", "dist-packages/**", "**/__pycache__/**")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """A file, and its name relative to its source, which is the same on every machine; or a part of one.

    `survey` fills in `sha256`, `cuts`, `mtime_ns`, `really`. A part begins at byte `start`, before which
    `first` records lie, and ends before byte `end` (None: with the file).
    """

    path: Path
    name: str
    bytes: int
    sha256: str = ""  # of name, size and content
    cuts: tuple[tuple[int, int], ...] = ()  # where it may be cut: (byte, records that lie before it)
    start: int = 0
    end: int | None = None
    first: int = 0
    mtime_ns: int = 0
    really: str = ""  # what its first bytes say it is where its name says something else


def list_files(source: SourceSection, field: str) -> list[SourceFile]:
    """The files of a `path` or `stdlib` source, sorted by name. Raises DataError when there are none."""
    if source.stdlib:
        base, pattern = Path(sysconfig.get_path("stdlib")), "**/*.py"
        excluded = STDLIB_EXCLUDED + source.exclude
    else:
        assert source.path is not None, "only path and stdlib sources have files"
        base, pattern = _base_and_pattern(source.path)
        excluded = source.exclude
    wanted = re.compile(re.escape(pattern) if base.is_file() else glob_regex(pattern))
    unwanted = [re.compile(f"{re.escape(each)}|{glob_regex(each)}") for each in excluded]
    found = []
    for path in [base] if base.is_file() else _walk(base):
        name = path.name if path == base else path.relative_to(base).as_posix()
        if wanted.fullmatch(name) and not any(each.fullmatch(name) for each in unwanted):
            found.append(SourceFile(path, name, path.stat().st_size))
    if not found:
        raise DataError(
            f"{field} = {source.label!r}: {_why_none(source.path or '')}: correct the path or pattern"
        )
    return sorted(found, key=lambda file: file.name)


def _why_none(path: str) -> str:
    """Why a source has no file: its folder isn't there, holds none, or none that fits."""
    base, pattern = _base_and_pattern(path)
    if not base.exists():
        return no_such_path(str(base), "dataset")
    fits = "" if pattern == "**" else f" that fits {pattern}"
    return f"no file there (seen from {os.getcwd()}){fits}"


def _base_and_pattern(path: str) -> tuple[Path, str]:
    """The folder above the first wildcard, and the rest; a plain folder means everything in it.

    What lies there by the very name is no wildcard: `data [2024]/` is a folder, above a pattern too.
    """
    parts = Path(os.path.expanduser(path)).parts
    literal = 0
    while literal < len(parts) and (
        not _WILD.search(parts[literal]) or os.path.lexists(Path(*parts[: literal + 1]))
    ):
        literal += 1
    base = Path(*parts[:literal])
    if literal == len(parts):
        return base, base.name if base.is_file() else "**"
    return base, "/".join(parts[literal:])


def glob_regex(pattern: str) -> str:
    """A glob as a regular expression over `/`-separated names; `**` spans folders."""
    result, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            result, at = result + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            result, at = result + ".*", at + 2
        elif pattern[at] == "*":
            result, at = result + "[^/]*", at + 1
        elif pattern[at] == "?":
            result, at = result + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\")
            inside = "^" + inside[1:] if inside[0] == "!" else inside.replace("^", r"\^", 1)
            result, at = result + f"[{inside}]", end + 1
        else:
            result, at = result + re.escape(pattern[at]), at + 1
    return result


def _walk(base: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(base):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def read_chunks(
    path: Path, progress: Callable[[int], None] | None = None, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of a file in pieces, unpacked if it is packed; `progress` hears of the packed bytes read.

    `start` and `end` bound what is read of the file as it lies. Raises DamagedFileError where it can't go on.
    """
    try:
        with open(path, "rb") as file:
            packing = None if start else packing_by(file.read(HEAD_BYTES), path)
            size = PACKED_CHUNK_BYTES if packing else CHUNK_BYTES
            file.seek(start)
            raw = _counted(_bounded(file, size, end), progress)
            yield from unpack(raw, packing) if packing else raw
    except OSError as error:
        raise DamagedFileError(f"unreadable file ({error.strerror})") from None


def _bounded(file: BinaryIO, size: int, end: int | None) -> Iterator[bytes]:
    at = file.tell()
    while piece := file.read(size if end is None else min(size, end - at)):
        at += len(piece)
        yield piece


def _counted(chunks: Iterator[bytes], progress: Callable[[int], None] | None) -> Iterator[bytes]:
    for chunk in chunks:
        if progress is not None:
            progress(len(chunk))
        yield chunk


def split_chunks(chunks: Iterator[bytes], separator: bytes, longest: int) -> Iterator[bytes | None]:
    """Pieces between separators, None for one of more than `longest` bytes, which is never held whole.

    A separator at the very end ends the last piece; it does not begin an empty one.
    """
    rest, skipping = b"", False
    for chunk in chunks:
        *pieces, rest = (rest + chunk).split(separator)
        for piece in pieces:
            yield None if skipping or len(piece) > longest else piece
            skipping = False
        if skipping or len(rest) > longest + len(separator) - 1:  # the rest may end in part of a separator
            skipping = True
            rest = rest[len(rest) - len(separator) + 1 :]
    if skipping or len(rest) > longest:
        yield None
    elif rest:
        yield rest


def join_chunks(chunks: Iterator[bytes], longest: int) -> bytes | None:
    """The whole content, or None when it is more than `longest` bytes."""
    held, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > longest:
            return None
        held.append(chunk)
    return b"".join(held)


def survey(
    files: list[SourceFile],
    separator_of: Callable[[SourceFile], bytes | None],
    cut_bytes: int,
    progress: Callable[[int], None],
) -> list[SourceFile]:
    """Reads every byte once, for the hashes of the files and for the places where they may be cut.

    separator_of  what ends a record in a file that can be read from any record on, None for another
    cut_bytes     there is a cut at the first end of a record after about so many bytes
    Unreadable files count by name and size.
    """

    def read(file: SourceFile) -> SourceFile:
        digest = hashlib.sha256(f"{file.name}\0{file.bytes}\0".encode("utf-8", "surrogateescape"))
        cutter = _Cutter(separator_of(file), cut_bytes)
        mtime_ns, really = 0, ""
        try:
            with open(file.path, "rb") as opened:
                mtime_ns = os.fstat(opened.fileno()).st_mtime_ns
                while piece := opened.read(CHUNK_BYTES):
                    really = really if cutter.at else _really(piece, file.path)
                    digest.update(piece)
                    cutter.add(piece)
        except OSError:
            digest.update(b"unreadable")
        cuts = cutter.before(file.bytes)
        return replace(file, sha256=digest.hexdigest(), cuts=cuts, mtime_ns=mtime_ns, really=really)

    with ThreadPoolExecutor(max_workers=4) as pool:
        surveyed = []
        for file in pool.map(read, files):
            surveyed.append(file)
            progress(file.bytes)
    return surveyed


def _really(head: bytes, path: Path) -> str:
    """What a file is by its first bytes, if its name says something else."""
    if is_pointer(head):
        return POINTER
    packing = packing_by(head, path)
    return "" if packing is None or packing is named_packing(path) else packing.name


def content_digest(files: Iterable[SourceFile]) -> str:
    """sha256 over the names and contents of surveyed files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.sha256.encode())
    return whole.hexdigest()


class _Cutter:
    """Finds in the pieces of a file ends of records about `cut_bytes` apart, and counts records."""

    def __init__(self, separator: bytes | None, cut_bytes: int):
        self.separator = separator
        self.cut_bytes = cut_bytes
        self.at = self.records = self.last = 0
        self.tail = b""  # what may begin a separator that ends in the next piece
        self.cuts: list[tuple[int, int]] = []

    def add(self, piece: bytes) -> None:
        """Takes in the next piece of the file."""
        self.at += len(piece)
        if self.separator is None:
            return
        if len(self.separator) == 1:  # counting is much faster than splitting
            ended, rest = piece.count(self.separator), len(piece) - 1 - piece.rfind(self.separator)
        else:
            *before, after = (self.tail + piece).split(self.separator)
            ended, rest = len(before), len(after)
            self.tail = after[-(len(self.separator) - 1) :]
        self.records += ended
        if ended and self.at - rest - self.last >= self.cut_bytes:
            self.last = self.at - rest
            self.cuts.append((self.last, self.records))

    def before(self, end: int) -> tuple[tuple[int, int], ...]:
        """The cuts found that leave something to read after them."""
        return tuple(cut for cut in self.cuts if cut[0] < end)
