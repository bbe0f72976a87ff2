"""The report of a build: it adds up, is the same for any number of workers, and no text becomes markup."""

from __future__ import annotations

import json
import random
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from corpora import corpus_file, some_text

from data_prep import build as build_module
from data_prep.build import build
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest
from llmtrain.data.verify import verify

HOSTILE = "<script>alert(1)</script>&amp;\"'<b>.jsonl"
HARMLESS = {"html", "head", "meta", "style", "title", "body", "main", "header", "section", "div", "span", "p"}
HARMLESS |= {
    "h1",
    "h2",
    "dl",
    "dt",
    "dd",
    "small",
    "strong",
    "code",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
HARMLESS |= {"figure", "figcaption", "svg", "rect", "line", "text"}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Many chunks of two sources: duplicates, short texts, personal data, languages, a broken record."""
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 8_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 4_000)
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    rng = random.Random(5)
    rows = []
    for number in range(500):
        text = f"{number % 400} " + some_text(random.Random(number % 400), 2 + number % 90)
        text += " Write to anna@example.org." if number % 10 == 3 else ""
        rows.append({"text": text, "language": rng.choice(["en", "en", "<img src=x>", None])})
    for name, part in ((HOSTILE.replace("/", "⁄"), rows[:300]), ("b.jsonl", rows[300:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part) + "{<i>\n")
    names = [HOSTILE.replace("/", "⁄"), "b.jsonl"]
    sources = [{"path": str(tmp_path / name), "meta": ["language"]} for name in names]
    sources[1]["weight"] = 1.5
    steps = [{"length": {"min_chars": 12}}, {"dedup": {}}, {"pii": {}}]
    return tmp_path, rows, corpus_file(tmp_path, sources=sources, steps=steps, splits={"valid": 0.1})


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_what_the_report_counts_is_what_is_there_for_any_number_of_workers(corpus):
    folder, rows, path = corpus
    for workers in (1, 2):
        build(path, [f"workers={workers}", f"output={folder}/w{workers}"])
    content = report_of(folder / "w1")["content"]
    assert content == report_of(folder / "w2")["content"]
    manifest = read_manifest(folder / "w1")
    counts = manifest.counts
    assert content["documents"] == {"in": 502, "out": counts.documents_out, "copies": counts.repeats}
    assert content["bytes"]["in"] == sum(len(row["text"].encode()) for row in rows)

    long = [row for row in rows if len(row["text"]) >= 12]
    kept = list({row["text"]: row for row in reversed(long)}.values())
    languages = Counter(row["language"] or "" for row in kept)
    assert {each["language"]: each["documents"] for each in content["languages"]} == languages
    assert content["personal_data"] == {"email": sum("@" in row["text"] for row in kept)}
    steps = {each["step"]: (each["documents_in"], each["dropped"]) for each in content["steps"]}
    assert steps["reading"] == (502, 2) and steps["length"] == (500, 500 - len(long))
    assert steps["dedup"] == (len(long), len(long) - len(kept)) and steps["pii"] == (len(kept), 0)
    settings = {each["step"]: each["settings"] for each in content["steps"]}
    assert settings["length"] == [{"min_chars": 12}] and settings["dedup"] == [{}] and not settings["reading"]
    assert content["duplicates"][0]["share_dropped"] == round(1 - len(kept) / len(long), 6)

    splits = [open_dataset(folder / "w1", split) for split in ("train", "valid")]
    lengths = np.concatenate([np.diff([0, *split.ends]) for split in splits])
    bins = content["lengths"]["bins"]
    assert content["lengths"]["longest"] == lengths.max()
    assert sum(each["documents"] for each in bins) == len(kept) == counts.documents_out
    for each in bins:  # train has copies of some
        within = (lengths >= each["from"]) & (lengths <= each["to"])
        assert within.sum() >= each["documents"] and (within.any() or not each["documents"])
    assert sum(each["tokens"] for each in bins) == content["tokens"]["out"]
    for key, amount in (("documents", len(lengths)), ("tokens", lengths.sum())):
        assert sum(each[key] for each in content["sources"]) == amount
    assert content["tokens"]["with_copies"] == lengths.sum()
    assert sum(each["share_of_tokens"] for each in content["sources"]) == pytest.approx(1, abs=1e-5)
    times = report_of(folder / "w2")["times"]
    assert times["workers"] == 2 and {"read", "length", "dedup", "tokenize"} <= {
        e["step"] for e in times["by_step"]
    }


def test_a_limit_counts_only_what_is_written(corpus):
    folder, rows, path = corpus
    build(path, ["sources.1.limit={documents: 70}", "sources.0.limit={documents: 50}", "steps=[]"])
    first = [*rows[:50], *rows[300:370]]
    content = report_of(folder / "out")["content"]
    expected = Counter(row["language"] or "" for row in first)
    assert {each["language"]: each["documents"] for each in content["languages"]} == expected
    assert sum(each["documents"] for each in content["lengths"]["bins"]) == 120
    assert content["bytes"]["out"] == sum(len(row["text"].encode()) for row in first)


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] if tag != "meta" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_no_name_becomes_markup_and_nothing_is_fetched(corpus):
    folder, _, path = corpus
    assert build(path).render().endswith(f"more in {folder}/out/report.html")
    raw = (folder / "out/report.html").read_text()
    page = Page(raw)
    name = HOSTILE.replace("/", "⁄")
    assert not page.open and f"{name}:301" in page.words and f"{folder}/{name}" in page.words
    assert {tag for tag, _ in page.tags} <= HARMLESS
    for tag, attributes in page.tags:
        assert not any(key.startswith("on") or key in ("src", "href", "srcset") for key in attributes), tag
    assert "http:" not in raw and "https:" not in raw and "url(" not in raw and "@import" not in raw


def test_the_report_is_no_part_of_the_dataset(corpus):
    folder, _, path = corpus
    before = build(path).manifest.fingerprint
    (folder / "out/report.json").write_text("changed")
    (folder / "out/report.html").unlink()
    assert verify(folder / "out").manifest.fingerprint == before
    assert build(path).reused
