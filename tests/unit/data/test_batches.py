"""Rows and steps: packing, masks, seeking, epochs and mixtures, each against a slow and obvious version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset, random_documents

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches, held_out
from llmtrain.data.rows import IGNORED
from llmtrain.errors import DataError


def dataset(folder: Path, seed: int = 0, shards: int = 3, longest: int = 40, split: str = "train"):
    rng = np.random.default_rng(seed)
    documents = [random_documents(rng, 30, longest) for _ in range(shards)]
    make_dataset(folder, {split: documents})
    return DataSource(path=str(folder), split=split), [d for shard in documents for d in shard]


def batches(sources, seq_len=16, rows_per_step=5, seed=7, mask_documents=True) -> Batches:
    return Batches(sources, seq_len, rows_per_step, seed, mask_documents)


def slow_rows(documents, seq_len, mask):
    """(tokens, labels, positions) of every row, token by token."""
    stream = [(token, number) for number, document in enumerate(documents) for token in document]
    rows = []
    for start in range(0, len(stream) - seq_len, seq_len):
        window = stream[start : start + seq_len + 1]
        tokens, labels, positions, position = [], [], [], 0
        for (token, number), (following, next_number) in zip(window[:-1], window[1:], strict=True):
            tokens.append(token)
            positions.append(position)
            ends = mask and next_number != number
            labels.append(IGNORED if ends else following)
            position = 0 if ends else position + 1
        rows.append((tokens, labels, positions))
    return rows


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("seq_len", "longest"), [(16, 40), (16, 3), (2, 5), (50, 400), (7, 1)])
def test_an_epoch_holds_every_row_once_as_the_slow_version_cuts_it(tmp_path, mask, seq_len, longest):
    source, documents = dataset(tmp_path / "d", longest=longest)
    expected = slow_rows(documents, seq_len, mask)
    run = batches([source], seq_len, mask_documents=mask)
    assert run.rows_per_epoch == len(expected) and run.tokens_per_epoch == len(expected) * seq_len
    rows = run.rows(0, len(expected))
    arrays = rows.read(0, rows.count)
    got = list(zip(arrays.tokens.tolist(), arrays.labels.tolist(), arrays.positions.tolist(), strict=True))
    assert sorted(got) == sorted((t, label, p) for t, label, p in expected)
    assert rows.valid_tokens == (arrays.labels != IGNORED).sum()
    for array in (arrays.tokens, arrays.labels, arrays.positions):
        assert array.dtype == np.int64 and array.shape == (rows.count, seq_len)


def test_any_part_of_a_step_reads_as_in_the_whole(tmp_path):
    source, _ = dataset(tmp_path / "d")
    rows = batches([source], rows_per_step=11).at(3)
    whole = rows.read(0, 11)
    for start, stop in [(0, 0), (0, 4), (4, 11), (10, 11)]:
        part = rows.read(start, stop)
        for name in ("tokens", "labels", "positions"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[start:stop])


def test_a_step_does_not_depend_on_the_steps_before_it_nor_on_how_rows_make_steps(tmp_path):
    source, _ = dataset(tmp_path / "d")
    few, many = batches([source], rows_per_step=2), batches([source], rows_per_step=6)
    assert few.fingerprint == many.fingerprint
    together = np.concatenate([few.at(step).read(0, 2).tokens for step in (12, 13, 14)])
    assert np.array_equal(many.at(4).read(0, 6).tokens, together)


def test_epochs_and_seeds_order_rows_differently(tmp_path):
    source, _ = dataset(tmp_path / "d")
    run = batches([source])
    n = run.rows_per_epoch
    first, second = run.rows(0, n).row, run.rows(n, 2 * n).row
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(n))
    assert first.tolist() != second.tolist()
    assert first.tolist() != batches([source], seed=8).rows(0, n).row.tolist()


def test_a_mixture_draws_from_each_dataset_by_weight(tmp_path):
    big, _ = dataset(tmp_path / "a", seed=1, longest=200)
    small, _ = dataset(tmp_path / "b", seed=2)
    run = batches([big, small.model_copy(update={"weight": 3.0})])
    rows = run.rows(0, 400)
    assert np.bincount(rows.source).tolist() == [100, 300]
    arrays = rows.read(0, 400)
    for number, alone in enumerate([batches([big]), batches([small])]):
        mine = np.flatnonzero(rows.source == number)
        everything = alone.rows(0, alone.rows_per_epoch)
        seen = {row.tobytes() for row in everything.read(0, everything.count).tokens}
        assert all(arrays.tokens[k].tobytes() in seen for k in mine)
    assert rows.valid_tokens == (arrays.labels != IGNORED).sum()


def test_the_fingerprint_follows_what_decides_the_rows(tmp_path):
    source, documents = dataset(tmp_path / "d")
    heavy = source.model_copy(update={"weight": 2.0})
    other, _ = dataset(tmp_path / "e", seed=5)
    copy = make_dataset(tmp_path / "copy", {"train": [documents[k : k + 30] for k in (0, 30, 60)]})
    base = batches([source, other]).fingerprint
    assert batches([DataSource(path=str(copy)), other]).fingerprint == base
    changed = [
        batches([other, source]),
        batches([heavy, other]),
        batches([source, other], seq_len=17),
        batches([source, other], seed=8),
        batches([source, other], mask_documents=False),
    ]
    assert len({run.fingerprint for run in changed} | {base}) == 6


def test_held_out_rows_are_spread_evenly_and_never_more_than_there_are(tmp_path):
    source, documents = dataset(tmp_path / "d", split="valid")
    expected = slow_rows(documents, 16, True)
    rows = held_out([source], 16, 4, True)
    spread = [index * len(expected) // 4 for index in range(4)]
    assert rows.read(0, 4).tokens.tolist() == [expected[index][0] for index in spread]
    assert held_out([source], 16, len(expected), True).row.tolist() == list(range(len(expected)))
    assert held_out([source], 16, 10**6, True).count == len(expected)
    assert rows.bytes_per_token == 3.0


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("mask", [True, False])
def test_the_parts_of_held_out_rows_are_the_rows(tmp_path, mask, packing):
    sources = [dataset(tmp_path / str(seed), seed=seed)[0] for seed in (1, 2)]
    rows = held_out(sources, 16, 11, mask, packing)
    whole, parts = rows.read(0, 11), rows.parts(4)
    assert [part.count for part in parts] == [4, 4, 3]
    assert sum(part.valid_tokens for part in parts) == rows.valid_tokens
    for name in ("tokens", "labels", "positions"):
        read = [getattr(part.read(0, part.count), name) for part in parts]
        assert np.array_equal(np.concatenate(read), getattr(whole, name)), name


def test_held_out_rows_are_shared_by_weight_and_a_short_source_is_made_up_for(tmp_path):
    long, _ = dataset(tmp_path / "a", longest=300)
    short = DataSource(path=str(make_dataset(tmp_path / "b", {"train": [[list(range(40))]]})))
    rows = held_out([long, short.model_copy(update={"weight": 3.0})], 16, 4, True)
    assert rows.source.tolist() == [0, 0, 1, 1]
    assert rows.row[0] == 0 and rows.row[1] > 1 and rows.row[2:].tolist() == [0, 1]


def test_a_dataset_shorter_than_a_row_is_refused(tmp_path):
    folder = make_dataset(tmp_path / "tiny", {"train": [[[1] * 16]]})
    with pytest.raises(DataError, match=r"tiny split 'train' has 16 tokens, too few .*seq_len = 16"):
        batches([DataSource(path=str(folder))], seq_len=16)
    assert batches([DataSource(path=str(folder))], seq_len=15).rows_per_epoch == 1


def test_datasets_with_different_tokenizers_are_refused(tmp_path):
    one, _ = dataset(tmp_path / "a")
    documents = random_documents(np.random.default_rng(0), 20, 40)
    two = make_dataset(tmp_path / "b", {"train": [documents]}, tokenizer='{"other": 1}')
    with pytest.raises(DataError, match="build the datasets of one run with the same tokenizer"):
        batches([one, DataSource(path=str(two))])
