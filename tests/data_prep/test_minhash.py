"""Near-duplicates: found as brute force finds them, the same for every cut into chunks and any memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import near_duplicates
import numpy as np
import pytest
from near_duplicates import exact_pairs, later_of_clusters, measure, planted
from step_driver import in_two_passes

from data_prep.steps import clusters, dedup, disk_sort, minhash
from data_prep.steps.clusters import Clusters
from data_prep.steps.dedup import Dedup
from data_prep.steps.dedup import make as make_dedup
from data_prep.steps.minhash import MinHash, make, similarity
from data_prep.steps.step import CorpusWideStep
from llmtrain.errors import DataError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return planted(1200, seed=3)


@pytest.fixture(scope="module")
def truth(texts) -> dict[tuple[int, int], float]:
    return exact_pairs(texts, 0.5)


def test_recall_and_precision_against_brute_force(texts, truth, monkeypatch):
    monkeypatch.setattr(near_duplicates, "CHUNK", 500)
    assert sum(jaccard >= 0.8 for jaccard in truth.values()) > 100
    assert sum(0.6 < jaccard < 0.8 for jaccard in truth.values()) > 60, "nothing that could be mistaken"
    result = measure(MinHash(), texts, truth)
    assert result.documents.recall >= 0.95
    assert result.documents.precision >= 0.95
    assert result.pairs.precision >= 0.95


def test_fineweb_layout_takes_what_the_bands_let_through(texts, truth):
    result = measure(MinHash(bands=14, rows=8, threshold=None), texts, truth)
    expected = {pair: 1 - (1 - jaccard**8) ** 14 for pair, jaccard in truth.items() if jaccard < 0.8}
    assert result.documents.recall >= 0.95
    wrong = result.pairs.found - result.pairs.right
    assert wrong == pytest.approx(sum(expected.values()), rel=0.25)


def test_brute_force_counts_as_the_definition_says():
    texts = ["a b c d e f g", "a b c d e f", "x y", "X, y!", "a b c d e f g h i j"]
    assert exact_pairs(texts, 0.3) == {(0, 1): 2 / 3, (2, 3): 1.0, (0, 4): 0.5, (1, 4): 1 / 3}


@pytest.mark.parametrize(("common", "each"), [(800, 100), (150, 30), (3000, 700), (10, 2), (400, 400)])
def test_a_sketch_estimates_the_similarity_without_bias(common, each):
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        grams = rng.integers(0, 2**63, common + 2 * each).astype(np.uint64)
        sides = [grams[: common + each], np.concatenate([grams[:common], grams[common + each :]])]
        sketches = minhash._sketch(np.concatenate(sides), np.array([common + each] * 2))
        errors.append(similarity(sketches[:1], sketches[1:])[0] - common / (common + 2 * each))
    assert abs(np.mean(errors)) < 0.008
    assert np.std(errors) < 0.025


@pytest.mark.parametrize("jaccard", [0.5, 0.8])
def test_signatures_agree_with_the_probability_of_the_similarity(jaccard):
    step = make(MinHash(bands=200, rows=1))
    rng = np.random.default_rng(0)
    common, each = 1000, round(500 * (1 / jaccard - 1))
    grams = rng.integers(0, 2**63, common + 2 * each).astype(np.uint64)
    sides = [grams[: common + each], np.concatenate([grams[:common], grams[common + each :]])]
    keys = step._band_keys(np.concatenate(sides), np.array([common + each] * 2))
    assert (keys[0] == keys[1]).mean() == pytest.approx(jaccard, abs=0.09)
    assert np.unique(keys[0]).size == 200, "bands of equal content must not meet"


def test_chunks_and_memory_change_nothing(tmp_path, texts, monkeypatch):
    step = make(MinHash())
    assert isinstance(step, CorpusWideStep)
    whole = in_two_passes(step, texts[:500], tmp_path / "whole", chunk=1000, call=1000)
    monkeypatch.setattr(disk_sort.SortedRuns.__init__, "__defaults__", (4096, 3))
    monkeypatch.setattr(minhash, "_READ_BYTES", 3000)
    monkeypatch.setattr(minhash, "_PAIRS", 5)
    monkeypatch.setattr(clusters, "_PART", 50)
    small = in_two_passes(step, texts[:500], tmp_path / "small", chunk=37, call=5)
    assert small.numbers == whole.numbers and small.report == whole.report
    dropped = 500 - len(whole.numbers)
    assert whole.tally.rejected == {"minhash: near-duplicate": dropped} and dropped > 10
    assert whole.report["duplicates"] == dropped
    assert sum(whole.report["cluster_sizes"].values()) == whole.report["clusters"]


def test_the_earliest_stays_and_documents_without_words_are_left_alone(tmp_path):
    words = [f"w{number}" for number in range(60)]
    base = " ".join(words)
    texts = ["...", "one two", base, "...", base.upper() + " end", "One, two!", "", base.replace("w0 ", "")]
    outcome = in_two_passes(make(MinHash()), texts, tmp_path / "work", chunk=2)
    assert outcome.numbers == [0, 1, 2, 3, 6]
    assert outcome.report["clusters"] == 2 and outcome.report["largest_cluster"] == 3
    assert outcome.report["cluster_sizes"] == {"2": 1, "3-4": 1}


def test_text_without_spaces_is_compared_by_characters(tmp_path):
    rng = random.Random(0)
    base = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(300))
    other = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(300))
    texts = [base, other, base[:150] + "。" + base[150:-5]]
    assert in_two_passes(make(MinHash()), texts, tmp_path / "work").texts == [base, other]


def test_union_find_joins_what_a_plain_one_joins(tmp_path):
    rng = np.random.default_rng(0)
    found = Clusters(tmp_path / "clusters", 3000)
    pairs = rng.integers(0, 3000, (1400, 2))
    for part in np.array_split(pairs, 9):
        found.join(part[:, 0], part[:, 1])
    later = set(np.flatnonzero(found.later(range(3000))).tolist())
    assert later == later_of_clusters([tuple(pair) for pair in pairs.tolist()], 3000)
    assert found.describe()["duplicates"] == len(later)


def test_an_empty_corpus_and_one_with_empty_chunks_resolve(tmp_path):
    assert in_two_passes(make(MinHash()), [], tmp_path / "none").report["documents"] == 0
    step = make(MinHash())
    notes = [tmp_path / "0", tmp_path / "1"]
    notes[0].write_bytes(b"")
    step.notes([], 0).tofile(notes[1])
    (tmp_path / "scratch").mkdir()
    step.resolve(notes, [tmp_path / "0.npy", tmp_path / "1.npy"], tmp_path / "scratch", lambda *_: None)
    assert np.load(tmp_path / "1.npy").size == 0


def test_more_documents_than_it_can_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(minhash, "_MOST_DOCUMENTS", 2)
    with pytest.raises(DataError, match=r"^steps: minhash compares at most 2 documents, not 3: make several"):
        in_two_passes(make(MinHash()), ["a", "b", "c"], tmp_path / "work")


def test_the_memory_series_measures_this_process():
    peak, rate, resolving = near_duplicates.memory_of("minhash", 300)
    assert peak > 10 and rate > 0 and resolving >= 0


def test_planted_copies_have_the_similarity_asked_for():
    rng = random.Random(1)
    words, other = [f"w{number}" for number in range(800)], [f"x{number}" for number in range(9000)]
    for similarity_asked in (0.55, 0.8, 0.95):
        copies = [near_duplicates.edited(words, similarity_asked, other, rng) for _ in range(12)]
        pairs = exact_pairs([" ".join(words), *map(" ".join, copies)], 0.1)
        found = [jaccard for (first, _), jaccard in pairs.items() if first == 0]
        assert np.mean(found) == pytest.approx(similarity_asked, abs=0.05)


@pytest.mark.parametrize("step", [make(MinHash(bands=4)), make_dedup(Dedup())], ids=["minhash", "dedup"])
def test_four_times_the_documents_take_no_more_memory(tmp_path, step, monkeypatch):
    monkeypatch.setattr(disk_sort.SortedRuns.__init__, "__defaults__", (2**13, 4))
    monkeypatch.setattr(minhash, "_READ_BYTES", 2**17)
    monkeypatch.setattr(minhash, "_PAIRS", 2**7)
    monkeypatch.setattr(clusters, "_PART", 2**9)
    monkeypatch.setattr(dedup, "_ROWS", 2**9)
    peaks = [peak_of_resolving(step, count, tmp_path / str(count)) for count in (2000, 8000)]
    assert peaks[1] < 1.2 * peaks[0]


def peak_of_resolving(step: CorpusWideStep, count: int, folder: Path) -> int:
    """Bytes, of notes in chunks of 500 that are random but for every third, which repeats the one before."""
    (folder / "scratch").mkdir(parents=True)
    rng = np.random.default_rng(0)
    notes = []
    for number in range(count // 500):
        noted = np.frombuffer(rng.bytes(500 * step.dtype.itemsize), step.dtype).copy()
        noted[2::3] = noted[1::3][: noted[2::3].size]
        noted["document"] = np.arange(500)
        notes.append(folder / f"{number}.notes")
        noted.tofile(notes[-1])
    verdicts = [path.with_suffix(".npy") for path in notes]
    tracemalloc.start()
    report = step.resolve(notes, verdicts, folder / "scratch", lambda done, whole: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.get("duplicates", report.get("repeats")) == count // 500 * 166
    return peak
