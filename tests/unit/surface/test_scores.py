from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import held_out
from llmtrain.data.rows import IGNORED
from llmtrain.data.vocabulary import token_bytes, token_numbers
from llmtrain.report.scores import scores, text_bytes


def write_tokenizer(folder: Path, model: dict, decoder: dict | None, added: list | None = None) -> Path:
    content = {"model": model, "decoder": decoder, "added_tokens": added or []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_byte_level_tokens_count_one_byte_per_character(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "Ġthe": 1, "Ã©": 2, "<|end|>": 3}  # "é" is two bytes, written as two characters
    added = [
        {"id": 3, "content": "<|end|>", "special": True},
        {"id": 4, "content": "naïve", "special": False},
    ]
    folder = write_tokenizer(tmp_path, {"vocab": vocabulary}, {"type": "ByteLevel"}, added)
    lengths = token_bytes(folder)
    assert lengths is not None
    assert lengths.tolist() == [1, 4, 2, 0, 6]
    assert token_numbers(folder) == vocabulary | {"naïve": 4}


def test_sentencepiece_tokens_count_spaces_and_lone_bytes(tmp_path: Path) -> None:
    model = {"vocab": [["<unk>", 0.0], ["▁the", -1.0], ["<0xE6>", -2.0], ["数", -3.0]]}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}
    added = [{"id": 0, "content": "<unk>", "special": True}]
    lengths = token_bytes(write_tokenizer(tmp_path, model, decoder, added))
    assert lengths is not None
    assert lengths.tolist() == [0, 4, 1, 3]


def test_an_unknown_decoder_tells_no_bytes(tmp_path: Path) -> None:
    assert token_bytes(write_tokenizer(tmp_path, {"vocab": {"a": 0}}, {"type": "WordPiece"})) is None
    assert token_bytes(tmp_path / "nowhere") is None


def test_bytes_of_rows_are_those_of_the_decoded_labels(own_dataset: Path) -> None:
    from tokenizers import Tokenizer

    rows = held_out([DataSource(path=str(own_dataset), split="valid")], 32, 40, True)
    tokenizer = Tokenizer.from_file(str(own_dataset / "tokenizer" / "tokenizer.json"))
    compared = 0
    for number in range(rows.count):
        row = replace(rows, source=rows.source[number : number + 1], row=rows.row[number : number + 1])
        labels = row.read(0, 1).labels[0]
        text = tokenizer.decode(labels[labels != IGNORED].tolist())
        if text.isascii():  # a character of several bytes can be cut at the row's end
            assert text_bytes(row, own_dataset / "tokenizer") == len(text)
            compared += 1
    assert compared > 10


def test_bytes_fall_back_to_the_mean_of_the_split(own_dataset: Path, tmp_path: Path) -> None:
    rows = held_out([DataSource(path=str(own_dataset), split="valid")], 32, 7, True)
    assert text_bytes(rows, tmp_path) == pytest.approx(rows.bytes_per_token * rows.valid_tokens)


def test_a_score_says_loss_perplexity_and_bits() -> None:
    found = scores(loss_sum=10 * math.log(4), tokens=10, text_bytes=40.0)
    assert found.eval_loss == pytest.approx(math.log(4))
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte == pytest.approx(0.5)  # 2 bits a token, 4 bytes a token
    assert "0.500 bits per byte" in str(found)
    assert scores(1e9, 10, None).perplexity == math.inf
    assert "bits" not in str(scores(10.0, 10, None))
