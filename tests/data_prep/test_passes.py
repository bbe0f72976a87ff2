"""Corpora with steps that must see the whole of it: several passes, every document counted once."""

from __future__ import annotations

import datetime
import json
import random

import pytest
import zstandard
from corpora import corpus_file, files_of, some_text, texts_of

from data_prep import build as build_module
from data_prep.build import build
from data_prep.documents import Document
from data_prep.results import read_spill, to_spill


@pytest.fixture
def doubles(tmp_path, monkeypatch):
    """A corpus of many chunks in two sources with many exact duplicates; its distinct texts in order."""
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 8_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 4_000)
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    rng = random.Random(3)
    distinct = [f"{number} " + some_text(rng, 40) for number in range(400)]
    drawn = [rng.choice(distinct) for _ in range(900)]
    for name, texts in (("a.jsonl", drawn[:600]), ("b.jsonl", drawn[600:])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("{broken\n")
    return list(dict.fromkeys(drawn))


def test_passes_give_each_document_once_with_any_number_of_workers(tmp_path, doubles):
    sources = [{"path": str(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    steps = [{"length": {"min_chars": 3}}, {"dedup": {}}, {"length": {"max_chars": 160}}, {"dedup": {}}]
    path = corpus_file(tmp_path, sources=sources, steps=steps, keep_rejected=True)
    results = []
    for workers in (1, 2):
        report = build(path, [f"workers={workers}", f"output={tmp_path}/w{workers}"])
        results.append((files_of(tmp_path / f"w{workers}"), files_of(tmp_path / f"w{workers}.rejected")))
    assert results[0] == results[1]
    short = [text for text in doubles if len(text) <= 160]
    assert texts_of(tmp_path / "w1", "train") == short and 100 < len(short) < len(doubles)
    counts = report.manifest.counts
    assert counts.documents_in == 901 and counts.documents_out == len(short)
    assert sum(counts.rejected.values()) == 901 - len(short)
    assert counts.rejected["length: too long"] == len(doubles) - len(short)
    rows = rejected_rows(tmp_path / "w1.rejected")
    assert len(rows) == 901 - len(short)
    assert {"reason": "broken JSON", "source": 0, "where": "a.jsonl:601", "text": "{broken"} in rows
    long = [row["text"] for row in rows if row["reason"] == "length: too long"]
    assert long == [text for text in doubles if len(text) > 160]
    built = json.loads((tmp_path / "w2/build.json").read_text())
    assert built["passes"] == 3 and built["chunks_taken"] == 3 * built["chunks"] >= 3 * 20
    assert [each["step"] for each in built["corpus_wide"]] == ["dedup", "dedup"]
    assert {"pass 0: length", "pass 1: dedup", "pass 2: tokenize"} <= set(built["seconds_by_step"])


def rejected_rows(folder) -> list[dict]:
    with open(folder / "rejected.jsonl.zst", "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return [json.loads(line) for line in reader.read().splitlines()]


def test_documents_come_back_from_the_spill_as_they_went_in(tmp_path):
    texts = [
        "one",
        "two\nlines\r\n",
        "\0 \u2028",
        "[1, 2]\n",
        "é 漢字 🙂",
        "lone \ud800",
        "\ufeffx",
        "x" * 3_000_000,
    ]
    facts = {"language": "en", "day": datetime.date(2026, 1, 2), "name": "ü\n\udc80"}
    documents = [Document(text, f"a\udc80/{at}.txt", at, dict(facts)) for at, text in enumerate(texts)]
    packed = zstandard.ZstdCompressor(level=1).compress(b"".join(map(to_spill, documents)))
    (tmp_path / "spill").write_bytes(packed)
    for document in documents:
        document.meta["day"] = "2026-01-02"
    assert list(read_spill(tmp_path / "spill")) == documents
    assert list(read_spill(tmp_path / "none")) == []


def test_nothing_is_kept_aside_unless_asked(tmp_path, doubles):
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    build(path)
    assert not (tmp_path / "out.rejected").exists()
    report = build(path, ["keep_rejected=true"])
    assert not report.reused and len(rejected_rows(tmp_path / "out.rejected")) == 1
    assert build(path, ["keep_rejected=true"]).reused
