"""Limits of a source on what is written: exact, for any number of workers, and no more is read."""

from __future__ import annotations

import json

import pytest
from corpora import corpus_file, files_of, texts_of

from data_prep import build as build_module
from data_prep.build import build
from llmtrain.errors import ConfigError

TEXTS = [f"{number} " + "word " * (number % 17) for number in range(1200)]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 4_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 4_000)
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(tmp_path / "a.jsonl")


@pytest.mark.parametrize("steps", [[], [{"dedup": {}}]])
@pytest.mark.parametrize("unit", ["documents", "bytes", "tokens"])
def test_a_limit_is_the_longest_beginning_that_fits(tmp_path, source, unit, steps):
    whole = build(corpus_file(tmp_path, sources=[{"path": source}])).manifest.splits["train"]
    most = {"documents": 100, "bytes": whole.text_bytes // 9, "tokens": whole.tokens // 9}[unit]
    path = corpus_file(tmp_path, sources=[{"path": source, "limit": {unit: most}}], steps=steps)
    heard = []
    report = build(path, overwrite=True, progress=lambda *what: heard.append(what))
    got = texts_of(tmp_path / "out", "train")
    assert got == TEXTS[: len(got)]
    split = report.manifest.splits["train"]
    amounts = {"documents": split.documents, "bytes": split.text_bytes, "tokens": split.tokens}
    assert most * 0.8 < amounts[unit] <= most
    counts = report.manifest.counts
    assert counts.documents_out == len(got) and counts.documents_in < 400
    assert counts.documents_in == counts.documents_out + sum(counts.rejected.values())
    if not steps:
        built = json.loads((tmp_path / "out/build.json").read_text())
        assert built["chunks_taken"] < built["chunks"] / 2
    first = "dedup: reading" if steps else "tokenizing"
    totals = [total for what, _, total, *_ in heard if what == first]
    size = (tmp_path / "a.jsonl").stat().st_size
    assert totals[0] == size, "time left is told with a limit too"
    assert steps or totals[-1] < size / 2, "what is not wanted any more is not waited for"


def test_a_limit_holds_over_all_splits_and_copies_come_on_top(tmp_path, source):
    limited = {"path": source, "limit": {"documents": 333}, "weight": 2.5}
    path = corpus_file(tmp_path, sources=[limited, {"path": source}], splits={"valid": 0.2})
    results = []
    for workers in (1, 2):
        report = build(path, [f"workers={workers}", f"output={tmp_path}/w{workers}"])
        results.append(files_of(tmp_path / f"w{workers}"))
    assert results[0] == results[1]
    counts = report.manifest.counts
    assert counts.documents_out == 333 + 1200
    valid = texts_of(tmp_path / "w1", "valid")
    train = texts_of(tmp_path / "w1", "train")
    first = set(TEXTS[:333])
    once = [text for text in train if text in first]
    assert len(set(once)) + sum(text in first for text in valid) // 2 == 333
    assert counts.repeats == len(train) + len(valid) - 1533


def test_a_packed_file_is_read_only_as_far_as_its_limit_reaches(tmp_path, source, monkeypatch):
    import gzip

    monkeypatch.setattr("data_prep.batches.BATCH_RECORDS", 50)
    raw = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    limited = {"path": str(tmp_path / "b.jsonl.gz"), "limit": {"documents": 60}}
    report = build(corpus_file(tmp_path, sources=[limited]))
    assert texts_of(tmp_path / "out", "train") == TEXTS[:60]
    assert report.manifest.counts.documents_in == 100
    assert report.manifest.counts.rejected == {"beyond the limit of its source": 40}
    assert "40  beyond the limit of its source\n" in report.render()


@pytest.mark.parametrize("limit", [{}, {"documents": 1, "tokens": 2}, {"tokens": 0}, {"lines": 3}, 0])
def test_a_limit_that_says_nothing_or_too_much_is_refused(tmp_path, source, limit):
    with pytest.raises(ConfigError, match=r"sources\.0\.limit"):
        build(corpus_file(tmp_path, sources=[{"path": source, "limit": limit}]))
