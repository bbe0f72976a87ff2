"""A dataset folder vouches for itself: whatever is missing, cut, swapped or edited is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset, random_documents

from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest
from llmtrain.data.verify import verify
from llmtrain.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    documents = [[[*document, 0] for document in random_documents(rng, 20, 30)] for _ in range(3)]
    return make_dataset(tmp_path / "data", {"train": documents[:2], "valid": documents[2:]})


def edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_good_folder_opens_and_verifies(folder):
    dataset = open_dataset(folder, "train")
    assert dataset.tokens == dataset.ends[-1] == dataset.entry.tokens
    assert (dataset.vocab_size, dataset.eos_id, len(dataset.ends)) == (1000, 0, 40)
    assert dataset.tokenizer_folder == folder / "tokenizer"
    report = verify(folder)
    assert report.files == 6 and "is good: 6 files" in report.render()


@pytest.mark.parametrize("name", ["train/00001.bin", "valid/00000.idx", "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing: build the dataset again"):
        open_dataset(folder, "train")


@pytest.mark.parametrize(
    "name", ["../train/00000", "/etc/passwd", "train/../../x", "train/.hidden", "train//0", "a\0b", ""]
)
def test_a_manifest_can_not_name_a_shard_outside_its_folder(folder, name):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["name"] = name
    edit(folder, splits=content["splits"])
    with pytest.raises(DataError, match=r"manifest.json is damaged at splits.train.shards.0.name"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["train/00001.bin", "train/00001.idx"])
def test_a_cut_file_is_named_at_open(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"{name} has \d+ bytes, the manifest says \d+"):
        open_dataset(folder, "train")


def test_every_flipped_bit_is_found_by_verify(folder):
    rng = np.random.default_rng(1)
    names = ["train/00000.bin", "train/00001.idx", "valid/00000.bin", "tokenizer/tokenizer.json"]
    for number in range(100):
        path = folder / names[number % 4]
        whole = path.read_bytes()
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        with pytest.raises(DataError, match=path.name):
            verify(folder)
        path.write_bytes(whole)
    verify(folder)


def test_swapped_shards_are_found_by_verify(folder):
    one, two = folder / "train/00000", folder / "train/00001"
    for suffix in (".bin", ".idx"):
        one.with_suffix(suffix).rename(folder / "kept")
        two.with_suffix(suffix).rename(one.with_suffix(suffix))
        (folder / "kept").rename(two.with_suffix(suffix))
    with pytest.raises(DataError, match=r"train/0000\d\.(bin|idx)"):
        verify(folder)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist \(no manifest\.json\).*llmtrain data build"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="is an unfinished or foreign folder"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 4}, "has format version 4, this llmtrain reads 1 to 3"),
        ({"version": 2}, "its version, its kind .text. and its masks do not agree"),
        ({"format": "other"}, "is not the manifest of a llmtrain-dataset"),
        ({"vocab_size": "many"}, "is damaged at vocab_size"),
        ({"surprise": 1}, "is damaged at surprise"),
        ({"vocab_size": 999}, "was edited: its fingerprint does not follow"),
    ],
)
def test_a_manifest_that_is_not_what_was_written_is_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(DataError, match=message):
        read_manifest(folder)


def test_a_manifest_cut_short_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(DataError, match="is not readable JSON"):
        read_manifest(folder)


def test_counts_that_disagree_with_the_shards_are_refused(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["documents"] += 1
    edit(folder, splits=content["splits"])
    with pytest.raises(DataError, match=r"train/00000\.idx holds 20 documents .* the manifest says 21"):
        open_dataset(folder, "train")


def test_an_unknown_split_is_answered_with_the_nearest(folder):
    with pytest.raises(DataError, match=r"no split 'vald' \(train, valid\) did you mean 'valid'\?"):
        open_dataset(folder, "vald")


def test_the_fingerprint_survives_a_copy_and_follows_the_content(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    copy = read_manifest(tmp_path / "elsewhere", hashes=True)
    assert copy.fingerprint == read_manifest(folder).fingerprint
    documents = [[[1, 2, 0]], [[3, 0]]]
    prints = {
        read_manifest(make_dataset(tmp_path / name, splits, **options)).fingerprint
        for name, splits, options in [
            ("a", {"train": documents}, {}),
            ("b", {"train": [[[1, 2], [0, 3, 0]]]}, {}),
            ("c", {"train": documents[::-1]}, {}),
            ("d", {"valid": documents}, {}),
            ("e", {"train": documents}, {"vocab_size": 1001}),
            ("f", {"train": documents}, {"tokenizer": "{}"}),
        ]
    }
    assert len(prints) == 6


def test_an_unmarked_document_end_is_found_by_verify(tmp_path):
    folder = make_dataset(tmp_path / "d", {"train": [[[1, 2, 0], [3, 4]]]})
    with pytest.raises(DataError, match=r"train/00000\.bin: document 1 does not end with <\|endoftext\|>"):
        verify(folder)


def test_an_id_outside_the_vocabulary_is_found_by_verify(tmp_path, monkeypatch):
    folder = make_dataset(tmp_path / "d", {"train": [[[1, 999, 0]]]}, vocab_size=1000)
    content = json.loads((folder / "manifest.json").read_text())
    monkeypatch.setattr("llmtrain.data.manifest.fingerprint", lambda *_: content["fingerprint"])
    edit(folder, vocab_size=900)
    with pytest.raises(DataError, match="holds token id 999, outside the vocabulary of 900"):
        verify(folder)
