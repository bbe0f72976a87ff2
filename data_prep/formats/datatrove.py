"""datatrove's `.ds`: tokens back to back, uint16 up to 65 536 ids and uint32 above, and beside it

    .ds.index      u64 per document: the token at which it ends
    .ds.metadata   lines: `tokenizer|bytes per token` (older: the tokenizer alone), tokens, tokens for people

Layout after datatrove, `pipeline/tokens/tokenizer.py` (TokenizedFile) and `utils/tokenization.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.formats.token_files import (
    FlatWriter,
    TokenFile,
    TokenFormat,
    Vocabulary,
    ends_by_mark,
    found_by_suffix,
    mapped,
    named_by_suffix,
)
from llmtrain.errors import DataError

WIDTHS: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _parts(path: Path) -> list[Path]:
    return [path, *(part for name in ("index", "metadata") if (part := _beside(path, name)).is_file())]


def _read(path: Path, vocabulary: Vocabulary) -> Iterator[TokenFile]:
    if _beside(path, "loss").is_file():
        raise DataError(f"{path} has a loss mask ({path.name}.loss), which is not read: make it without one")
    index = _beside(path, "index")
    ends = mapped(index, np.dtype("<u8")).astype(np.int64) if index.is_file() else None
    tokens = mapped(path, WIDTHS[_width(path, ends, vocabulary)])
    yield TokenFile(path, tokens, ends_by_mark(tokens, vocabulary.eos_id) if ends is None else ends)


def _width(path: Path, ends: np.ndarray | None, vocabulary: Vocabulary) -> int:
    """Bytes per token: as the index proves, or the metadata says, or the vocabulary asks for."""
    size = path.stat().st_size
    if ends is not None and len(ends) and ends[-1] > 0:
        width = size // int(ends[-1])
        if width not in WIDTHS or size % int(ends[-1]):
            raise DataError(
                f"{path} has {size} bytes, its index says {int(ends[-1])} tokens: one of them is cut"
            )
        return width
    metadata = _beside(path, "metadata")
    first = metadata.read_text(encoding="utf-8").split("\n")[0] if metadata.is_file() else ""
    said = first.rpartition("|")[2]
    return int(said) if said in ("2", "4") else (4 if vocabulary.size > 65536 else 2)


class _Writer(FlatWriter):
    def __init__(self, path: Path, vocabulary: Vocabulary):
        self.width = 4 if vocabulary.size > 65536 else 2
        self.name = vocabulary.name
        self._ends: list[np.ndarray] = []
        super().__init__(path, WIDTHS[self.width])

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self._ends.append(self.tokens + np.cumsum(lengths))
        super().add(tokens, lengths)

    def close(self) -> Sequence[Path]:
        index, metadata = _beside(self.path, "index"), _beside(self.path, "metadata")
        index.write_bytes(b"".join(ends.astype("<u8").tobytes() for ends in self._ends))
        lines = [f"{self.name}|{self.width}", str(self.tokens), f"{self.tokens:,} tokens"]
        metadata.write_text("\n".join(lines), encoding="utf-8")
        return [*super().close(), index, metadata]


DATATROVE = TokenFormat(found_by_suffix(".ds"), _parts, named_by_suffix(".ds"), _read, _Writer)
