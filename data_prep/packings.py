"""Packed files: gzip, zstd, bz2 and xz, known by their first bytes, unpacked in pieces of bounded size."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

CHUNK_BYTES = 1 << 20
PACKED_CHUNK_BYTES = 1 << 14
XZ_MEMORY_BYTES = 1 << 28  # a file may ask for more (xz -9 asks for 65 MiB) and is refused


class DamagedFileError(Exception):
    """A file that can't be read to its end; the message is the reason."""


@dataclass(frozen=True)
class Packing:
    """How a packed file is unpacked: its name, a decompressor of one member, and how many bytes it is fed.

    A bomb stays bounded: 4 KiB of gzip become 4 MiB at most, 256 bytes of zstd (64 blocks of one repeated
    byte) 8 MiB; bz2 and xz, which pack a million to one, stop by themselves at CHUNK_BYTES.
    """

    name: str
    start: Callable[[], Any]
    feed: int = PACKED_CHUNK_BYTES


GZIP = Packing("gzip", lambda: zlib.decompressobj(wbits=31), feed=1 << 12)
ZSTD = Packing("zstd", lambda: zstandard.ZstdDecompressor().decompressobj(), feed=256)
BZ2 = Packing("bz2", bz2.BZ2Decompressor)
XZ = Packing("xz", lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES))
SUFFIXES = {
    **dict.fromkeys((".gz", ".gzip", ".bgz", ".dz"), GZIP),
    **dict.fromkeys((".zst", ".zstd"), ZSTD),
    ".bz2": BZ2,
    ".xz": XZ,
}
OF_TAR = {".tgz": GZIP, ".tzst": ZSTD, ".tbz2": BZ2, ".txz": XZ}  # packing and format in one suffix
_FIRST_BYTES = (
    (b"\x1f\x8b\x08", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"\xfd7zXZ\x00", XZ),
    *((b"BZh%d1AY&SY" % level, BZ2) for level in range(1, 10)),
)
HEAD_BYTES = 16


def packing_of(path: Path) -> Packing | None:
    """How a file is packed: as its first bytes say, or else its suffix; None when it isn't."""
    try:
        with open(path, "rb") as file:
            return packing_by(file.read(HEAD_BYTES), path)
    except OSError:
        return packing_by(b"", path)


def packing_by(head: bytes, path: Path) -> Packing | None:
    """As `packing_of`, of a file whose first HEAD_BYTES are known."""
    return next((packing for magic, packing in _FIRST_BYTES if head.startswith(magic)), named_packing(path))


def named_packing(path: Path) -> Packing | None:
    """The packing that a name's suffix stands for, in capitals or not."""
    suffix = path.suffix.lower()
    return SUFFIXES.get(suffix) or OF_TAR.get(suffix)


_BROKEN = (zlib.error, zstandard.ZstdError, lzma.LZMAError, ValueError, OSError)


def unpack(raw: Iterator[bytes], packing: Packing) -> Iterator[bytes]:
    """What the members or frames hold, back to back, in pieces of about CHUNK_BYTES.

    Raises DamagedFileError where it can't go on; an end in the middle of a member is damage, not an end.
    """
    return _gathered(_members(raw, packing))


def _members(raw: Iterator[bytes], packing: Packing) -> Iterator[bytes]:
    member, members = None, 0
    for chunk in raw:
        while chunk:
            if member is None and members and not (chunk := chunk.lstrip(b"\0")):
                break  # zeros after a member fill up a block
            if member is None:
                member, members = packing.start(), members + 1
            fed, chunk = chunk[: packing.feed], chunk[packing.feed :]
            try:
                yield from _expanded(member, fed)
            except _BROKEN:
                raise DamagedFileError(f"damaged {packing.name} file") from None
            if member.eof:
                chunk, member = member.unused_data + chunk, None
    if member is not None or not members:
        raise DamagedFileError(f"truncated {packing.name} file")


def _expanded(member: Any, packed: bytes) -> Iterator[bytes]:
    if not isinstance(member, bz2.BZ2Decompressor | lzma.LZMADecompressor):
        yield member.decompress(packed)
        return
    yield member.decompress(packed, CHUNK_BYTES)
    while not (member.eof or member.needs_input):
        yield member.decompress(b"", CHUNK_BYTES)


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to about CHUNK_BYTES."""
    held, size = [], 0
    try:
        for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size >= CHUNK_BYTES:
                yield b"".join(held)
                held, size = [], 0
    except DamagedFileError:
        yield b"".join(held)
        raise
    yield b"".join(held)
