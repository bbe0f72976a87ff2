"""One shard of tokens: Megatron's `.bin` and `.idx` pair, written and read with numpy alone.

`.bin` is token ids back to back. `.idx` (little-endian, arrays unaligned from byte 34 on):

    0   9 bytes   b"MMIDIDX\\x00\\x00"
    9   u64       version, 1
    17  u8        dtype code: 4 = int32, 8 = uint16 (the two that hold tokens here)
    18  u64       n, sequences
    26  u64       d, documents + 1
    34  i32[n]    tokens of each sequence
    .   i64[n]    byte at which each sequence starts in `.bin`
    .   i64[d]    sequence at which each document starts; the last is n

Layout after Megatron-LM, `megatron/core/datasets/indexed_dataset.py`. A document is one sequence unless
it has more tokens than an i32 can count.

Fine-tuning data has a third file, which Megatron never opens: `.mask`, one byte per token of `.bin`. Its
lowest bit is 1 for a token that is trained on and 0 for one that is only read; a document's first token is
never trained on. Two more say where a document may be cut from the left (`llmtrain.data.too_long`): the head,
which stays, ends before this token (at most once in a document); the rest may begin with this token.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from llmtrain.data.mapped import map_array
from llmtrain.data.pointers import refuse_pointer
from llmtrain.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"  # fairseq's and early Megatron's cached and lazy files
HEADER = struct.Struct("<9sQBQQ")
CODES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
OTHER_CODES = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "a float", 7: "a float"}
TRAINED, HEAD_ENDS, RESTARTS = 1, 2, 4  # the bits of a mask's byte
LONGEST_SEQUENCE = 2**31 - 1  # tokens; lengths are i32
BLOCK_TOKENS = 1 << 22
REBUILD = "build the dataset again with `llmtrain data build` (or `import`), or fetch the file again"


def token_dtype(vocab_size: int) -> np.dtype:
    """Megatron's rule: uint16 below 65 500 ids, int32 from there on."""
    return CODES[8] if vocab_size < 65500 else CODES[4]


