"""Chunks of bytes as something that archives are read from."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.files import DamagedFileError


class ChunkStream:
    """Chunks as a file that is read forward only, in pieces of at most `longest` bytes.

    Raises DamagedFileError for what no sound archive asks for: a longer piece, or a step back.
    """

    def __init__(self, chunks: Iterator[bytes], longest: int):
        self._chunks = chunks
        self._longest = longest
        self._held = b""
        self._at = 0  # of the first byte that was not read yet, in _held
        self._before = 0  # bytes of the stream before _held
        self.last = b""  # what the last read() gave

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        if not 0 <= size <= self._longest:
            raise DamagedFileError("damaged archive")
        parts, missing = [], size
        while missing and self._filled():
            parts.append(self._held[self._at : self._at + missing])
            self._at += len(parts[-1])
            missing -= len(parts[-1])
        self.last = b"".join(parts)
        return self.last

    def readline(self) -> bytes:
        """The next line with its line end. Raises DamagedFileError when it is longer than `longest`."""
        parts: list[bytes] = []
        while self._filled():
            end = self._held.find(b"\n", self._at) + 1
            parts.append(self._held[self._at : end or len(self._held)])
            self._at += len(parts[-1])
            if sum(map(len, parts)) > self._longest:
                raise DamagedFileError("damaged archive")
            if end:
                break
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Passes over `size` bytes; how many there were."""
        missing = size
        while missing > 0 and self._filled():
            step = min(missing, len(self._held) - self._at)
            self._at += step
            missing -= step
        return size - missing

    def tell(self) -> int:
        """How many bytes were read or skipped."""
        return self._before + self._at

    def seek(self, position: int) -> int:
        """Goes forward to a position in the stream."""
        if position < self.tell():
            raise DamagedFileError("damaged archive")
        self.skip(position - self.tell())
        return self.tell()

    def _filled(self) -> bool:
        """Makes sure that something is held, unless this is the end."""
        while self._at >= len(self._held):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._before += len(self._held)
            self._held, self._at = chunk, 0
        return True
