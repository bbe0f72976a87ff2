"""Tokenizers trained, taken and refused; text that spells a special token stays text."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus_file, files_of, some_text, texts_of
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.build import build
from data_prep.corpus import DEFAULT_EOS
from data_prep.tokenizer import load_tokenizer, train_bpe, write_trained
from llmtrain.data.manifest import read_manifest
from llmtrain.errors import DataError


def word_tokenizer(folder: Path, words: list[str], config: dict | None = None) -> Path:
    """A tokenizer folder with one id per word, `</s>` among them."""
    vocab = {word: number for number, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights that are none of our business")
    return folder


def words_corpus(tmp_path: Path, tokenizer: dict, text: str = "a b c") -> Path:
    (tmp_path / "d.txt").write_text(text)
    return corpus_file(tmp_path, sources=[{"path": str(tmp_path / "d.txt")}], tokenizer=tokenizer)


def test_training_is_deterministic_and_any_text_round_trips():
    rng = random.Random(0)
    texts = [some_text(rng, 200) for _ in range(50)]
    one, two = (train_bpe(texts, 500, DEFAULT_EOS) for _ in range(2))
    assert one.to_str() == two.to_str() and one.get_vocab_size() <= 500
    rare = "".join(chr(rng.randrange(1, 0xD800)) for _ in range(3000)) + "\0\r\n \t 🙂"
    assert one.decode(one.encode(rare).ids) == rare
    digits = one.encode("1234567").tokens
    assert digits == list("1234567")


def test_a_document_can_not_forge_a_document_end(tmp_path):
    text = f"before {DEFAULT_EOS} after"
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(text)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.txt")}])
    build(path)
    assert texts_of(tmp_path / "out", "train") == [text] * 3


def test_the_tokenizer_is_trained_on_train_alone(tmp_path):
    rng = random.Random(0)
    for number in range(200):
        (tmp_path / f"{number:03d}.txt").write_text(some_text(rng, 20))
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.txt")}], splits={"valid": 0.3})
    build(path)
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer")
    again = train_bpe(sorted(texts_of(tmp_path / "out", "train")), 400, DEFAULT_EOS)
    assert tokenizer.to_str() == again.to_str()


def test_transformers_loads_the_folder_and_agrees(tmp_path):
    rng = random.Random(0)
    write_trained(train_bpe([some_text(rng, 500)], 400, DEFAULT_EOS), tmp_path / "t", DEFAULT_EOS)
    script = (
        "import sys, json; from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); text = sys.argv[2]\n"
        "ids = t(text, add_special_tokens=False).input_ids\n"
        "print(json.dumps([t.eos_token_id, len(t), ids, t.decode(ids)]))"
    )
    text = "def f(x):\n    return 12, 'naïve'  .  , 'can n't"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "t"), text],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    eos, size, ids, decoded = json.loads(done.stdout.splitlines()[-1])
    ours = load_tokenizer(tmp_path / "t")
    assert (eos, size, decoded) == (0, ours.get_vocab_size(), text)
    assert ids == ours.encode(text, add_special_tokens=False).ids


def test_a_folder_is_taken_with_its_own_end_token_and_without_its_weights(tmp_path):
    folder = word_tokenizer(tmp_path / "tok", ["a", "b", "c"], {"eos_token": {"content": "</s>"}})
    report = build(words_corpus(tmp_path, {"source": str(folder)}))
    entry = report.manifest.tokenizer
    assert (entry.eos, entry.eos_id, entry.vocab_size) == ("</s>", 1, 5)
    assert np.fromfile(tmp_path / "out/train/00000.bin", "<u2").tolist() == [2, 3, 4, 1]
    assert sorted(files_of(tmp_path / "out/tokenizer")) == ["tokenizer.json", "tokenizer_config.json"]


def test_more_than_65499_ids_are_stored_as_int32(tmp_path):
    words = [f"w{number}" for number in range(65_540)]
    folder = word_tokenizer(tmp_path / "tok", words, {"eos_token": "</s>"})
    build(words_corpus(tmp_path, {"source": str(folder)}, "w65539 w0 w65534"))
    assert read_manifest(tmp_path / "out").dtype == "int32"
    assert np.fromfile(tmp_path / "out/train/00000.bin", "<i4").tolist() == [65541, 2, 65536, 1]


def test_without_an_end_token_documents_end_unmarked_if_so_asked(tmp_path):
    folder = word_tokenizer(tmp_path / "tok", ["a", "b", "c"], {"eos_token": "</s>"})
    path = words_corpus(tmp_path, {"source": str(folder)})
    report = build(path, ["append_eos=false"])
    assert np.fromfile(tmp_path / "out/train/00000.bin", "<u2").tolist() == [2, 3, 4]
    assert "documents end without a mark" in report.render()


@pytest.mark.parametrize(
    ("config", "chosen", "message"),
    [
        ({}, None, "names no eos_token: set tokenizer.eos"),
        (None, None, "names no eos_token: set tokenizer.eos"),
        ({}, "<end>", "has no token '<end>' \\(tokenizer.eos\\)"),
    ],
)
def test_a_tokenizer_without_an_end_token_is_refused(tmp_path, config, chosen, message):
    folder = word_tokenizer(tmp_path / "tok", ["a"], config)
    with pytest.raises(DataError, match=message):
        build(words_corpus(tmp_path, {"source": str(folder), "eos": chosen}))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_can_not_be_had_is_named_with_the_way_out(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match=r"tokenizer\.source = 'gpt9' is no folder here .* no network"):
        build(words_corpus(tmp_path, {"source": "gpt9"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no tokenizer\.json: convert it once"):
        build(words_corpus(tmp_path, {"source": str(tmp_path / "empty")}))
    (tmp_path / "empty/tokenizer.json").write_text('{"half": ')
    with pytest.raises(DataError, match=r"tokenizer\.json can't be read by tokenizers"):
        build(words_corpus(tmp_path, {"source": str(tmp_path / "empty")}))
