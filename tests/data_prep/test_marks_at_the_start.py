"""prepend_bos: every document begins with the token, the manifest says so, and verify holds it to that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus_file, files_of

from data_prep.build import build
from data_prep.tokenizer import load_tokenizer
from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest
from llmtrain.data.verify import verify
from llmtrain.errors import ConfigError, DataError

TRAINED = {"train": "bpe", "vocab_size": 400, "special": ["<s>"], "bos": "<s>"}


def corpus(tmp_path: Path, **content) -> Path:
    for number in range(12):
        (tmp_path / f"{number:02d}.txt").write_text("word and <s> word\n" * (number + 1))
    return corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.txt")}], **content)


def test_every_document_begins_with_the_token_and_ends_as_it_did(tmp_path):
    path = corpus(tmp_path, tokenizer=TRAINED, prepend_bos=True)
    report = build(path)
    entry = report.manifest.tokenizer
    assert (entry.bos, entry.bos_id, entry.eos_id) == ("<s>", 1, 0)
    assert "documents begin with <s> (id 1) and end with <|endoftext|> (id 0)" in report.render()
    dataset = open_dataset(tmp_path / "out", "train")
    for document in (dataset.shards[0].document(number) for number in range(12)):
        assert document[0] == 1 and document[-1] == 0 and not np.isin(document[1:-1], (0, 1)).any()
    verify(tmp_path / "out")
    rows = Batches([DataSource(path=str(tmp_path / "out"))], 16, 4, 1, True, "best_fit_crop").at(0).read(0, 4)
    assert (rows.tokens[rows.positions == 0] == 1).all()
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer")
    assert tokenizer.encode("word").ids[0] == 1  # a prompt begins as the documents do
    assert tokenizer.encode("word", add_special_tokens=False).ids[0] != 1
    plain = build(path, ["prepend_bos=false", "tokenizer.bos=null", f"output={tmp_path / 'plain'}"]).manifest
    assert report.manifest.splits["train"].tokens == plain.splits["train"].tokens + 12
    with pytest.raises(DataError, match=r"holds another dataset \(it differs in tokenizer, prepend_bos\)"):
        build(path, ["prepend_bos=false", "tokenizer.bos=null"])


def test_a_manifest_without_marks_at_the_start_is_what_it_was(tmp_path):
    build(corpus(tmp_path))
    entry = json.loads((tmp_path / "out/manifest.json").read_text())["tokenizer"]
    assert set(entry) == {"name", "sha256", "vocab_size", "eos", "eos_id", "special", "engine"}
    assert read_manifest(tmp_path / "out").tokenizer.bos_id is None


def test_a_manifest_that_claims_another_start_is_refused(tmp_path):
    build(corpus(tmp_path, tokenizer=TRAINED, prepend_bos=True))
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    content["tokenizer"] |= {"bos": "x", "bos_id": 300}
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"00000.bin: document 0 does not begin with x \(id 300\) as the manif"
    ):
        verify(tmp_path / "out")


def test_a_start_that_is_not_there_or_does_not_count_is_answered_by_a_sentence(tmp_path):
    bare = {"train": "bpe", "vocab_size": 400}
    for more, error, words in [
        ({"tokenizer": bare, "prepend_bos": True}, DataError, "names no bos_token: set tokenizer.bos"),
        (
            {"tokenizer": bare | {"bos": "<b>"}, "prepend_bos": True},
            DataError,
            r"has no token '<b>' \(tokenizer.bos\): name one it has",
        ),
        ({"tokenizer": TRAINED}, ConfigError, "begins documents only with prepend_bos: true"),
        ({"kind": "chat", "prepend_bos": True}, ConfigError, "the template begins a document"),
    ]:
        with pytest.raises(error, match=words):
            build(corpus(tmp_path, **more))
    assert "out/manifest.json" not in files_of(tmp_path)
