"""What is in the shards is what was in the sources: any text comes back, and no id wraps."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from corpora import corpus_file, texts_of
from text_files import FORMATS, PACKERS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.build import build
from data_prep.tokenizer import write_trained
from llmtrain.data.dataset import open_dataset
from llmtrain.data.shards import token_dtype
from llmtrain.data.verify import verify

EOS = "<|end|>"
RANGES = [(0x20, 0x7F), (0, 0x20), (0xA0, 0x500), (0x4E00, 0x9FFF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]


def any_text(rng: random.Random) -> str:
    """Code points of all planes and controls among them, the end mark spelled out, blanks at the ends."""
    letters = [chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 40))]
    letters += rng.choices(["\r\n", "\0", "\u2028", EOS, " ", "e\u0301", "é"], k=rng.randint(0, 3))
    rng.shuffle(letters)
    text = "".join(letters).removeprefix("\ufeff")
    return text if text.strip() else "x" + text


def test_ten_thousand_texts_of_any_code_points_come_back_once_each(tmp_path):
    rng = random.Random(7)
    texts = [any_text(rng) for _ in range(10_000)]
    folder = tmp_path / "in"
    folder.mkdir()
    names = [name for name in FORMATS if name not in ("d.csv", "d.tsv")] * 2  # Python 3.10's csv takes no NUL
    for number, name in enumerate(names):
        part = texts[number :: len(names)]
        suffix = rng.choice(["", *PACKERS]) if name not in ("d.parquet", "d.arrow", "stream.arrow") else ""
        raw = FORMATS[name](part)
        (folder / f"{number:02d}.{name}{suffix}").write_bytes(PACKERS[suffix](raw) if suffix else raw)
    tokenizer = {"train": "bpe", "vocab_size": 600, "eos": EOS}
    path = corpus_file(tmp_path, sources=[{"path": str(folder)}], splits={"valid": 0.2}, tokenizer=tokenizer)
    counts = build(path).manifest.counts
    assert (counts.documents_in, counts.documents_out, counts.rejected) == (10_000, 10_000, {})
    got = Counter(texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "valid"))
    assert got == Counter(texts)


def words_tokenizer(folder: Path, size: int) -> Path:
    """Exactly `size` ids, one word each; the end mark is the last."""
    words = {f"w{number}": number for number in range(size - 1)} | {EOS: size - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    made.add_special_tokens([EOS])
    write_trained(made, folder, EOS)
    return folder


@pytest.mark.parametrize("size", [65_499, 65_500, 65_535, 65_536, 65_537, 128_000])
def test_no_id_wraps_at_any_size_of_vocabulary(tmp_path, size):
    tokenizer = words_tokenizer(tmp_path / "tokenizer", size)
    numbers = sorted({1, 32_767, 32_768, 65_498, 65_499, 65_534, 65_535, 65_536, size - 3, size - 2})
    numbers = [number for number in numbers if number < size - 1]
    (tmp_path / "d.txt").write_text(" ".join(f"w{number}" for number in numbers))
    path = corpus_file(
        tmp_path, sources=[{"path": str(tmp_path / "d.txt")}], tokenizer={"source": str(tokenizer)}
    )
    manifest = build(path).manifest
    assert manifest.vocab_size == size and manifest.numpy_dtype == token_dtype(size)
    assert manifest.dtype == ("uint16" if size < 65_500 else "int32")
    (shard,) = open_dataset(tmp_path / "out", "train").shards
    assert shard.tokens.tolist() == [*numbers, size - 1]
    verify(tmp_path / "out")
