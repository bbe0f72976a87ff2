"""Makes dataset folders out of token lists, without a tokenizer or a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.data.manifest import (
    TOKENIZER,
    Counts,
    Kind,
    Manifest,
    ShardEntry,
    SplitEntry,
    TokenizerEntry,
    file_sha256,
    fingerprint,
    write_manifest,
)
from llmtrain.data.shards import ShardWriter, token_dtype

Documents = Sequence[Sequence[int]]


def make_dataset(
    folder: Path,
    splits: dict[str, Sequence[Documents]],
    vocab_size: int = 1000,
    tokenizer: str = '{"fake": 1}',
    kind: Kind = "text",
    masks: dict[str, Sequence[Documents]] | None = None,
) -> Path:
    """A dataset folder; each split is a list of shards, each shard a list of documents.

    `masks`, of the same shape, marks what is trained on; it is given for every kind but text.
    """
    (folder / TOKENIZER).mkdir(parents=True)
    (folder / TOKENIZER / "tokenizer.json").write_text(tokenizer)
    entries = {}
    for split, shards in splits.items():
        (folder / split).mkdir()
        written = []
        for number, documents in enumerate(shards):
            name = f"{split}/{number:05d}"
            writer = ShardWriter(folder / name, vocab_size, masked=masks is not None)
            for place, document in enumerate(documents):
                mask = None if masks is None else np.array(masks[split][number][place], np.uint8)
                writer.add(np.array(document, np.int64), mask=mask)
            written.append(ShardEntry.of(name, writer.close()))
        entries[split] = SplitEntry(
            documents=sum(shard.documents for shard in written),
            tokens=sum(shard.tokens for shard in written),
            text_bytes=3 * sum(shard.tokens for shard in written),
            trained_tokens=None if masks is None else sum(x & 1 for s in masks[split] for m in s for x in m),
            shards=tuple(written),
        )
    sha256 = file_sha256(folder / TOKENIZER / "tokenizer.json")
    dtype = token_dtype(vocab_size).name
    manifest = Manifest(
        name=folder.name,
        created_by="tests",
        version=1 if kind == "text" else 3,
        kind=kind,
        fingerprint=fingerprint(entries, dtype, vocab_size, sha256, kind == "text", kind),
        dtype=dtype,
        vocab_size=vocab_size,
        append_eos=kind == "text",
        tokenizer=TokenizerEntry(
            name="fake",
            sha256=sha256,
            vocab_size=vocab_size,
            eos="<|endoftext|>",
            eos_id=0,
            special={"<|endoftext|>": 0},
            engine="none",
        ),
        splits=entries,
        sources=(),
        counts=Counts(documents_in=0, documents_out=0, rejected={}, examples={}),
        pipeline={},
        pipeline_sha256="",
    )
    write_manifest(folder, manifest)
    return folder


def random_documents(
    rng: np.random.Generator, count: int, longest: int, vocab_size: int = 1000
) -> list[list[int]]:
    """Documents of 1 … longest random tokens."""
    return [rng.integers(0, vocab_size, rng.integers(1, longest + 1)).tolist() for _ in range(count)]
