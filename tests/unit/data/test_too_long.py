"""Conversations longer than a row: the rows left are those of a dataset that was made without the excess."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset

from llmtrain.config.schema import DataSection, DataSource
from llmtrain.data.batches import Batches, held_out
from llmtrain.data.rows import IGNORED
from llmtrain.data.too_long import cut_from_the_left
from llmtrain.errors import ConfigError, DataError

PACKINGS = ("concat", "best_fit", "best_fit_crop")
HEAD, AGAIN = 2, 4  # the bits of a mask: the head ends before this token; the rest may begin with it
Marked = list[tuple[int, int]]


def conversation(rng: np.random.Generator, turns: int) -> Marked:
    """(token, mark) of a system turn of 3 tokens, then exchanges; each may begin the rest but the first."""
    marked = [(int(rng.integers(1, 900)), 0) for _ in range(3)]
    for turn in range(turns):
        asked, said = rng.integers(1, 6, 2).tolist()
        begins = HEAD if turn == 0 else AGAIN
        marks = [begins, *[0] * (asked - 1), *[1] * said, 0]
        marked += [
            (int(token), mark) for token, mark in zip(rng.integers(1, 900, len(marks)), marks, strict=True)
        ]
    return marked


def slowly(marked: Marked, longest: int, policy: str) -> Marked | None:
    """What is left of a conversation, by trying each place."""
    if len(marked) <= longest:
        return marked
    head = [at for at, (_, mark) in enumerate(marked) if mark & HEAD][0]
    for at, (_, mark) in enumerate(marked):
        left = marked[:head] + marked[at:]
        if policy == "truncate_left" and mark & AGAIN and len(left) <= longest:
            return left
    return None


def folder_of(folder: Path, shards: list[list[Marked]], **more: object) -> DataSource:
    tokens = [[[token for token, _ in marked] for marked in shard] for shard in shards]
    marks = [[[mark for _, mark in marked] for marked in shard] for shard in shards]
    make_dataset(folder, {"train": tokens}, kind="chat", masks={"train": marks}, **more)  # type: ignore[arg-type]
    return DataSource(path=str(folder))


def of_run(source: DataSource, seq_len: int, **data: object) -> Batches:
    section = DataSection.model_validate({"train": [source.model_dump()], "seq_len": seq_len, **data})
    origins = {"data.seq_len": "run.yaml:9", "data.too_long": "command line"}
    return Batches.of_run(section, 5, 7, 4, origins)


@pytest.mark.parametrize("policy", ["drop", "truncate_left"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_are_those_of_a_dataset_made_without_the_excess(tmp_path, packing, policy):
    rng = np.random.default_rng(len(packing))
    shards = [[conversation(rng, int(rng.integers(1, 9))) for _ in range(40)] for _ in range(2)]
    seq_len = 24
    kept = [[left for each in shard if (left := slowly(each, seq_len, policy))] for shard in shards]
    whole, small = folder_of(tmp_path / "whole", shards), folder_of(tmp_path / "small", kept)
    run = of_run(whole, seq_len, packing=packing, too_long=policy)
    expected = of_run(small, seq_len, packing=packing)
    assert 0 < run.rows_per_epoch == expected.rows_per_epoch
    for start, stop in [(0, run.rows_per_epoch), (3, 5), (run.rows_per_epoch - 1, run.rows_per_epoch + 9)]:
        ours, theirs = run.rows(start, stop), expected.rows(start, stop)
        assert ours.valid_tokens == theirs.valid_tokens
        for name in ("tokens", "labels", "positions"):
            got, wanted = (getattr(rows.read(0, stop - start), name) for rows in (ours, theirs))
            assert np.array_equal(got, wanted), name
    assert (run.lost, run.padded) == (expected.lost, expected.padded)
    (excess,) = (dataset.excess for dataset in run.datasets)
    left = sum(map(len, kept))
    assert excess.count == sum(len(each) > seq_len for shard in shards for each in shard) > 0
    assert excess.dropped == 80 - left and excess.shortened == excess.count - excess.dropped
    assert run.fingerprint != expected.fingerprint
    held = held_out([whole], seq_len, None, True, packing, policy)
    assert held.valid_tokens == held_out([small], seq_len, None, True, packing).valid_tokens
    if packing == "best_fit":  # every marked token of what is left is learnt, and no other
        marked = sum(mark & 1 for shard in kept for each in shard for _, mark in each)
        assert run.rows(0, run.rows_per_epoch).valid_tokens == marked
        assert not any("cuts" in note for note in run.notes)


def test_the_token_behind_the_head_is_never_learnt_and_the_rest_begins_between_turns(tmp_path):
    marked = [(9, 0), (8, 0), (1, HEAD), (2, 1), (3, 1), (4, AGAIN), (5, 1), (6, AGAIN), (7, 1)]
    run = of_run(folder_of(tmp_path / "d", [[marked]]), 6, packing="best_fit", too_long="truncate_left")
    arrays = run.rows(0, 1).read(0, 1)
    assert arrays.tokens[0].tolist() == [9, 8, 4, 5, 6, 7]
    assert arrays.labels[0].tolist() == [IGNORED, IGNORED, 5, IGNORED, 7, IGNORED]
    assert arrays.positions[0].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("marks", "longest", "expected"),
    [
        ([0, 0, 2, 1, 4, 1], 5, (2, 4)),
        ([0, 0, 2, 1, 4, 1], 4, (2, 4)),
        ([0, 0, 2, 1, 4, 1], 3, (0, -1)),  # not even the last turn fits beside the head
        ([2, 1, 4, 1, 4, 1], 5, (0, 2)),  # no head
        ([0, 0, 2, 1, 4, 0], 5, (0, -1)),  # nothing to learn is left
        ([0, 0, 1, 1, 1, 1], 5, (0, -1)),  # an older dataset, which says nothing of places
        ([0, 0, 2, 6, 1, 1], 5, (2, 3)),
    ],
)
def test_cut_from_the_left(marks, longest, expected):
    assert cut_from_the_left(np.array(marks, np.uint8), longest) == expected


def test_a_run_that_does_not_say_what_becomes_of_them_is_refused_and_told_how_many(tmp_path):
    rng = np.random.default_rng(1)
    shards = [[conversation(rng, 1) for _ in range(30)] + [conversation(rng, 40)]]
    source = folder_of(tmp_path / "d", shards)
    longest = len(shards[0][-1])
    counted = rf"d \(train\): 1 of 31 conversations are longer than a row of 20 tokens, the longest {longest}"
    for data in ({}, {"too_long": "refuse"}):
        with pytest.raises(
            ConfigError, match=rf"data.seq_len = 20 \(run.yaml:9\): .*{counted}, .*set data.too_long"
        ):
            of_run(source, 20, packing="best_fit", **data)
    with pytest.raises(DataError, match=rf"{counted}: set data.too_long: drop, or truncate_left"):
        held_out([source], 20, None, True, "best_fit", "refuse")
    run = of_run(source, 20, packing="best_fit", too_long="drop")
    (note,) = run.notes
    assert note.endswith(f"the longest {longest}: 1 left out (data.too_long)")
    alone = folder_of(tmp_path / "alone", [[shards[0][-1]]])
    with pytest.raises(DataError, match="1 left out: nothing is left for a row: raise data.seq_len"):
        of_run(alone, 5, too_long="truncate_left")


def test_a_dataset_of_format_2_is_read_and_says_nothing_of_places(tmp_path):
    rng = np.random.default_rng(3)
    plain = [[(token, mark & 1) for token, mark in conversation(rng, turns)] for turns in (1, 1, 9)]
    source = folder_of(tmp_path / "d", [plain])
    path = tmp_path / "d" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    run = of_run(source, 20, packing="best_fit", too_long="truncate_left")
    assert run.notes[0].endswith(": 1 left out (data.too_long)") and run.rows_per_epoch > 0


def test_where_nothing_is_too_long_the_policy_changes_nothing_and_concat_says_what_it_cuts(tmp_path):
    rng = np.random.default_rng(2)
    source = folder_of(tmp_path / "d", [[conversation(rng, 1) for _ in range(30)]])
    runs = [of_run(source, 40, **data) for data in ({}, {"too_long": "drop"}, {"too_long": "truncate_left"})]
    assert len({run.fingerprint for run in runs}) == 1
    (note,) = runs[0].notes
    assert "data.packing = concat cuts " in note and note.endswith(
        "of 30 documents where a row ends; best_fit keeps them whole"
    )
    assert of_run(source, 40, packing="best_fit").notes == ()


def test_text_is_cut_where_rows_end_and_a_policy_for_it_is_refused(tmp_path):
    folder = make_dataset(tmp_path / "text", {"train": [[[1] * 90]]})
    source = DataSource(path=str(folder))
    assert of_run(source, 20).rows_per_epoch == 4 and of_run(source, 20).notes == ()
    with pytest.raises(
        ConfigError, match=r"data.too_long = 'drop' \(command line\): no data.train source holds"
    ):
        of_run(source, 20, too_long="drop")
