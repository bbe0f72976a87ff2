"""Web archives (ISO 28500): the pages of a WARC file's responses, the texts of a WET file's conversions.

Our own reader: a record is a few header lines and as many bytes as they say, and the libraries that read it
end quietly where a file is cut, or read a header line of any length into memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from data_prep.documents import Damage, Encoding, Record, too_large
from data_prep.files import DamagedFileError, SourceFile
from data_prep.readers.stream import ChunkStream

HEAD_BYTES = 1 << 16  # of a record's or a response's header; more is no sound archive
PAGES = ("text/html", "application/xhtml+xml")
Head = dict[str, str]


def read_warc(file: SourceFile, chunks: Iterator[bytes], longest: int) -> Iterator[tuple[Encoding, Record]]:
    """Responses as pages and conversions as text, numbered among all records of the archive from 1."""
    stream = ChunkStream(chunks, HEAD_BYTES + longest)
    number, used = 1, 0
    try:
        while (head := _record_head(stream)) is not None:
            size = int(head["content-length"])
            kind = head.get("warc-type", "").lower()
            if kind in ("response", "conversion"):
                used += 1
                content = _block(stream, size, longest)
                meta = _meta(head)
                if isinstance(content, bytes):
                    content = _page(content, longest) if kind == "response" else content
                if isinstance(content, bytes) and len(content) > longest:
                    content = too_large(longest)
                encoding: Encoding = "html" if kind == "response" else "text"
                yield encoding, Record(content, file.name, number, meta)
            elif stream.skip(size) < size:
                raise DamagedFileError("truncated WARC file")
            number += 1
    except DamagedFileError as damage:
        yield "text", Record(Damage(str(damage).replace("archive", "WARC file"), ""), file.name, number)
        return
    if not used:
        yield "text", Record(Damage("empty", "no response and no conversion"), file.name)


def _record_head(stream: ChunkStream) -> Head | None:
    """The header of the next record; None at the end of the file."""
    while (line := stream.readline()) in (b"\r\n", b"\n"):
        pass
    if not line:
        return None
    if not line.startswith(b"WARC/"):
        raise DamagedFileError("damaged WARC file")
    lines, size = [], 0
    while (line := stream.readline()).strip():
        size += len(line)
        if size > HEAD_BYTES:
            raise DamagedFileError("damaged WARC file")
        lines.append(line)
    if not line:
        raise DamagedFileError("truncated WARC file")
    head = _head(lines)
    if not head.get("content-length", "").isdecimal():
        raise DamagedFileError("damaged WARC file")
    return head


def _head(lines: list[bytes]) -> Head:
    pairs = (line.decode("utf-8", "replace").partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _meta(head: Head) -> dict[str, Any]:
    known = {"url": head.get("warc-target-uri", "").strip("<>"), "date": head.get("warc-date", "")}
    return {name: value for name, value in known.items() if value}


def _block(stream: ChunkStream, size: int, longest: int) -> bytes | Damage:
    if size > HEAD_BYTES + longest:
        if stream.skip(size) < size:
            raise DamagedFileError("truncated WARC file")
        return too_large(longest)
    content = stream.read(size)
    if len(content) < size:
        raise DamagedFileError("truncated WARC file")
    return content


def _page(response: bytes, longest: int) -> bytes | Damage:
    """The body of an HTTP response in UTF-8 where its header names an encoding."""
    top, _, body = response.partition(b"\r\n\r\n")
    status, *lines = top.split(b"\r\n")
    head = _head(lines)
    if status.split(b" ")[1:2] != [b"200"]:
        return Damage("HTTP status is not 200", status[:100].decode("latin-1"))
    kind, *parameters = (part.strip() for part in head.get("content-type", "").lower().split(";"))
    if kind not in PAGES:
        return Damage("HTTP response is no page", kind)
    try:
        if head.get("transfer-encoding", "").lower() == "chunked":
            body = _unchunked(body)
        if head.get("content-encoding", "identity").lower() not in ("identity", ""):
            body = _inflated(body, head["content-encoding"].lower(), longest)
    except (ValueError, zlib.error):
        return Damage("broken HTTP body", "")
    charset = next((text[8:].strip("\"' ") for text in parameters if text.startswith("charset=")), "utf-8")
    try:
        return body.decode(charset).encode()
    except (LookupError, UnicodeError):
        return body  # the page may say it better


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size <= 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _inflated(body: bytes, encoding: str, longest: int) -> bytes:
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(encoding)
    return zlib.decompressobj(wbits=47).decompress(body, longest + 1)
