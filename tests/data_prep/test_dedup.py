"""Exact duplicates: what goes, what stays, and that chunks and memory change nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from step_driver import documents_from, in_two_passes

from data_prep.steps import disk_sort
from data_prep.steps.dedup import Dedup, make
from data_prep.steps.disk_sort import SortedRuns, with_leaders
from data_prep.steps.step import CorpusWideStep

LONG = "A paragraph that is long enough to be compared with others."
OTHER = "Another paragraph, just as long, that says something else."


@pytest.mark.parametrize(("room", "fan_in"), [(16, 2), (64, 3), (10_000, 4)])
def test_sorted_runs_give_every_record_in_order_and_equal_keys_as_they_came(tmp_path, room, fan_in):
    rng = np.random.default_rng(room)
    records = np.zeros(2000, [("key", "<u8"), ("row", "<u8")])
    often = np.array([0, 3, 7, 2**64 - 1], np.uint64)
    rare = rng.integers(100, 160, 2000).astype(np.uint64)
    records["key"] = np.where(rng.random(2000) < 0.7, rng.choice(often, 2000), rare)
    records["row"] = np.arange(2000)
    runs = SortedRuns(tmp_path / "runs", records.dtype, run_bytes=room * 16, fan_in=fan_in)
    for part in np.array_split(records, 13):
        runs.add(part)
    blocks = list(runs.merged())
    assert max(block.size for block in blocks) <= room + fan_in
    expected = records[np.argsort(records["key"], kind="stable")]
    assert (np.concatenate(blocks) == expected).all()
    assert not list((tmp_path / "runs").iterdir())


def test_leaders_are_the_first_of_their_key_across_blocks():
    keys = np.sort(np.random.default_rng(1).integers(0, 12, 100).astype(np.uint64))
    records = np.zeros(100, [("key", "<u8"), ("row", "<u8")])
    records["key"], records["row"] = keys, np.arange(100)
    seen = {}
    for block, leaders in with_leaders(iter(np.array_split(records, 9))):
        for one, leader in zip(block, leaders, strict=True):
            seen[int(one["row"])] = int(leader["row"])
    assert seen == {row: int(np.searchsorted(keys, key)) for row, key in enumerate(keys)}


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_first_of_equal_documents_stays_whatever_the_chunks_and_the_memory(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(disk_sort.SortedRuns.__init__, "__defaults__", (512, 2))
    rng = random.Random(0)
    texts = [f"text {rng.randrange(150)}" for _ in range(400)]
    step = make(Dedup())
    assert isinstance(step, CorpusWideStep)
    outcome = in_two_passes(step, texts, tmp_path / "work", chunk)
    assert outcome.texts == list(dict.fromkeys(texts))
    assert outcome.numbers == [texts.index(text) for text in outcome.texts]
    repeats = len(texts) - len(set(texts))
    assert outcome.tally.rejected == {"dedup: same text": repeats}
    assert outcome.report == {"by": "document", "documents": 400, "repeats": repeats}


def test_folded_texts_differ_in_neither_case_nor_white_space(tmp_path):
    texts = ["Straße one", " STRASSE\n\tOne ", "Strasse one.", "Straße one"]
    assert in_two_passes(make(Dedup()), texts, tmp_path / "exact").texts == texts[:3]
    folded = in_two_passes(make(Dedup(normalise="folded")), texts, tmp_path / "folded")
    assert folded.texts == [texts[0], texts[2]]


def test_paragraphs_go_when_they_came_before_and_the_rest_keeps_its_characters(tmp_path):
    texts = [
        f"{LONG}\r\n \r\nshort\n\nshort\n\n{OTHER}\n",
        f"head\n\n\n{LONG}\n\ntail  \n",
        f"{LONG}\n\n{OTHER}",
        f"mine alone\n\n{OTHER}\n\n",
        f"{LONG.upper()}\n\n{LONG.upper()}",
    ]
    outcome = in_two_passes(make(Dedup(by="paragraph")), texts, tmp_path / "work", chunk=2)
    assert outcome.texts == [texts[0], "head\n\n\ntail  \n", "mine alone\n\n", LONG.upper()]
    assert outcome.tally.rejected == {"dedup: repeated paragraphs only": 1}
    assert outcome.tally.found == {"dedup: paragraph": 5}
    assert outcome.report == {"by": "paragraph", "paragraphs": 8, "repeats": 5}
    folded = make(Dedup(by="paragraph", normalise="folded"))
    assert len(in_two_passes(folded, texts, tmp_path / "folded").texts) == 3


def test_texts_that_share_half_a_hash_are_not_taken_for_each_other(tmp_path):
    step = make(Dedup())
    texts = ["one", "two", "one"]
    note = step.notes

    def colliding(documents, first):
        noted = note(documents, first)
        noted["key"] = 7
        return noted

    step.notes = colliding
    assert in_two_passes(step, texts, tmp_path / "work").texts == ["one", "two"]


def test_nothing_to_compare_is_no_trouble(tmp_path):
    step = make(Dedup(by="paragraph"))
    assert step.notes(documents_from(["x"]), 0).size == 0
    outcome = in_two_passes(step, ["x", "x"], tmp_path / "work", chunk=1)
    assert outcome.texts == ["x", "x"]
    assert outcome.report["repeats"] == 0
