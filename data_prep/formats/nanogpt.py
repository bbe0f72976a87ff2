"""nanoGPT's `train.bin`: uint16 tokens back to back, nothing else. A document ends with the end mark."""

from __future__ import annotations

from collections.abc import Iterator
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

UINT16 = np.dtype("<u2")
LLM_C_MAGIC = (20240520).to_bytes(4, "little")  # llm.c's files of the same name have a header of 1024 bytes


def _read(path: Path, vocabulary: Vocabulary) -> Iterator[TokenFile]:
    with open(path, "rb") as file:
        if file.read(4) == LLM_C_MAGIC:
            raise DataError(f"{path} has the header of llm.c: cut off its first 1024 bytes (`tail -c +1025`)")
    tokens = mapped(path, UINT16)
    yield TokenFile(path, tokens, ends_by_mark(tokens, vocabulary.eos_id))


def _write(path: Path, vocabulary: Vocabulary) -> FlatWriter:
    if vocabulary.size > 1 << 16:
        raise DataError(
            f"{path}: nanoGPT's tokens are uint16, this vocabulary has {vocabulary.size} ids: "
            "export to megatron, datatrove, olmo or parquet"
        )
    return FlatWriter(path, UINT16, vocabulary.eos_id)


NANOGPT = TokenFormat(found_by_suffix(".bin"), lambda path: [path], named_by_suffix(".bin"), _read, _write)
