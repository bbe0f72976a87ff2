"""Megatron's `.bin` and `.idx`, whoever wrote them: see `llmtrain.data.shards` for the layout.

Read: uint16 and int32 whatever the vocabulary (GPT-NeoX and older Megatrons chose by other rules), documents
of several sequences. Written: Megatron-LM's own rule, a document is one sequence, all in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.formats.token_files import TokenFile, TokenFormat, Vocabulary
from llmtrain.data.shards import Shard, ShardWriter, shard_paths


def _find(path: Path) -> list[Path]:
    """Prefixes: of all pairs in a folder, or of the one that is named with or without its suffix."""
    if path.is_dir():
        return sorted(index.with_suffix("") for index in path.glob("*.idx"))
    prefix = _named(path)
    return [prefix] if any(part.is_file() for part in shard_paths(prefix)) else []


def _named(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _parts(prefix: Path) -> list[Path]:
    return list(shard_paths(prefix))


def _read(prefix: Path, vocabulary: Vocabulary) -> Iterator[TokenFile]:
    shard = Shard(prefix)
    yield TokenFile(prefix, shard.tokens, shard.ends)


class _Writer:
    def __init__(self, prefix: Path, vocabulary: Vocabulary):
        self.prefix = prefix
        self._part = prefix.with_name(prefix.name + ".part")
        self._shard = ShardWriter(self._part, vocabulary.size)

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self._shard.add(tokens, lengths)

    def close(self) -> Sequence[Path]:
        self._shard.close()
        for part, name in zip(_parts(self._part), _parts(self.prefix), strict=True):
            part.replace(name)
        return _parts(self.prefix)

    def discard(self) -> None:
        self._shard.abandon()
        for part in _parts(self._part):
            part.unlink(missing_ok=True)


MEGATRON = TokenFormat(_find, _parts, _named, _read, _Writer)
