"""Tokenizer engines: used when they give the ids of `tokenizers`, said in the manifest, one dataset."""

from __future__ import annotations

import builtins
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus_file, files_of, some_text, texts_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep import engines
from data_prep.build import build
from data_prep.engines import Gigatoken, Reference, Tiktoken, choose_engine, odd_texts, open_engine
from data_prep.tokenizer import Encoder, train_bpe, write_trained
from llmtrain.data.vocabulary import token_numbers
from llmtrain.errors import ConfigError

STDLIB = Path(random.__file__).parent
FAST = [Gigatoken, Tiktoken]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """Some of the standard library's source."""
    names = ["argparse", "ast", "random", "textwrap", "this", "turtle", "typing"]
    return [(STDLIB / f"{name}.py").read_text() for name in names]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sources) -> Path:
    """A tokenizer as a build trains it, with a special token of its own."""
    folder = tmp_path_factory.mktemp("engines") / "trained"
    write_trained(train_bpe(sources, 1500, "</s>", ["<mask>"]), folder, "</s>", ["<mask>"])
    return folder


def gpt2_like(folder: Path, texts: list[str], **model: object) -> Path:
    """Byte-level BPE with GPT-2's own split and its special token behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    write_trained(tokenizer, folder, "<|endoftext|>")
    return folder


def assert_same(one, two) -> None:
    for ours, theirs in zip(one, two, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("engine", FAST)
def test_a_fast_engine_gives_the_ids_of_tokenizers(tmp_path, trained, sources, engine):
    for folder in (trained, gpt2_like(tmp_path / "gpt2", sources[:3])):
        texts = [*sources, *odd_texts(folder)]
        assert len(texts) > 1000 and any("<|endoftext|>" in text for text in texts)
        assert_same(engine(folder)(texts), Reference(folder)(texts))
        assert_same(engine(folder)([]), Reference(folder)([]))


def test_a_word_of_a_million_letters_and_a_million_blanks_are_no_matter(trained):
    word = "".join(random.Random(3).choices("abcdefgh", k=1_000_000))
    texts = [word, " " * 1_000_000 + "x", "\n" * 100_000, "a b"]
    right = Reference(trained)(texts)
    for engine in FAST:
        assert_same(engine(trained)(texts), right)


def test_gigatoken_forgets_what_it_has_seen_and_answers_the_same(trained, sources, monkeypatch):
    monkeypatch.setattr(engines, "RENEW_BYTES", 1000)
    engine, loaded = Gigatoken(trained), set()
    for text in sources:
        assert_same(engine([text]), Reference(trained)([text]))
        loaded.add(id(engine._loaded))
    assert len(loaded) > 1


def test_the_fastest_that_agrees_is_chosen_and_the_others_are_accounted_for(trained, sources, monkeypatch):
    assert str(choose_engine(trained, "auto", sources)) == f"gigatoken {engines._version('gigatoken')}"
    assert str(choose_engine(trained, "tiktoken", sources)).startswith("tiktoken ")
    assert str(choose_engine(trained, "tokenizers", sources)).startswith("tokenizers ")

    class Wrong(Gigatoken):
        def __call__(self, texts):
            ids, lengths = super().__call__(texts)
            return np.where(ids == 300, 301, ids), lengths

    monkeypatch.setitem(engines.FASTEST_FIRST, "gigatoken", Wrong)
    chosen = str(choose_engine(trained, "auto", sources))
    assert re.fullmatch(
        r"tiktoken [\d.]+ \(gigatoken: its ids differ from those of tokenizers on '.*\)", chosen
    )
    with pytest.raises(
        ConfigError, match=r"tokenizer.engine = 'gigatoken' .*differ .*; say auto, or tokenizers"
    ):
        choose_engine(trained, "gigatoken", sources)


def test_a_tokenizer_that_merges_in_another_way_is_left_to_tokenizers(tmp_path, sources):
    """A token that no merge makes alone, dropout, other splits, tokens found in text: each is noticed."""
    with_dropout = gpt2_like(tmp_path / "dropout", sources[:2], dropout=0.1)
    assert str(choose_engine(with_dropout, "auto", sources)).startswith("tokenizers ")
    found = Tokenizer.from_file(str(gpt2_like(tmp_path / "plain", sources[:2]) / "tokenizer.json"))
    found.add_tokens(["import"])
    write_trained(found, tmp_path / "found", "<|endoftext|>")
    assert "tiktoken: it does byte-level BPE of plain text only" in str(
        choose_engine(tmp_path / "found", "tokenizers", sources)
    ) + str(_said(tmp_path / "found"))
    split = Tokenizer.from_file(str(tmp_path / "plain/tokenizer.json"))
    split.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[a-z]{1,5}|\s+|[^a-z\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    write_trained(split, tmp_path / "split", "<|endoftext|>")
    chosen = str(choose_engine(tmp_path / "split", "auto", sources))
    assert re.match(r"tiktoken [\d.]+ \(gigatoken: it can't read this tokenizer \(.*", chosen)
    assert_same(Tiktoken(tmp_path / "split")(sources), Reference(tmp_path / "split")(sources))


def _said(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_engine(folder, "tiktoken", ["text"])
    return str(caught.value).replace("tokenizer.engine = 'tiktoken' (corpus): ", "tiktoken: ")


def test_an_engine_that_is_not_installed_is_missed_only_by_who_asks_for_it(trained, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("gigatoken", "tiktoken"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    chosen = str(choose_engine(trained, "auto", ["text"]))
    assert chosen.endswith("(gigatoken: it is not installed; tiktoken: it is not installed)")
    with pytest.raises(ConfigError, match=r"it is not installed: `pip install gigatoken tiktoken`"):
        choose_engine(trained, "tiktoken", ["text"])
    assert isinstance(open_engine(trained, "gigatoken 0.10.0"), Reference)  # the same ids, slower


def test_datasets_of_all_engines_are_one_dataset_and_say_who_made_them(tmp_path):
    rng = random.Random(0)
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(some_text(rng, 300) + " <mask> <|endoftext|>")
    prints, shards = set(), set()
    for engine in ("auto", "tiktoken", "tokenizers"):
        path = corpus_file(
            tmp_path, sources=[{"path": str(tmp_path / "*.txt")}], output=str(tmp_path / engine)
        )
        report = build(path, [f"tokenizer.engine={engine}", "tokenizer.special=[<mask>]"])
        entry = report.manifest.tokenizer
        assert entry.engine.startswith("gigatoken " if engine == "auto" else engine)
        assert f"made by {entry.engine}" in report.render()
        assert entry.special == {"<|endoftext|>": 0, "<mask>": 1}
        prints.add((report.manifest.fingerprint, report.manifest.pipeline_sha256))
        shards.add(files_of(tmp_path / engine)["train/00000.bin"])
    assert len(prints) == len(shards) == 1
    assert len(texts_of(tmp_path / "auto", "train")) == 6
    assert build(path, ["tokenizer.engine=auto", "tokenizer.special=[<mask>]"]).reused


def test_marks_go_around_each_text(trained):
    plain, lengths = Reference(trained)(["one two", "", "three"])
    encoder = Encoder(open_engine(trained, "gigatoken"), eos_id=0, bos_id=7)
    ids, sizes = encoder.encode(["one two", "", "three"])
    assert sizes.tolist() == (lengths + 2).tolist()
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    assert all(part[0] == 7 and part[-1] == 0 for part in parts)
    assert np.concatenate([part[1:-1] for part in parts]).tolist() == plain.tolist()
    assert Encoder(Reference(trained), None).encode(["one two"])[0].tolist() == plain[: lengths[0]].tolist()


def test_special_tokens_are_given_their_ids_and_refused_where_they_mean_nothing(tmp_path, trained):
    assert {token: token_numbers(trained)[token] for token in ("</s>", "<mask>")} == {"</s>": 0, "<mask>": 1}
    (tmp_path / "d.txt").write_text("text")
    where = [{"path": str(tmp_path / "d.txt")}]
    for tokenizer, words in [
        ({"source": str(trained), "special": ["<x>"]}, "special is for a tokenizer trained here"),
        ({"train": "bpe", "special": ["<x>", "<x>"]}, "names a token twice, an empty one, or the end"),
        ({"train": "bpe", "special": ["<|endoftext|>"]}, "names a token twice, an empty one, or the end"),
        ({"train": "bpe", "engine": "fast"}, r"tokenizer.engine = 'fast'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            build(corpus_file(tmp_path, sources=where, tokenizer=tokenizer))


def test_the_benchmark_compares_all_engines_on_real_text():
    program = Path(__file__).parents[2] / "benchmarks/tokenizers_speed.py"
    command = [sys.executable, str(program), "--megabytes", "0.4", "--vocab-size", "500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"\| (\w+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", done.stdout)
    assert [name for name, _ in rows] == ["tokenizers", "gigatoken", "tiktoken"]
    assert len({ratio for _, ratio in rows}) == 1
