"""Small corpora for the tests of data_prep: text, corpus files, and datasets read back as text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from data_prep.tokenizer import load_tokenizer
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest

WORDS = [
    "the",
    "quick",
    "fox",
    "12",
    "345",
    "naïve",
    "Straße",
    "数据",
    "🙂",
    "def",
    "f(x):",
    "",
    "\n\t",
    "\r\n",
]


def some_text(rng: random.Random, words: int) -> str:
    """Text of ASCII, accents, CJK, emoji, digits and odd white space."""
    return " ".join(rng.choice(WORDS) for _ in range(words)) + rng.choice(["", "\n", " ", "."])


def corpus_file(folder: Path, **content: Any) -> Path:
    """A corpus YAML in `folder` with a small tokenizer, writing to `folder/out`."""
    whole = {
        "name": "test",
        "output": str(folder / "out"),
        "tokenizer": {"train": "bpe", "vocab_size": 400, "sample_bytes": 200_000},
        "splits": {},
        "workers": 1,
    } | content
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8")
    return path


def texts_of(folder: Path, split: str) -> list[str]:
    """The documents of a split, decoded from the shards; each ends with the end mark and holds no other."""
    manifest = read_manifest(folder, hashes=True)
    tokenizer = load_tokenizer(folder / "tokenizer")
    texts = []
    for shard in open_dataset(folder, split).shards:
        for number in range(shard.documents):
            tokens = shard.document(number).tolist()
            assert tokens[-1] == manifest.tokenizer.eos_id
            assert manifest.tokenizer.eos_id not in tokens[:-1]
            texts.append(tokenizer.decode(tokens[:-1], skip_special_tokens=False))
    return texts


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, but those that tell how long a build took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("build.json", "report.json", "report.html")
    }