def shard_paths(prefix: Path) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` of a shard named without its suffix."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def mask_path(prefix: Path) -> Path:
    """The `.mask` of a shard named without its suffix."""
    return prefix.with_name(prefix.name + ".mask")


@dataclass(frozen=True)
class FileFacts:
    """A file's size in bytes and its sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardFacts:
    """What a finished shard holds."""

    documents: int
    tokens: int
    bin: FileFacts
    idx: FileFacts
    mask: FileFacts | None = None


class ShardWriter:
    """Writes one shard, document by document. The `.idx` comes last and by rename, so a `.bin` without
    one is what an interrupted write looks like. A `masked` shard gets a `.mask` too.

    Raises DataError for a token id outside 0 … vocab_size-1, before any byte of that call is written.
    """

    def __init__(
        self, prefix: Path, vocab_size: int, longest_sequence: int = LONGEST_SEQUENCE, masked: bool = False
    ):
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.longest_sequence = longest_sequence
        self.tokens = 0
        self._lengths: list[np.ndarray] = []  # tokens per document, in the order written
        self._hash = hashlib.sha256()
        self._bin = open(shard_paths(prefix)[0], "wb")  # noqa: SIM115 - closed by close()
        self._mask = open(mask_path(prefix), "wb") if masked else None  # noqa: SIM115 - closed by close()
        self._mask_hash = hashlib.sha256()

    def add(
        self, tokens: np.ndarray, lengths: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> None:
        """Appends documents: `tokens` [t] back to back, cut by `lengths` [documents] (None: one).

        `mask` uint8 [t] of marks is given exactly when the shard is masked.
        """
        cuts = np.array([len(tokens)], np.int64) if lengths is None else np.asarray(lengths, np.int64)
        assert cuts.sum() == len(tokens) and (cuts >= 0).all(), "document lengths do not add up to the tokens"
        assert (mask is None) == (self._mask is None), "a mask, or none, that the shard was not opened for"
        if not len(cuts):
            return
        if len(tokens):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.vocab_size:
                raise DataError(
                    f"token id {high if high >= self.vocab_size else low} does not fit a vocabulary of "
                    f"{self.vocab_size} ({self.prefix}): the tokenizer and the vocabulary size disagree"
                )
        for start in range(0, len(tokens), BLOCK_TOKENS):  # a document may be larger than memory
            raw = tokens[start : start + BLOCK_TOKENS].astype(self.dtype, copy=False).tobytes()
            self._bin.write(raw)
            self._hash.update(raw)
        if self._mask is not None and mask is not None:
            self._add_mask(np.asarray(mask, np.uint8), cuts)
        self._lengths.append(cuts)
        self.tokens += len(tokens)

    def _add_mask(self, mask: np.ndarray, cuts: np.ndarray) -> None:
        assert self._mask is not None and len(mask) == cuts.sum(), "a mask of another length than its tokens"
        assert not len(mask) or mask.max() <= TRAINED | HEAD_ENDS | RESTARTS, "a mask holds three bits"
        firsts = mask[(np.cumsum(cuts) - cuts)[cuts > 0]]
        assert not (firsts & TRAINED).any(), "a document's first token follows nothing"
        self._mask.write(mask.tobytes())
        self._mask_hash.update(mask.tobytes())

    def close(self) -> ShardFacts:
        """Flushes `.bin`, writes `.idx`, and says what was written."""
        for file in (self._bin, self._mask):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        documents = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
        raw = index_bytes(documents, self.dtype, self.longest_sequence)
        path = shard_paths(self.prefix)[1]
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return ShardFacts(
            documents=len(documents),
            tokens=self.tokens,
            bin=FileFacts(self.tokens * self.dtype.itemsize, self._hash.hexdigest()),
            idx=FileFacts(len(raw), hashlib.sha256(raw).hexdigest()),
            mask=FileFacts(self.tokens, self._mask_hash.hexdigest()) if self._mask is not None else None,
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._bin.closed:
            if error is None:
                self.close()
            else:
                self.abandon()

    def abandon(self) -> None:
        """Closes the files and leaves the shard without an index, which makes it none."""
        self._bin.close()
        if self._mask is not None:
            self._mask.close()


def index_bytes(documents: np.ndarray, dtype: np.dtype, longest_sequence: int = LONGEST_SEQUENCE) -> bytes:
    """The `.idx` file of documents with these lengths in tokens, longer ones cut into several sequences."""
    documents = np.asarray(documents, np.int64)
    sequences_each = np.maximum(1, -(-documents // longest_sequence))
    starts = np.concatenate([[0], np.cumsum(sequences_each)])
    lengths = np.full(int(starts[-1]), longest_sequence, np.int64)
    last = starts[1:] - 1
    lengths[last] = documents - (sequences_each - 1) * longest_sequence
    ends = np.cumsum(lengths) * dtype.itemsize
    code = next(code for code, known in CODES.items() if known == dtype)
    return b"".join(
        [
            HEADER.pack(MAGIC, 1, code, len(lengths), len(starts)),
            lengths.astype("<i4").tobytes(),
            (ends - lengths * dtype.itemsize).astype("<i8").tobytes(),
            starts.astype("<i8").tobytes(),
        ]
    )


class Shard:
    """A finished shard, memory-mapped.

    tokens    [t] of `dtype`, read-only: the whole `.bin`
    mask      uint8 [t], read-only: the whole `.mask`, all bits of it; None when not `masked`
    ends      int64 [documents]: where each document ends in `tokens` (exclusive)

    Raises DataError naming the file when it is missing, cut, of another format, or inconsistent.
    """

    def __init__(self, prefix: Path, masked: bool = False):
        bin_path, idx_path = shard_paths(prefix)
        for path in (bin_path, idx_path, *([mask_path(prefix)] if masked else [])):
            if not path.is_file():
                raise DataError(f"{path} is missing: {REBUILD}")
            refuse_pointer(path)
        self.prefix = prefix
        self.dtype, lengths, starts = _read_index(idx_path)
        expected = int(lengths.sum()) * self.dtype.itemsize
        actual = bin_path.stat().st_size
        if actual != expected:
            raise DataError(f"{bin_path} has {actual} bytes, its .idx says {expected}: {REBUILD}")
        self.tokens = map_array(bin_path, self.dtype)
        self.mask = _map_mask(mask_path(prefix), len(self.tokens)) if masked else None
        self.ends = np.concatenate([[0], np.cumsum(lengths)])[starts[1:]].astype(np.int64)

    @property
    def documents(self) -> int:
        """How many documents the shard holds."""
        return len(self.ends)

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, counted from 0."""
        assert 0 <= number < self.documents, f"document {number} of {self.documents}"
        start = int(self.ends[number - 1]) if number else 0
        return self.tokens[start : int(self.ends[number])]


def _map_mask(path: Path, tokens: int) -> np.ndarray:
    size = path.stat().st_size
    if size != tokens:
        raise DataError(f"{path} has {size} bytes, its shard has {tokens} tokens: {REBUILD}")
    return map_array(path, np.dtype(np.uint8))


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """dtype, tokens per sequence and first sequence of each document, all checked."""
    raw = path.read_bytes()
    if raw.startswith(LEGACY_MAGIC):
        raise DataError(
            f"{path} is in the legacy TNTIDX format (fairseq, early Megatron): "
            "write it again with a current Megatron `preprocess_data.py` or with `llmtrain data build`"
        )
    if not raw.startswith(MAGIC):
        raise DataError(f"{path} is not a Megatron index: it starts with {raw[:9]!r}, not with {MAGIC!r}")
    if len(raw) < HEADER.size:
        raise DataError(f"{path} is cut inside its header ({len(raw)} bytes): {REBUILD}")
    _, version, code, sequences, starts_count = HEADER.unpack_from(raw)
    if version != 1:
        raise DataError(f"{path} has Megatron index version {version}; only version 1 is known")
    if code not in CODES:
        kind = OTHER_CODES.get(code, "unknown")
        raise DataError(f"{path} holds dtype code {code} ({kind}); tokens are uint16 (8) or int32 (4)")
    size = HEADER.size + 12 * sequences + 8 * starts_count
    if len(raw) == size + sequences and sequences:
        raise DataError(f"{path} is a multimodal Megatron index (it has sequence modes); only text is read")
    if len(raw) != size:
        raise DataError(f"{path} has {len(raw)} bytes where its header asks for {size}: {REBUILD}")
    lengths = np.frombuffer(raw, "<i4", sequences, HEADER.size).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", sequences, HEADER.size + 4 * sequences)
    starts = np.frombuffer(raw, "<i8", starts_count, HEADER.size + 12 * sequences).astype(np.int64)
    ends = np.cumsum(lengths)
    contiguous = np.array_equal(pointers, (ends - lengths) * CODES[code].itemsize)
    ordered = (
        bool(starts_count) and starts[0] == 0 and starts[-1] == sequences and (np.diff(starts) >= 0).all()
    )
    if not (contiguous and ordered and (lengths >= 0).all()):
        raise DataError(
            f"{path} contradicts itself (lengths, pointers and documents do not agree): {REBUILD}"
        )
    return CODES[code], lengths, starts
