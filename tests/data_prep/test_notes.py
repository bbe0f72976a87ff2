"""What a build says besides its figures, and that a page is parsed once, in the workers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from corpora import corpus_file
from test_text_formats import PAGE
from text_files import source

from data_prep.build import build
from data_prep.corpus import CorpusConfig
from data_prep.readers import html
from data_prep.sample import sample_train
from llmtrain.errors import DataError


def pages(folder: Path, count: int = 24) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02}.html").write_text(PAGE.replace("<p>", f"<p>Page {number}. ", 1))
    (folder / "none.html").write_text("<html><body></body></html>")
    return folder


def test_a_page_is_parsed_once_though_the_tokenizer_is_trained_on_it(tmp_path, monkeypatch):
    parsed: list[str] = []
    extract = html._main_text
    monkeypatch.setattr(html, "_main_text", lambda page: parsed.append(page) or extract(page))
    path = corpus_file(tmp_path, sources=[{"path": str(pages(tmp_path / "in"))}], splits={"valid": 0.3})
    report = build(path)
    assert len(parsed) == len(set(parsed)) == 25
    assert report.manifest.counts.documents_in == 25
    assert "MB/s) read, " in report.render() and "MB/s) of text out, with 1 worker" in report.render()
    assert report.read_bytes == sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    times = json.loads((tmp_path / "out/report.json").read_text())["times"]
    stages = {each["stage"]: each["seconds"] for each in times["by_stage"]}
    assert list(stages) == [
        "finding and hashing the sources",
        "finding the tokenizer",
        "making the tokenizer",
        "passes over the text",
        "writing shards",
    ]
    assert sum(stages.values()) == pytest.approx(times["seconds"], rel=0.3)
    assert "<td>making the tokenizer</td>" in (tmp_path / "out/report.html").read_text()


def test_a_sample_read_by_several_processes_is_the_same(tmp_path):
    share = 3_000
    found = source(pages(tmp_path / "in", 8))
    corpus = CorpusConfig(
        name="c", sources=[found.section], tokenizer={"train": "bpe", "sample_bytes": share}, splits={}
    )
    one, two = (list(sample_train(corpus, [found], tmp_path / f"pages-{count}", count)) for count in (1, 2))
    assert one == two and 0 < sum(map(len, one)) <= share
    assert set(os.listdir(tmp_path / "pages-2")) >= set(os.listdir(tmp_path / "pages-1"))


def test_a_source_that_gives_nothing_is_said_loudly_and_examples_name_their_source(tmp_path):
    for name, text in (
        ("good/a.txt", "a text long enough to stay"),
        ("bad/b.txt", "short"),
        ("bad/c.txt", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    path = corpus_file(
        tmp_path,
        sources=[{"path": str(tmp_path / "good")}, {"path": str(tmp_path / "bad")}],
        steps=[{"length": {"min_chars": 10}}],
    )
    report = build(path)
    note = (
        f"NOTHING of {tmp_path / 'bad'} is in the dataset: all its 2 documents were left out "
        "(1 empty, 1 length: too short)"
    )
    assert report.notes == (note,) and f"note: {note}" in report.render()
    assert f"such as b.txt of {tmp_path / 'bad'}" in report.render()
    assert report.manifest.counts.examples["empty"] == (f"c.txt of {tmp_path / 'bad'}",)
    assert note in (tmp_path / "out/report.html").read_text()
    assert build(path).notes == (note,)  # and again when there is nothing to do


def test_without_the_fast_engines_a_build_says_what_is_lost(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    for name in ("gigatoken", "tiktoken"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        monkeypatch.setitem(__import__("sys").modules, f"{name}.gigatoken_rs", None)
    report = build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.txt")}]))
    assert "about ten times slower" in report.notes[0] and "pip install gigatoken tiktoken" in report.notes[0]


def test_a_split_that_can_get_nothing_is_refused_before_the_work(tmp_path, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr("data_prep.build.make_tokenizer", never)
    (tmp_path / "a.txt").write_text("some text")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.txt")}], splits={"valid": 0.01})
    with pytest.raises(
        DataError, match=r"split 'valid' got none of the 1 documents of corpus 'test': .*splits\.valid=0\.5"
    ):
        build(path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 9)
    with pytest.raises(DataError, match=r"split 'valid' got none of the 1 files"):
        build(path, [f"sources.0.path={tmp_path / 'a.jsonl'}", "split_by=file"])
    with pytest.raises(AssertionError, match="work was done"):  # how many documents it holds is not known
        build(path, [f"sources.0.path={tmp_path / 'a.jsonl'}"])
