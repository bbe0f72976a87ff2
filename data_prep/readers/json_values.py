"""JSON files: one object, objects one after another, or an array of them, however they are laid out.

The file is cut into objects without being parsed as a whole, so an array of any length is read in bounded
memory, and one that is broken inside takes no other with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.documents import Damage, Record, too_large
from data_prep.files import DamagedFileError, SourceFile

_BETWEEN = re.compile(rb'["{}\[\],]')  # outside of every object
_WITHIN = re.compile(rb'["{}\[\]]')
_QUOTED = re.compile(rb'["\\]')


def read_json(file: SourceFile, chunks: Iterator[bytes], longest: int) -> Iterator[Record]:
    """The objects of a file, or of the arrays it consists of, numbered from 1."""
    number = 0
    cutter = _Cutter(longest)
    try:
        for piece in (piece for part in chunks for piece in cutter.cut(part)):
            number += 1
            yield Record(too_large(longest) if piece is None else piece, file.name, number)
    except DamagedFileError as damage:
        yield Record(Damage(str(damage), ""), file.name, number + 1)
        return
    for piece in cutter.rest():
        number += 1
        yield Record(too_large(longest) if piece is None else piece, file.name, number)
    if not number:
        yield Record(Damage("empty", ""), file.name)


class _Cutter:
    """Cuts a stream into its outermost objects, and what stands between them; None is one of more than
    `longest` bytes. Arrays around objects are passed over.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self._depth = 0  # of braces and brackets, counted from the outermost brace
        self._quoted = False
        self._escaped = False  # the next character is only a character
        self._held: list[bytes] = []
        self._size = 0

    def cut(self, chunk: bytes) -> Iterator[bytes | None]:
        """The values that end in this chunk."""
        at, start = 0, 0
        while at < len(chunk):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            pattern = _QUOTED if self._quoted else _WITHIN if self._depth else _BETWEEN
            found = pattern.search(chunk, at)
            if found is None:
                break
            at, sign = found.end(), found[0]
            if self._quoted:
                self._quoted = self._escaped = sign == b"\\"
            elif sign == b'"':
                self._quoted = True
            elif self._depth:
                self._depth += 1 if sign in b"{[" else -1
                if not self._depth:
                    yield from self._ended(chunk[start:at])
                    start = at
            elif sign != b"}":
                yield from self._ended(chunk[start : found.start()])
                start = found.start() if sign == b"{" else at
                self._depth = 1 if sign == b"{" else 0
        self._hold(chunk[start:])

    def rest(self) -> Iterator[bytes | None]:
        """What the end of the file leaves open."""
        return self._ended(b"")

    def _hold(self, piece: bytes) -> None:
        piece = piece if self._size else piece.removeprefix(b"\xef\xbb\xbf").lstrip()
        self._size += len(piece)
        if self._size > self.longest:
            self._held = []
        elif piece:
            self._held.append(piece)

    def _ended(self, piece: bytes) -> Iterator[bytes | None]:
        self._hold(piece)
        if self._size:
            yield None if self._size > self.longest else b"".join(self._held)
        self._held, self._size = [], 0
