"""The unit of data_prep, a `Document`, the `Record` it is read from, and the `Tally` that loses neither.

Text is kept byte for byte: line ends, NUL bytes and Unicode forms are not changed. Only the byte order
mark at the start of a document, which is an encoding mark and no text, is taken off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtrain.errors import DataError

KEPT_EXAMPLES = 3  # `file:line` remembered per reason

Encoding = Literal["text", "json", "value"]


@dataclass(slots=True)
class Document:
    """One text. `file` and `number` (1-based, 0 for a whole file) say where it came from.

    `meta` holds what the source knows besides (such as `url`) and what steps found (such as `language`).
    """

    text: str
    file: str
    number: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`file:number`, the same wherever the corpus lies: it decides the split."""
        return f"{self.file}:{self.number}" if self.number else self.file


@dataclass(slots=True)
class Damage:
    """In place of a record's content: why it, and what follows it in its file, could not be read."""

    reason: str
    detail: str


@dataclass(slots=True)
class Record:
    """What a source reads before anything is decided about it: bytes, a value of a table, or damage."""

    content: Any
    file: str
    number: int = 0

    @property
    def where(self) -> str:
        """The place as shown to people."""
        return f"{self.file}:{self.number}" if self.number else self.file


class RejectedError(Exception):
    """Raised where a record turns out to be no document; the message is the reason."""


@dataclass
class Tally:
    """Counts so that nothing gets lost: documents_in == documents_out + sum(rejected).

    `found` counts, by name, what steps found or changed in documents that go on (`pii: email`).
    """

    strict: bool = False
    documents_in: int = 0
    documents_out: int = 0
    repeats: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def find(self, what: str, count: int = 1) -> None:
        """A step found or changed something, whatever becomes of the document."""
        self.found[what] = self.found.get(what, 0) + count

    def reject(self, reason: str, where: str) -> None:
        """Bad input: counted, or with `strict` the end of the build. Raises DataError when strict."""
        if self.strict:
            raise DataError(f"{where}: {reason} (strict is on: every bad record ends the build)")
        self.drop(reason, where)

    def drop(self, reason: str, where: str) -> None:
        """Good input that a step leaves out on purpose."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < KEPT_EXAMPLES:
            examples.append(where)

    def add(self, other: Tally) -> None:
        """Takes over the counts of a later part of the corpus."""
        self.documents_in += other.documents_in
        self.documents_out += other.documents_out
        self.repeats += other.repeats
        for reason, count in other.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept += other.examples[reason][: KEPT_EXAMPLES - len(kept)]
        for what, count in other.found.items():
            self.find(what, count)


def parse(records: list[Record], encoding: Encoding, key: str, tally: Tally) -> Iterator[Document]:
    """Records as documents; what is none is rejected with its reason."""
    for record in records:
        tally.documents_in += 1
        try:
            text = _text_of(record, encoding, key)
        except RejectedError as rejection:
            tally.reject(str(rejection), record.where)
        else:
            yield Document(text, record.file, record.number)


def _text_of(record: Record, encoding: Encoding, key: str) -> str:
    if isinstance(record.content, Damage):
        raise RejectedError(record.content.reason)
    if encoding == "text":
        text: Any = _decode(record.content)
    elif encoding == "json":
        text = _json_field(record.content, key)
    else:
        text = record.content
        if text is None:
            raise RejectedError(f"no field '{key}'")
    if not isinstance(text, str):
        raise RejectedError(f"field '{key}' is not text")
    text = text.removeprefix("\ufeff")
    if not text or text.isspace():
        raise RejectedError("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedError("lone surrogate") from None
    return text


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RejectedError("not UTF-8") from None


def _json_field(raw: bytes, key: str) -> Any:
    line = _decode(raw).removeprefix("\ufeff")
    if not line or line.isspace():
        raise RejectedError("empty")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise RejectedError("broken JSON") from None
    if not isinstance(row, dict):
        raise RejectedError("not a JSON object")
    if row.get(key) is None:
        raise RejectedError(f"no field '{key}'")
    return row[key]
