"""Fine-tuning data: the mask file, the manifest that vouches for it, and the labels it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset, random_documents

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches, held_out
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest
from llmtrain.data.rows import IGNORED
from llmtrain.data.shards import ShardWriter
from llmtrain.data.verify import verify
from llmtrain.errors import DataError


def masked_folder(folder: Path, seed: int = 0, share: float = 0.4, kind: str = "chat"):
    """A masked dataset of two shards, its documents and their masks."""
    rng = np.random.default_rng(seed)
    shards = [random_documents(rng, 25, 30) for _ in range(2)]
    masks = [
        [[0, *(rng.random(len(document) - 1) < share).astype(int).tolist()] for document in shard]
        for shard in shards
    ]
    make_dataset(folder, {"train": shards}, kind=kind, masks={"train": masks})  # type: ignore[arg-type]
    return DataSource(path=str(folder)), sum(shards, []), sum(masks, [])


def slow_labels(documents, masks, seq_len):
    """Tokens and labels of every row, token by token: the next token where it is marked, else IGNORED."""
    tokens = [token for document in documents for token in document]
    marks = [mark for mask in masks for mark in mask]
    rows = []
    for start in range(0, len(tokens) - seq_len, seq_len):
        following = range(start + 1, start + seq_len + 1)
        labels = [tokens[k] if marks[k] else IGNORED for k in following]
        rows.append((tuple(tokens[start : start + seq_len]), tuple(labels)))
    return rows


@pytest.mark.parametrize(("seq_len", "share"), [(16, 0.4), (5, 0.4), (16, 0.02), (64, 1.0), (16, 0.0)])
def test_only_marked_tokens_are_labels_and_they_are_counted_before_any_read(tmp_path, seq_len, share):
    source, documents, masks = masked_folder(tmp_path / "d", share=share)
    expected = slow_labels(documents, masks, seq_len)
    run = Batches([source], seq_len, 4, 1, mask_documents=True)
    rows = run.rows(0, len(expected))
    arrays = rows.read(0, rows.count)
    got = [
        (tuple(t), tuple(label))
        for t, label in zip(arrays.tokens.tolist(), arrays.labels.tolist(), strict=True)
    ]
    assert sorted(got) == sorted(expected)
    assert rows.valid_tokens == (arrays.labels != IGNORED).sum()
    for step in range(5):
        some = run.at(step)
        assert some.valid_tokens == (some.read(0, 4).labels != IGNORED).sum()


def test_text_and_conversations_mix_in_one_run(tmp_path):
    chat, *_ = masked_folder(tmp_path / "chat")
    text = make_dataset(tmp_path / "text", {"train": [random_documents(np.random.default_rng(3), 40, 30)]})
    rows = Batches([chat, DataSource(path=str(text))], 16, 40, 1, mask_documents=True).at(0)
    labels = rows.read(0, 40).labels != IGNORED
    assert rows.valid_tokens == labels.sum()
    assert labels[rows.source == 1].mean() > 0.9 > 0.6 > labels[rows.source == 0].mean()
    assert held_out([chat], 16, 7, True).valid_tokens > 0


def test_the_fingerprint_covers_the_mask_and_the_kind(tmp_path):
    prints = set()
    for name, arguments in {
        "a": {},
        "b": {"share": 0.5},
        "c": {"kind": "prompt_completion"},
    }.items():
        masked_folder(tmp_path / name, **arguments)
        prints.add(read_manifest(tmp_path / name).fingerprint)
    assert len(prints) == 3


def test_a_text_manifest_is_written_as_it_was_before_there_were_masks(tmp_path):
    folder = make_dataset(tmp_path / "d", {"train": [[[1, 2, 0]]]})
    content = json.loads((folder / "manifest.json").read_text())
    assert content["version"] == 1 and "kind" not in content
    assert set(content["splits"]["train"]["shards"][0]) == {"name", "documents", "tokens", "bin", "idx"}
    assert read_manifest(folder).kind == "text" and not list(folder.rglob("*.mask"))


def test_a_mask_that_is_missing_cut_or_damaged_is_named(tmp_path):
    folder = tmp_path / "d"
    masked_folder(folder)
    assert "is good: 6 files" in verify(folder).render()
    path = folder / "train/00001.mask"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"00001.mask has \d+ bytes, the manifest says \d+"):
        open_dataset(folder, "train")
    path.write_bytes(bytes([whole[0]]) + bytes(1 - mark for mark in whole[1:]))
    with pytest.raises(DataError, match=r"00001.mask is damaged \(its sha256 differs"):
        verify(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"00001.mask is missing: build the dataset again"):
        open_dataset(folder, "train")


def test_a_manifest_without_its_masks_is_refused(tmp_path):
    masked_folder(tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"kind": "text"}))
    with pytest.raises(DataError, match="was edited"):
        read_manifest(tmp_path / "d")
    path.write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(DataError, match=r"its version, its kind \(chat\) and its masks do not agree"):
        read_manifest(tmp_path / "d")


def test_half_a_pair_and_a_wrong_count_of_trained_tokens_are_named(tmp_path):
    make_dataset(
        tmp_path / "half",
        {"train": [[[1, 2], [1, 3], [1, 4]]]},
        kind="preference",
        masks={"train": [[[0, 1], [0, 1], [0, 1]]]},
    )
    with pytest.raises(DataError, match="split 'train' has 3 documents, and a pair is two"):
        verify(tmp_path / "half")
    masked_folder(tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["trained_tokens"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has \d+ tokens that are trained on, its manifest says \d+"):
        verify(tmp_path / "d")


def test_a_first_token_is_never_trained_on(tmp_path):
    with pytest.raises(AssertionError, match="first token follows nothing"):
        ShardWriter(tmp_path / "s", 10, masked=True).add(np.array([1, 2]), None, np.array([1, 1], np.uint8))


def test_pairs_and_open_documents_are_refused_with_the_way_out(tmp_path):
    chat, *_ = masked_folder(tmp_path / "chat")
    pairs, *_ = masked_folder(tmp_path / "pairs", kind="preference")
    with pytest.raises(DataError, match=r"pairs holds preference pairs .* build the chosen ones as kind"):
        Batches([pairs], 16, 4, 1, mask_documents=True)
    with pytest.raises(DataError, match=r"data.mask_documents = False .*: set data.mask_documents: true"):
        Batches([chat], 16, 4, 1, mask_documents=False)
    with pytest.raises(DataError, match="set data.mask_documents: true"):
        held_out([chat], 16, 4, False)


def test_best_fit_rows_teach_each_marked_token_once_and_cut_no_conversation(tmp_path):
    source, documents, masks = masked_folder(tmp_path / "d")
    run = Batches([source], 32, 4, 1, mask_documents=True, packing="best_fit")
    rows = run.rows(0, run.rows_per_epoch)
    arrays = rows.read(0, rows.count)
    expected = [
        token
        for document, mask in zip(documents, masks, strict=True)
        for token, mark in zip(document, mask, strict=True)
        if mark
    ]
    assert sorted(arrays.labels[arrays.labels != IGNORED].tolist()) == sorted(expected)
    assert rows.valid_tokens == len(expected)
