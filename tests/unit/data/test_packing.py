"""Packings: best fit against a slow and obvious version, and the law of every packing, token by token.

Tokens are numbered through the dataset, so that a row tells where each of its tokens comes from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches, held_out
from llmtrain.data.fit import best_fit, fill_by_cropping
from llmtrain.data.rows import IGNORED
from llmtrain.errors import DataError

PADDED = ("best_fit", "best_fit_crop")


def slow_best_fit(lengths: list[int], room: int) -> list[int]:
    """Tokens of each row: each piece, the longest first, goes where the least room is left behind it.

    Which of two rows with the same room takes it is free, and changes no sum.
    """
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= room]
        if fitting:
            min(fitting, key=lambda row: room - sum(row)).append(length)
        else:
            rows.append([length])
    return sorted(map(sum, rows))


@pytest.mark.parametrize("seed", range(12))
def test_groups_of_pieces_go_where_one_after_the_other_would(seed):
    rng = np.random.default_rng(seed)
    room = int(rng.integers(1, 40))
    lengths = rng.integers(0, room + 1, 150) if seed % 3 else rng.integers(1, max(2, room // 4), 150)
    fit = best_fit(lengths, room)
    sums = np.add.reduceat(lengths[fit.order], fit.bounds[:-1])
    assert sorted(sums.tolist()) == slow_best_fit([n for n in lengths.tolist() if n], room)
    assert sorted(fit.order.tolist()) == np.flatnonzero(lengths).tolist()


def test_nothing_to_place_makes_no_row():
    for lengths in (np.zeros(0, np.int64), np.zeros(5, np.int64)):
        assert best_fit(lengths, 8).rows == fill_by_cropping(best_fit(lengths, 8), lengths, 8).rows == 0


@pytest.mark.parametrize("room", [2048, 2**16 + 7])
def test_rows_of_many_documents_are_full_but_for_a_thousandth(room):
    lengths = np.maximum(np.random.default_rng(1).lognormal(6.2, 1.2, 100_000), 1).astype(np.int64) % room
    fit = best_fit(lengths, room)
    assert np.array_equal(np.sort(fit.order), np.flatnonzero(lengths))
    filled = np.add.reduceat(lengths[fit.order], fit.bounds[:-1])
    assert filled.max() <= room and lengths.sum() / (fit.rows * room) > (0.999 if room < 10_000 else 0.99)


@pytest.mark.parametrize("seed", range(8))
def test_cropping_fills_every_row_and_crops_only_the_last_piece(seed):
    rng = np.random.default_rng(seed)
    room = int(rng.integers(2, 60))
    lengths = rng.integers(1, room, 200) if seed else np.full(200, room * 3 // 5 + 1)
    fit = fill_by_cropping(best_fit(lengths, room), lengths, room)
    assert len(np.unique(fit.order)) == len(fit.order)
    for k in range(fit.rows):
        row = lengths[fit.order[fit.bounds[k] : fit.bounds[k + 1]]]
        assert row.sum() >= room > row[:-1].sum()
    assert fit.rows >= lengths.sum() // room * 0.6


def numbered(folder: Path, lengths: list[list[int]]) -> tuple[DataSource, np.ndarray]:
    """A dataset whose token i of the stream is i + 1, and where its documents end."""
    flat = [length for shard in lengths for length in shard]
    ends = np.cumsum(flat)
    stream = np.arange(1, ends[-1] + 1)
    documents = iter(np.split(stream, ends[:-1]))
    shards = [[next(documents).tolist() for _ in shard] for shard in lengths]
    make_dataset(folder, {"train": shards}, vocab_size=100_000)
    return DataSource(path=str(folder)), ends


def check_row(tokens, labels, positions, ends, mask: bool) -> list[int]:
    """Asserts all that holds of one row; the tokens it reads, without padding."""
    size = int((tokens != 0).sum())
    assert (tokens[:size] > 0).all() and (tokens[size:] == 0).all() and (labels[size:] == IGNORED).all()
    own = tokens[:size] - 1  # places in the stream
    document = np.searchsorted(ends, own, side="right")
    for k in range(size):
        is_end = own[k] + 1 == ends[document[k]]
        starts = k == 0 or own[k] != own[k - 1] + 1 or document[k] != document[k - 1]
        expected = 0 if k == 0 or (mask and starts) else positions[k - 1] + 1
        assert positions[k] == expected
        follows = IGNORED if k + 1 == size else tokens[k + 1]
        assert labels[k] == (own[k] + 2 if not is_end else IGNORED if mask else follows)
    if size < len(tokens):
        first = 0 if mask else size
        assert positions[size:].tolist() == list(range(first, first + len(tokens) - size))
    return own.tolist()


CASES = [(16, 40), (16, 9), (7, 60), (2, 5), (64, 30), (5, 1)]


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("seq_len", "longest"), CASES)
@pytest.mark.parametrize("packing", PADDED)
def test_an_epoch_obeys_the_law_of_its_packing(tmp_path, packing, seq_len, longest, mask):
    rng = np.random.default_rng(seq_len + longest)
    shards = [rng.integers(0, longest + 1, 40).tolist() for _ in range(3)] + [[seq_len, 2 * seq_len, 1]]
    source, ends = numbered(tmp_path / "d", shards)
    run = Batches([source], seq_len, 5, 7, mask, packing)
    rows = run.rows(0, run.rows_per_epoch)
    arrays = rows.read(0, rows.count)
    read: list[int] = []
    starts = {0, *ends.tolist()}
    for k in range(rows.count):
        own = check_row(arrays.tokens[k], arrays.labels[k], arrays.positions[k], ends, mask)
        read += own
        if packing == "best_fit_crop":
            assert own[0] in starts and len(own) == seq_len
    assert len(set(read)) == len(read)
    if packing == "best_fit":
        assert sorted(read) == list(range(ends[-1]))
    assert run.lost == pytest.approx(1 - len(read) / ends[-1])
    assert run.padded == pytest.approx(1 - len(read) / arrays.tokens.size)
    assert rows.valid_tokens == (arrays.labels != IGNORED).sum()
    for start, stop in [(0, 0), (1, 3), (rows.count - 1, rows.count)]:
        part = rows.read(start, stop)
        for name in ("tokens", "labels", "positions"):
            assert np.array_equal(getattr(part, name), getattr(arrays, name)[start:stop])


@pytest.mark.parametrize("packing", PADDED)
def test_rows_do_not_depend_on_shards_nor_on_how_rows_make_steps(tmp_path, packing):
    lengths = np.random.default_rng(3).integers(1, 50, 90).tolist()
    one, _ = numbered(tmp_path / "one", [lengths])
    many, _ = numbered(tmp_path / "many", [lengths[:1], lengths[1:50], [], lengths[50:]])
    whole = Batches([one], 24, 4, 1, True, packing)
    cut = Batches([many], 24, 12, 1, True, packing)
    assert [step.count for step in (whole.at(0), cut.at(0))] == [4, 12]
    together = [np.concatenate([whole.at(3 + k).read(0, 4).tokens for k in range(3)]), cut.at(1).read(0, 12)]
    assert np.array_equal(together[0], together[1].tokens)


def test_packings_mix_mask_and_evaluate_as_concatenation_does(tmp_path):
    rng = np.random.default_rng(4)
    one, _ = numbered(tmp_path / "a", [rng.integers(1, 60, 60).tolist()])
    marked = [rng.integers(1, 999, n).tolist() for n in rng.integers(2, 40, 50)]
    marks = [[0, *(rng.random(len(d) - 1) < 0.5).astype(int).tolist()] for d in marked]
    chat = make_dataset(
        tmp_path / "b",
        {"train": [marked]},
        vocab_size=100_000,
        kind="chat",
        masks={"train": [marks]},
    )
    sources = [one.model_copy(update={"weight": 2.0}), DataSource(path=str(chat))]
    taught = sum(map(sum, marks))
    for packing in ("concat", *PADDED):
        run = Batches(sources, 32, 6, 1, True, packing)
        for step in range(4):
            rows = run.at(step)
            assert np.bincount(rows.source).tolist() == [4, 2]
            assert rows.valid_tokens == (rows.read(0, 6).labels != IGNORED).sum()
        alone = held_out([sources[1]], 32, None, True, packing)
        assert alone.valid_tokens == (alone.read(0, alone.count).labels != IGNORED).sum()
        assert 0 < alone.valid_tokens <= taught
        if packing == "best_fit":  # pieces keep the label behind them: every marked token is learnt once
            assert alone.valid_tokens == taught
    prints = {Batches(sources, 32, 6, 1, True, packing).fingerprint for packing in ("concat", *PADDED)}
    assert len(prints) == 3


def test_a_split_that_makes_no_row_is_refused_in_the_words_of_its_packing(tmp_path):
    source, _ = numbered(tmp_path / "d", [[3, 4]])
    assert Batches([source], 16, 1, 1, True, "best_fit").rows_per_epoch == 1
    with pytest.raises(
        DataError, match=r"has 7 tokens, too few .*seq_len = 16 by data.packing = best_fit_crop"
    ):
        Batches([source], 16, 1, 1, True, "best_fit_crop")
