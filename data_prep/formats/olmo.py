"""dolma's and OLMo-core's `.npy`, which are no NumPy files: tokens back to back without a header.

A document ends with the end mark. OLMo-core takes the smallest unsigned type that holds the vocabulary
(`NumpyDatasetConfig.get_dtype`), so that is what is written. Read: 16 and 32 bits, told apart by the bytes.
"""

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

HEADER = b"\x93NUMPY"
LOOKED_AT = 1 << 20  # bytes from the start that tell the width


def _read(path: Path, vocabulary: Vocabulary) -> Iterator[TokenFile]:
    with open(path, "rb") as file:
        start = file.read(LOOKED_AT)
    if start.startswith(HEADER):
        raise DataError(f"{path} is a NumPy file with a header, not dolma's: write it with `array.tofile`")
    tokens = mapped(path, _dtype(start, vocabulary.size))
    yield TokenFile(path, tokens, ends_by_mark(tokens, vocabulary.eos_id))


def _dtype(start: bytes, vocab_size: int) -> np.dtype:
    """uint32 when each other pair of bytes is as small as the upper half of an id; uint16 otherwise."""
    upper = np.frombuffer(start[: len(start) // 4 * 4], "<u2")[1::2]
    whole = len(start) % 4 == 0
    return np.dtype("<u4" if whole and len(upper) and upper.max() <= (vocab_size - 1) >> 16 else "<u2")


def _write(path: Path, vocabulary: Vocabulary) -> FlatWriter:
    return FlatWriter(path, np.dtype(np.min_scalar_type(vocabulary.size - 1)), vocabulary.eos_id)


OLMO = TokenFormat(found_by_suffix(".npy"), lambda path: [path], named_by_suffix(".npy"), _read, _write)
