"""A build with exact duplicates, near-duplicates and personal data in it, over many chunks and workers."""

from __future__ import annotations

import json
import random

import pytest
from corpora import corpus_file, files_of, texts_of
from near_duplicates import planted
from step_driver import in_two_passes, pass_through

from data_prep import build as build_module
from data_prep.build import build
from data_prep.steps import dedup, minhash, pii

STEPS = [
    {"dedup": {"normalise": "folded"}},
    {"dedup": {"by": "paragraph"}},
    {"minhash": {}},
    {"pii": {"ip": "drop"}},
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(2)
    texts = [
        f"{text}\n\nFor more of this kind of text see the place that all of them name."
        for text in planted(240, 8)
    ]
    texts += [rng.choice(texts).upper() for _ in range(30)]
    for number in rng.sample(range(len(texts)), 40):
        texts[number] += f"\n\nWrite to someone{number}@example.org about number {number}, or not."
    texts += [f"server {number} had address 193.0.14.{number}" for number in range(1, 6)]
    rng.shuffle(texts)
    return texts


def test_a_build_decides_as_its_steps_do_alone(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 30_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 15_000)
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "d.jsonl").write_text(rows)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "d.jsonl")}], steps=STEPS)
    reports = [build(path, [f"workers={count}", f"output={tmp_path}/w{count}"]) for count in (1, 2)]
    assert files_of(tmp_path / "w1") == files_of(tmp_path / "w2")

    whole = in_two_passes(dedup.make(dedup.Dedup(normalise="folded")), texts, tmp_path / "1", chunk=999)
    paragraphs = in_two_passes(
        dedup.make(dedup.Dedup(by="paragraph")), whole.texts, tmp_path / "2", chunk=999
    )
    near = in_two_passes(minhash.make(minhash.MinHash()), paragraphs.texts, tmp_path / "3", chunk=999)
    clean = pass_through(pii.make(pii.Pii(ip="drop")), near.texts)
    assert texts_of(tmp_path / "w1", "train") == clean.texts
    counts = reports[0].manifest.counts
    expected: dict[str, int] = {}
    for outcome in (whole, paragraphs, near, clean):
        expected |= outcome.tally.rejected
    assert counts.rejected == expected
    assert set(expected) >= {"dedup: same text", "minhash: near-duplicate", "pii: ip"}
    assert counts.documents_in == counts.documents_out + sum(counts.rejected.values())
    assert paragraphs.tally.found["dedup: paragraph"] > 100 and clean.tally.found["pii: email"] > 10
    built = json.loads((tmp_path / "w2/build.json").read_text())
    found = [each["found"] for each in built["corpus_wide"]]
    assert found == [whole.report, paragraphs.report, near.report] and built["chunks"] > 5
