"""The unit of data_prep, a `Document`, the `Record` it is read from, and the `Tally` that loses neither.

Text is kept byte for byte: line ends, NUL bytes and Unicode forms are not changed. Only the byte order
mark at the start of a document, which is an encoding mark and no text, is taken off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.readers.html import main_text
from llmtrain.errors import DataError

KEPT_EXAMPLES = 3  # `file:line` remembered per reason

Encoding = Literal["text", "html", "json", "row", "sample"]
"""What a record's content is: bytes of a text, of a page or of a JSON object; the columns of a table's row;
or the members of an archive's sample, by extension."""


@dataclass(slots=True)
class Document:
    """One text. `file` and `number` (1-based, 0 for a whole file) say where it came from.

    `meta` holds what the source knows besides (such as `url`) and what steps found (such as `language`).
    """

    text: str
    file: str
    number: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    samples: tuple[Any, ...] = ()  # fine-tuning data: what is written in place of the text, encoded already
    features: Any = field(default=None, repr=False, compare=False)  # what filters know of this very text

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
    """What a source reads before anything is decided about it: content by its encoding, or damage.

    `meta` is what the reader knows besides, such as the address of a page in a web archive.
    """

    content: Any
    file: str
    number: int = 0
    meta: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        if isinstance(self.content, bytes):
            return len(self.content)
        if isinstance(self.content, dict):
            return sum(len(value) for value in self.content.values() if isinstance(value, bytes | str)) + 1
        return 1

    @property
    def where(self) -> str:
        """The place as shown to people."""
        return f"{self.file}:{self.number}" if self.number else self.file


def too_large(longest: int) -> Damage:
    """In place of a record of more than `longest` bytes."""
    return Damage("too large", f"more than max_document_bytes = {longest}")


class RejectedError(Exception):
    """Raised where a record turns out to be no document: the reason, counted, and a detail of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


@dataclass
class Tally:
    """Counts so that nothing gets lost: documents_in == documents_out + sum(rejected).

    `bad` is the part of `rejected` that is bad input; the rest is what steps and weights left out on purpose.
    `found` counts, by name, what steps found or changed in documents that go on (`pii: email`).
    """

    strict: bool = False
    documents_in: int = 0
    documents_out: int = 0
    repeats: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def find(self, what: str, count: int = 1) -> None:
        """A step found or changed something, whatever becomes of the document."""
        self.found[what] = self.found.get(what, 0) + count

    def reject(self, reason: str, where: str) -> None:
        """Bad input: counted, or with `strict` the end of the build. Raises DataError when strict."""
        if self.strict:
            raise DataError(f"{where}: {reason} (strict is on: every bad record ends the build)")
        self.bad[reason] = self.bad.get(reason, 0) + 1
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
        for reason, count in other.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + count
        for what, count in other.found.items():
            self.find(what, count)

    def refuse_above(self, share: float | None) -> None:
        """Raises DataError when more than this share of all records is bad input."""
        count = sum(self.bad.values())
        if share is None or count <= share * self.documents_in:
            return
        reasons = "; ".join(
            f"{number} {reason} (such as {self.examples[reason][0]})"
            for reason, number in sorted(self.bad.items(), key=lambda item: (-item[1], item[0]))
        )
        raise DataError(
            f"max_reject_fraction = {share:g}: {count} of {self.documents_in} records are bad input "
            f"({count / self.documents_in:.2%}): {reasons}; mend the source, or allow more"
        )


def parse(
    records: list[Record],
    encoding: Encoding,
    key: str | Sequence[str],
    tally: Tally,
    meta: Mapping[str, str] | None = None,
) -> Iterator[Document]:
    """Records as documents; what is none is rejected with its reason.

    key   the field that is the text, or several, which are joined by blank lines
    meta  name in `Document.meta` → field it is taken from
    """
    for record in records:
        tally.documents_in += 1
        try:
            text, known = _text_of(record, encoding, key, meta or {})
        except RejectedError as rejection:
            tally.reject(str(rejection), record.where)
        else:
            yield Document(text, record.file, record.number, known)


def _text_of(
    record: Record, encoding: Encoding, key: str | Sequence[str], meta: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """The text, and what is known besides. Raises RejectedError with the reason why it is no document."""
    known = dict(record.meta or {})
    if isinstance(record.content, Damage):
        raise RejectedError(record.content.reason)
    if encoding == "text":
        text = _decode(record.content)
    elif encoding == "html":
        text = _page(record.content)
    else:
        row = row_of(record, encoding)
        text = _joined(row, key)
        found = {name: look_up(row, path) for name, path in meta.items()}
        known |= {name: value for name, value in found.items() if value is not None}
    text = text.removeprefix("\ufeff")
    if not text or text.isspace():
        raise RejectedError("empty")
    if not text.isascii():  # which is known without a look at the text
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RejectedError("lone surrogate") from None
    return text, known


def row_of(record: Record, encoding: Encoding) -> Mapping[str, Any]:
    """The fields of a record. Raises RejectedError when it has none."""
    if isinstance(record.content, Damage):
        raise RejectedError(record.content.reason)
    if encoding == "json":
        return _json_object(record.content)
    if encoding == "sample":
        return _sample(record.content)
    assert encoding == "row", f"a record of {encoding} has no fields"
    return record.content


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RejectedError("not UTF-8") from None


def _page(raw: bytes) -> str:
    if not raw or raw.isspace():
        raise RejectedError("empty")
    try:
        text = main_text(raw)
    except UnicodeDecodeError:
        raise RejectedError("not UTF-8, nor what the page declares") from None
    if text is None:
        raise RejectedError("HTML without main text")
    return text


def _json_object(raw: bytes) -> dict[str, Any]:
    line = _decode(raw).removeprefix("\ufeff")
    if not line or line.isspace():
        raise RejectedError("empty")
    try:
        row = _ROWS.decode(line)
    except (ValueError, RecursionError):
        raise RejectedError("broken JSON") from None
    if not isinstance(row, dict):
        raise RejectedError("not a JSON object")
    return row


def _sole_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that says a key twice does not say which value is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise RejectedError("duplicate JSON key")
    return row


_ROWS = json.JSONDecoder(object_pairs_hook=_sole_keys)


def _sample(members: dict[str, bytes]) -> dict[str, Any]:
    """The keys of a sample's .json member, then its other members by extension; .txt is `text` too."""
    row = _json_object(members["json"]) if "json" in members else {}
    row |= {name: _decode(raw) for name, raw in members.items() if name != "json"}
    return row | ({"text": row["txt"]} if "txt" in members else {})


def _joined(row: Mapping[str, Any], key: str | Sequence[str]) -> str:
    """The text of one field, or of those of several that the row has."""
    names = [key] if isinstance(key, str) else key
    texts = []
    for name in names:
        value = look_up(row, name)
        if isinstance(value, bytes):
            value = _decode(value)
        if value is not None and not isinstance(value, str):
            raise RejectedError(f"field '{name}' is not text")
        if value is not None:
            texts.append(value)
    if not texts:
        raise RejectedError(f"no field '{', '.join(names)}'")
    return texts[0] if isinstance(key, str) else "\n\n".join(texts)


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """The value under a key, or under keys in keys (`page.url`); None when there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
