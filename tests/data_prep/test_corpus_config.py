"""The corpus file: misspelt keys at every level, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import corpus_file

from data_prep.build import build
from data_prep.corpus import CorpusConfig
from data_prep.show import show
from llmtrain.config.load import load_yaml_model
from llmtrain.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = {"sources": [{"path": "x"}]}


@pytest.mark.parametrize(
    ("content", "field", "nearest"),
    [
        ({**GOOD, "split": {}}, "split", "splits"),
        ({"sources": [{"path": "x", "formt": "text"}]}, "sources.0.formt", "format"),
        ({**GOOD, "tokenizer": {"train": "bpe", "vocab_sise": 9}}, "tokenizer.vocab_sise", "vocab_size"),
        ({**GOOD, "steps": [{"lenght": {}}]}, "steps.0.lenght", "length"),
        ({**GOOD, "steps": [{"length": {"min_char": 3}}]}, "steps.0.length.min_char", "min_chars"),
    ],
)
def test_a_misspelt_key_is_refused_at_every_level_with_the_nearest(tmp_path, content, field, nearest):
    with pytest.raises(ConfigError) as caught:
        build(corpus_file(tmp_path, **content))
    assert field in str(caught.value) and f"'{nearest}'" in str(caught.value)
    assert "corpus.yaml" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_home_is_expanded_in_the_tokenizers_place_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home-of-mine")
    content = {**GOOD, "tokenizer": {"source": "~/tok"}}
    loaded = load_yaml_model(corpus_file(tmp_path, **content), CorpusConfig)
    assert loaded.config.tokenizer.source == "/home-of-mine/tok"


def test_a_misspelt_override_is_refused_too(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        build(corpus_file(tmp_path, **GOOD), ["workrs=2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": [{"path": "x", "hub": "y"}]}, "exactly one of path, hub and stdlib"),
        ({"sources": [{}]}, "exactly one of path, hub and stdlib"),
        ({"sources": []}, "sources"),
        ({**GOOD, "tokenizer": {"vocab_size": 1000}}, "exactly one of tokenizer.train and tokenizer.source"),
        ({**GOOD, "splits": {"train": 0.5}}, "leave train out"),
        ({**GOOD, "splits": {"valid": 0.6, "test": 0.5}}, "nothing is left for train"),
        ({**GOOD, "splits": {"valid": 0}}, "splits.valid"),
        ({**GOOD, "name": "../x"}, "name"),
        ({"sources": [{"path": "x", "weight": 0}]}, "sources.0.weight"),
        ({**GOOD, "workers": 0}, "workers"),
        ({**GOOD, "steps": [{}]}, "name one step"),
    ],
)
def test_what_can_not_be_is_refused_with_its_field(tmp_path, content, message):
    with pytest.raises(ConfigError) as caught:
        build(corpus_file(tmp_path, **content))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["stdlib", "text-folder", "fineweb-edu"])
def test_the_corpora_in_recipes_are_valid(name):
    corpus = load_yaml_model(RECIPES / f"{name}.yaml", CorpusConfig, []).config
    assert corpus.name == name and corpus.folder == f"data/{name}"


def test_show_prints_rows_with_their_document_boundaries(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text(f"This is story {number}, and it ends here.")
    build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.txt")}]))
    shown = show(tmp_path / "out", rows=2, seq_len=64)
    assert shown.count("━━ row ") == 2 and "of 64 tokens are trained on" in shown
    assert "<|endoftext|>\n── next document ──\nThis is story" in shown
