"""Records of fine-tuning data as documents whose samples are encoded already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import exchanges
from data_prep.corpus import CorpusConfig
from data_prep.documents import Document, Encoding, Record, RejectedError, Tally, row_of
from data_prep.tokenizer import FILES
from llmtrain.data.manifest import Kind

DROPPED = ("too long", "no token to train on once truncated")  # good input, left out because it was asked for


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
        if corpus.kind == "chat":
            encoder.check_template()
        return cls(corpus.kind, encoder)

    def parse(
        self, records: Sequence[Record], encoding: Encoding, names: Mapping[str, str], tally: Tally
    ) -> Iterator[Document]:
        """The documents of some records; what is none is rejected with its reason. `names` are the columns'.

        A pair is only kept whole.
        """
        for record in records:
            tally.documents_in += 1
            try:
                rows = exchanges(row_of(record, encoding), self.kind, names)
                samples = tuple(map(self.encoder.encode, rows))
            except RejectedError as error:
                where = f"{record.where} ({error.detail})" if error.detail else record.where
                leave_out = tally.drop if str(error) in DROPPED else tally.reject
                leave_out(str(error), where)
            else:
                yield Document("", record.file, record.number, samples=samples)


def template_sha256(folder: Path) -> str:
    """sha256 over all of a tokenizer folder that a rendering depends on."""
    digest = hashlib.sha256()
    for name in FILES[1:]:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"\0")
    return digest.hexdigest()
