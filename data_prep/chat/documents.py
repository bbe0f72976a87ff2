"""Records of fine-tuning data as documents whose samples are encoded already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import Exchange, Names, exchanges
from data_prep.chat.spans import NOTHING_LEARNT
from data_prep.chat.template import NAMED_TEMPLATES, template_files
from data_prep.chat.tools import without_nulls
from data_prep.corpus import CorpusConfig
from data_prep.documents import Document, Encoding, Record, RejectedError, Tally, row_of
from data_prep.tokenizer import FILES
from llmtrain.data.manifest import Kind

# Good input, left out because it was asked for.
DROPPED = (
    "too long",
    "too long, and not even its last turns fit",
    "no token to train on once truncated",
    NOTHING_LEARNT,
)
NOTE = "note: "  # begins what the report says of records that were taken
MOST_NOTED = 50  # different notes


@dataclass(frozen=True)
class SampleParser:
    """Records of one kind to documents: with one sample, or with two that answer the same prompt."""

    kind: Kind
    encoder: SampleEncoder

    @classmethod
    def open(cls, corpus: CorpusConfig, tokenizer_folder: Path, eos_id: int | None) -> SampleParser | None:
        """The parser of a corpus of fine-tuning data, None for one of text.

        Raises DataError when conversations are sure to come and the chat template can't be used.
        """
        if corpus.kind == "text":
            return None
        encoder = SampleEncoder(tokenizer_folder, corpus.samples, eos_id if corpus.append_eos else None)
        if corpus.kind == "chat" or corpus.samples.apply_chat_template:
            encoder.check_template()
        return cls(corpus.kind, encoder)

    def unused_templates(self) -> tuple[str, ...]:
        """A sentence for each chat template of the tokenizer that renders nothing."""
        if self.kind != "chat" and not self.encoder.settings.apply_chat_template:
            return ()
        return tuple(
            f"the chat template {name!r} of the tokenizer is not used (samples.chat_template names one)"
            for name in self.encoder.template.unused
        )

    def parse(
        self, records: Sequence[Record], encoding: Encoding, names: Names, tally: Tally
    ) -> Iterator[Document]:
        """The documents of some records; what is none is rejected with its reason. `names` are the columns'.

        A pair is only kept whole.
        """
        for record in records:
            tally.documents_in += 1
            try:
                yield self._document(record, encoding, names, tally)
            except RejectedError as error:
                where = f"{record.where} ({error.detail})" if error.detail else record.where
                leave_out = tally.drop if str(error) in DROPPED else tally.reject
                leave_out(str(error), where)
            except RecursionError:
                tally.reject("nested too deeply", record.where)

    def _document(self, record: Record, encoding: Encoding, names: Names, tally: Tally) -> Document:
        row = row_of(record, encoding)
        if encoding == "row":  # a struct of a table has every key of every row
            row = without_nulls(row)
        rows = exchanges(row, self.kind, names, self.encoder.settings.apply_chat_template)
        samples = tuple(map(self.encoder.encode, rows))
        for note in {note for exchange in rows for note in self._notes(exchange)}:
            if note in tally.found or len(tally.found) < MOST_NOTED:
                tally.find(note)
        return Document("", record.file, record.number, samples=samples)

    def _notes(self, exchange: Exchange) -> Iterator[str]:
        """What has no effect, in words for the report."""
        if exchange.plain:
            if self.encoder.has_template:
                yield f"{NOTE}plain text, as it stands (samples.apply_chat_template: true makes turns of it)"
            return
        for what in self.encoder.without_effect(exchange):
            yield f"{NOTE}{what}, which the chat template does not read"


def template_sha256(folder: Path) -> str:
    """sha256 over all of a tokenizer folder that a rendering depends on."""
    digest = hashlib.sha256()
    named = [f"{NAMED_TEMPLATES}/{path.name}" for path in template_files(folder)]
    for name in (*FILES[1:], *named):
        path = folder / name
        digest.update(name.encode() if name in named else b"")
        digest.update(path.read_bytes() if path.is_file() else b"\0")
    return digest.hexdigest()
