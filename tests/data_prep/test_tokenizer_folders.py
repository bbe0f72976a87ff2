"""Tokenizers trained, taken and refused; text that spells a special token stays text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus_file, files_of, some_text, texts_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_prep.autotokenizer import Proven, as_transformers_reads
from data_prep.build import build
from data_prep.corpus import DEFAULT_EOS, CorpusConfig
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


def llama_folder(folder: Path, **config: object) -> Path:
    """A tokenizer in Llama 2's form: a prefix in its normalizer, and a class that has its own way."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("\u2581", "\u2581"), ("\u2581", "a"), ("\u2581a", "b"), ("\u2581\u2581", "\u2581"), ("c", "d")]
    for piece in ["\u2581", *"abcdx", *map("".join, merges)]:
        vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    parts = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(marks | config))
    return folder


def test_the_ids_of_a_dataset_are_those_of_transformers(tmp_path):
    """Of a folder trained here, and of one whose class in transformers goes its own way."""
    rng = random.Random(0)
    write_trained(train_bpe([some_text(rng, 500)], 400, DEFAULT_EOS), tmp_path / "t", DEFAULT_EOS)
    text = "def f(x):\n    return 12, 'naïve'  .  , 'can n't"
    folder = llama_folder(tmp_path / "llama")
    raw = load_tokenizer(folder).encode("  ab cd  x", add_special_tokens=False).ids
    report = build(words_corpus(tmp_path, {"source": str(folder)}, "  ab cd  x"))
    import transformers  # only now: the build has asked it in a process of its own

    load = transformers.AutoTokenizer.from_pretrained
    theirs, ours = load(tmp_path / "t"), load_tokenizer(tmp_path / "t")
    ids = theirs(text, add_special_tokens=False).input_ids
    assert (theirs.eos_token_id, len(theirs), theirs.decode(ids)) == (0, ours.get_vocab_size(), text)
    assert ids == ours.encode(text, add_special_tokens=False).ids
    theirs, written = load(folder), load_tokenizer(tmp_path / "out/tokenizer")
    for each in (load(tmp_path / "out/tokenizer"), theirs):
        ids = each(text, add_special_tokens=False).input_ids
        assert ids == written.encode(text, add_special_tokens=False).ids
    tokens = np.fromfile(tmp_path / "out/train/00000.bin", "<u2").tolist()
    assert tokens == [*written.encode("  ab cd  x", add_special_tokens=False).ids, 2] != [*raw, 2]
    notes = " ".join(report.notes)
    assert (
        "transformers reads it as LlamaTokenizer, whose ids differ from those of its tokenizer.json" in notes
    )
    assert "transformers begins each text with <s>, documents here begin without" in notes
    assert build(tmp_path / "corpus.yaml").reused


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


def proven(folder: Path, scratch: Path) -> Proven:
    section = {"source": str(folder)}
    corpus = CorpusConfig(name="c", sources=[{"stdlib": True}], tokenizer=section, prepend_bos=True)
    return as_transformers_reads(folder, corpus, scratch)


@pytest.mark.parametrize(
    ("config", "model_type", "differs"),
    [
        ({"legacy": False}, None, True),
        ({"legacy": True}, None, True),
        ({"add_prefix_space": False}, None, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "llama", False),
        ({"tokenizer_class": "GemmaTokenizer"}, None, True),
        ({}, "llama", True),
    ],
)
def test_classes_that_override_the_file_are_asked(tmp_path, config, model_type, differs):
    import transformers

    folder = llama_folder(tmp_path / "t", **config)
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = proven(folder, tmp_path)
    assert (found.folder != folder) == differs
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(found.folder)
    for text in ("ab cd", "  ab  x", " a", "\n ab"):
        assert (
            ours.encode(text, add_special_tokens=False).ids
            == theirs(text, add_special_tokens=False).input_ids
        )
    if differs:
        assert (
            transformers.AutoTokenizer.from_pretrained(found.folder)("  ab").input_ids
            == theirs("  ab").input_ids
        )


def test_a_tokenizer_that_transformers_does_not_read_is_refused(tmp_path):
    import transformers  # noqa: F401 - asked in this process, then

    auto = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    with pytest.raises(
        DataError, match=r"AutoTokenizer can't read it \(.*\), so its ids can't be proven right"
    ):
        proven(llama_folder(tmp_path / "t", **auto), tmp_path)


def test_the_end_of_a_document_that_a_corpus_names_is_that_of_its_tokenizer(tmp_path):
    folder = word_tokenizer(tmp_path / "tok", ["a", "b", "c", "<end>"], {"eos_token": {"content": "</s>"}})
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    build(words_corpus(tmp_path, {"source": str(folder), "eos": "<end>"}))
    for name, rest in (("tokenizer_config.json", {}), ("special_tokens_map.json", {"unk_token": "<unk>"})):
        said = json.loads((tmp_path / "out/tokenizer" / name).read_text())
        assert said == {"eos_token": "<end>"} | rest


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
    with pytest.raises(DataError, match=r"tokenizer\.source = './gpt9': no such file or folder"):
        build(words_corpus(tmp_path, {"source": "./gpt9"}))
    with pytest.raises(DataError, match=r"tokenizer\.source = 'gpt9' is no folder here .* no network"):
        build(words_corpus(tmp_path, {"source": "gpt9"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no tokenizer\.json: convert it once"):
        build(words_corpus(tmp_path, {"source": str(tmp_path / "empty")}))
    (tmp_path / "empty/tokenizer.json").write_text('{"half": ')
    with pytest.raises(DataError, match=r"tokenizer\.json can't be read by tokenizers"):
        build(words_corpus(tmp_path, {"source": str(tmp_path / "empty")}))
