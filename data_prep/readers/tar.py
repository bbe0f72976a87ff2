"""WebDataset tar files: members of one name but for the extension are one sample. Never extracted.

A sample is a row: the keys of its `.json` member, and its other members by extension; `.txt` is `text` too.
Only members that the fields ask for are read; pictures and sound are passed over.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from data_prep.documents import Damage, Record, too_large
from data_prep.files import DamagedFileError, SourceFile
from data_prep.readers.stream import ChunkStream

HEADER_BYTES = 1 << 20  # of a member's name and attributes; more is no sound archive


def read_tar(
    file: SourceFile, chunks: Iterator[bytes], columns: Sequence[str], longest: int
) -> Iterator[Record]:
    """The samples of an archive, numbered from 1."""
    wanted = {"txt", "json", *columns}
    stream = ChunkStream(chunks, HEADER_BYTES + longest)
    key, number = None, 0
    sample: dict[str, bytes] | Damage = {}
    try:
        for member in _members(stream):
            stem, extension = _name(member)
            if stem != key:
                if number:
                    yield Record(sample, file.name, number)
                key, number, sample = stem, number + 1, {}
            if isinstance(sample, Damage):
                continue
            problem = _problem(member, longest if extension in wanted else None)
            if problem is not None:
                sample = problem
            elif extension in wanted:
                sample[extension] = _content(stream, member)
    except DamagedFileError as damage:
        yield Record(Damage(str(damage), ""), file.name, max(1, number))
        return
    yield Record(sample if number else Damage("empty", "no sample"), file.name, max(1, number))


def _members(stream: ChunkStream) -> Iterator[tarfile.TarInfo]:
    """The members that are no folders. Raises DamagedFileError where the archive is cut or broken."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # it would remember them all
                if not member.isdir():
                    yield member
            # tarfile takes a broken or missing header for the end; the end is a block of zeros.
            if stream.last != bytes(tarfile.BLOCKSIZE):
                cut = len(stream.last) < tarfile.BLOCKSIZE
                raise DamagedFileError(f"{'truncated' if cut else 'damaged'} tar file")
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise DamagedFileError(_reason(str(error))) from None


def _content(stream: ChunkStream, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise DamagedFileError("truncated tar file")
    return content


def _reason(error: str) -> str:
    if error == "empty file":
        return "empty"
    cut = "unexpected end of data" in error or "truncated" in error
    return f"{'truncated' if cut else 'damaged'} tar file"


def _name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Folder and name up to the first dot of the name, and what follows it: WebDataset's rule."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}/{stem}", extension.lower()


def _problem(member: tarfile.TarInfo, longest: int | None) -> Damage | None:
    """Why a member spoils its sample; `longest` is None for one that is not read."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        return Damage("unsafe name in tar file", member.name)
    if not member.isfile() or member.issparse():
        return Damage("link or device in tar file", member.name)
    return too_large(longest) if longest is not None and member.size > longest else None
