"""Checks everything a dataset folder claims: every byte's hash, every bound, every token id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import Manifest, read_manifest
from llmtrain.data.shards import HEAD_ENDS, REBUILD, RESTARTS, TRAINED, Shard
from llmtrain.errors import DataError

BLOCK_TOKENS = 1 << 24


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and found good; anything bad is a DataError instead."""

    folder: str
    manifest: Manifest
    files: int
    bytes: int

    def render(self) -> str:
        """One paragraph of plain text."""
        splits = ", ".join(
            f"{name} {split.documents:,} documents {split.tokens:,} tokens"
            for name, split in self.manifest.splits.items()
        )
        return (
            f"{self.folder} is good: {self.files} files, {self.bytes:,} bytes, "
            f"every hash, bound and token id checked\n{splits}\nfingerprint {self.manifest.fingerprint}"
        )


def verify(folder: str | Path, progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Reads a whole dataset. Raises DataError naming the first file that is not what it should be."""
    folder = Path(folder)
    manifest = read_manifest(folder, hashes=True)
    total = sum(split.tokens for split in manifest.splits.values())
    files, size, done = 0, 0, 0
    for name, split in manifest.splits.items():
        for shard in open_dataset(folder, name).shards:
            _check_ids(shard, manifest)
            _check_mask(shard)
            done += len(shard.tokens)
            if progress is not None:
                progress("checking tokens", done, total)
        _check_samples(folder, name, manifest)
        written = [file for shard in split.shards for file in (shard.bin, shard.idx, shard.mask) if file]
        files += len(written)
        size += sum(file.bytes for file in written)
    return VerifyReport(str(folder), manifest, files, size)


def _check_ids(shard: Shard, manifest: Manifest) -> None:
    for start in range(0, len(shard.tokens), BLOCK_TOKENS):
        block = shard.tokens[start : start + BLOCK_TOKENS]
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= manifest.vocab_size:
            wrong = low if low < 0 else high
            raise DataError(
                f"{shard.prefix}.bin holds token id {wrong}, outside the vocabulary of "
                f"{manifest.vocab_size}: it was not made with this dataset's tokenizer"
            )
    tokenizer = manifest.tokenizer
    if shard.documents and manifest.append_eos:
        _check_marks(shard, shard.ends - 1, f"end with {tokenizer.eos}", tokenizer.eos_id)
    if shard.documents and tokenizer.bos_id is not None:
        starts = np.concatenate([[0], shard.ends[:-1]])
        _check_marks(shard, starts, f"begin with {tokenizer.bos}", tokenizer.bos_id)


def _check_marks(shard: Shard, places: np.ndarray, what: str, token: int) -> None:
    """Raises DataError unless every document has the token in its place."""
    starts = np.concatenate([[0], shard.ends[:-1]])
    marked = shard.ends > starts
    marked[marked] = shard.tokens[places[marked]] == token
    if not marked.all():
        number = int(np.flatnonzero(~marked)[0])
        raise DataError(
            f"{shard.prefix}.bin: document {number} does not {what} (id {token}) as the manifest says"
        )


def _check_mask(shard: Shard) -> None:
    if shard.mask is None or not len(shard.mask):
        return
    starts = np.concatenate([[0], shard.ends[:-1]])
    starts = starts[starts < shard.ends]
    if int(shard.mask.max()) > TRAINED | HEAD_ENDS | RESTARTS or (shard.mask[starts] & TRAINED).any():
        raise DataError(
            f"{shard.prefix}.mask holds what no mask holds, or marks a document's first token, which follows "
            "nothing: it was not written by llmtrain"
        )


def _check_samples(folder: Path, name: str, manifest: Manifest) -> None:
    if manifest.kind == "preference" and manifest.splits[name].documents % 2:
        raise DataError(
            f"{folder} split '{name}' has {manifest.splits[name].documents} documents, and a pair is two: "
            f"{REBUILD}"
        )
    claimed = manifest.splits[name].trained_tokens
    masks = [shard.mask for shard in open_dataset(folder, name).shards if shard.mask is not None]
    marked = sum(int(np.count_nonzero(mask & TRAINED)) for mask in masks)
    if manifest.masked and claimed != marked:
        raise DataError(
            f"{folder} split '{name}' has {marked} tokens that are trained on, its manifest says {claimed}: "
            f"{REBUILD}"
        )
