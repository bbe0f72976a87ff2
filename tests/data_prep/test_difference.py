"""`llmtrain data diff`: what made two datasets, what they hold, and the documents that only one has."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from corpora import corpus_file, some_text, texts_of

from data_prep import difference as module
from data_prep.build import build
from data_prep.difference import difference
from llmtrain.cli import main
from llmtrain.errors import DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dataset; one of a changed corpus and other steps; the first one built again; another tokenizer."""
    place = tmp_path_factory.mktemp("diff")
    rng = random.Random(4)
    texts = [f"{number} " + some_text(rng, 30) for number in range(400)]
    texts += texts[:20]  # some twice
    changed = [*texts[30:], *(f"new {number} " + some_text(rng, 30) for number in range(9)), "short"]
    for name, some in (("a", texts), ("b", changed)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))

    def make(name: str, source: str, **content) -> None:
        sources = [{"path": str(place / f"{source}.jsonl")}]
        build(corpus_file(place, sources=sources, output=str(place / name), splits={"valid": 0.2}, **content))

    make("A", "a")
    make("same", "a", workers=2)
    taken = {"source": str(place / "A/tokenizer")}
    make("B", "b", tokenizer=taken, steps=[{"length": {"min_chars": 10}}])
    make("other", "a", tokenizer={"train": "bpe", "vocab_size": 300})
    return place


def test_documents_of_one_side_are_counted_as_often_as_they_are_there(folders, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 50)
    found = difference(folders / "A", folders / "B").documents
    assert found is not None
    of = [
        Counter(text for split in ("train", "valid") for text in texts_of(folders / name, split))
        for name in "AB"
    ]
    assert (found.only_a, found.only_b) == ((of[0] - of[1]).total(), (of[1] - of[0]).total())
    assert found.only_a == 30 and found.only_b == 9 and found.both == (of[0] & of[1]).total()
    stay = sum(
        (Counter(texts_of(folders / "A", split)) & Counter(texts_of(folders / "B", split))).total()
        for split in ("train", "valid")
    )
    assert found.moved == found.both - stay > 0  # other lines, other splits
    for name, side, examples in (("A", 0, found.examples_a), ("B", 1, found.examples_b)):
        assert len(examples) == 3
        for example in examples:
            split, place = example.split("/00000:")
            assert texts_of(folders / name, split)[int(place)] not in of[1 - side]


def test_what_differs_is_listed_on_one_screen(folders, capsys):
    assert main(["data", "diff", str(folders / "A"), str(folders / "B")]) == 1
    shown = capsys.readouterr().out
    assert "steps.length.min_chars: — → 10" in shown and "source 0 content" in shown
    assert "documents only in B: 9, such as" in shown and "left out: length: too short" in shown
    assert len(shown.splitlines()) < 45 and max(map(len, shown.splitlines())) < 160
    assert main(["data", "diff", str(folders / "A"), str(folders / "B"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False and found["left_out"] == {"length: too short": [0, 1]}
    assert found["documents"]["only_b"] == 9
    assert found["amounts"]["documents in"] == [420, 400]


def test_a_dataset_built_twice_is_the_same(folders, capsys):
    assert main(["data", "diff", str(folders / "A"), str(folders / "same")]) == 0
    assert "the same tokens in the same order" in capsys.readouterr().out
    found = difference(folders / "A", folders / "same")
    assert not (found.made or found.sources or found.tokenizer or found.left_out)
    assert found.documents is not None and (found.documents.only_a, found.documents.both) == (0, 420)


def test_other_tokenizers_leave_documents_uncompared(folders):
    found = difference(folders / "A", folders / "other")
    assert found.documents is None and found.tokenizer["vocabulary"][1] == 300
    assert "documents are not compared: they are tokenized differently" in found.as_text()
    with pytest.raises(DataError, match="does not exist"):
        difference(folders / "A", folders / "nothing")


def test_records_of_one_key_are_never_parted():
    keys = np.array([1, 1, 2, 2, 2, 2, 2, 3, 4, 4], np.uint64)
    records = np.zeros(len(keys), module._RECORD)
    records["key"] = keys
    groups = list(module._whole_groups(np.split(records, [3, 4, 5, 9])))
    assert np.concatenate(groups)["key"].tolist() == keys.tolist()
    assert sum(len(set(group["key"].tolist())) for group in groups) == 4
