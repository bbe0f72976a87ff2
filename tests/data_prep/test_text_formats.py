"""Every format gives the same documents; fields, columns that go along, pages and archives."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from corpora import corpus_file, some_text, texts_of
from text_files import COLUMNAR, FORMATS, PACKERS, read, warc_record

from data_prep.build import build
from llmtrain.data.manifest import read_manifest
from llmtrain.errors import ConfigError, DataError, InputError

TEXTS = [some_text(random.Random(seed), 20) + ' "quoted", \t[{' for seed in range(23)]
PAGE = (
    "<html><head><title>T</title></head><body><nav><a href='/'>Home</a> Menu</nav><article><h1>Häuser</h1>"
    + "".join(
        f"<p>Paragraph {n} of an article about café walls, long enough to be text.</p>" for n in range(6)
    )
    + "</article><footer>Copyright</footer></body></html>"
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents_in_order_with_their_address(tmp_path, name):
    (tmp_path / name).write_bytes(FORMATS[name](TEXTS))
    documents, tally = read(tmp_path / name, meta=["url"])
    assert [document.text for document in documents] == TEXTS
    assert [document.meta["url"] for document in documents] == [f"http://x/{k}" for k in range(len(TEXTS))]
    assert not tally.rejected
    assert len({document.id for document in documents}) == len(TEXTS)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in COLUMNAR])
def test_every_format_that_is_read_forward_may_be_packed(tmp_path, name, suffix):
    (tmp_path / (name + suffix)).write_bytes(PACKERS[suffix](FORMATS[name](TEXTS)))
    documents, tally = read(tmp_path / (name + suffix))
    assert [document.text for document in documents] == TEXTS and not tally.rejected


def test_a_folder_of_all_formats_is_one_corpus(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, make in FORMATS.items():
        (folder / name).write_bytes(make(TEXTS))
    (folder / "notes.md").write_text("# Title\n\nText")
    (folder / "p.parquet.gz").write_bytes(gzip.compress(FORMATS["d.parquet"](TEXTS)))
    report = build(corpus_file(tmp_path, sources=[{"path": str(folder)}]))
    expected = sorted([*TEXTS * len(FORMATS), "# Title\n\nText"])
    assert sorted(texts_of(tmp_path / "out", "train")) == expected
    assert report.manifest.counts.rejected == {"packed parquet file": 1}


def test_the_text_is_a_field_or_a_field_in_a_field_or_several(tmp_path):
    rows = [
        {"title": "T1", "page": {"body": "B1", "lang": "en"}, "page.x": "dotted"},
        {"title": None, "page": {"body": "B2"}},
        {"title": "T3"},
        {"page": 5},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "d.jsonl"
    documents, tally = read(path, field="page.body", meta={"language": "page.lang", "title": "title"})
    assert [document.text for document in documents] == ["B1", "B2"]
    assert [document.meta for document in documents] == [{"language": "en", "title": "T1"}, {}]
    assert tally.rejected == {"no field 'page.body'": 2}
    documents, tally = read(path, field=["title", "page.body"])
    assert [document.text for document in documents] == ["T1\n\nB1", "B2", "T3"]
    assert tally.rejected == {"no field 'title, page.body'": 1}
    assert [document.text for document in read(path, field="page.x")[0]] == ["dotted"]


def test_a_struct_column_is_a_field_in_a_field_and_other_columns_are_not_read(tmp_path):
    column = pyarrow.array([{"body": "one", "n": 1}, {"body": "two", "n": 2}, None])
    pyarrow.parquet.write_table(pyarrow.table({"page": column}), tmp_path / "d.parquet")
    documents, tally = read(tmp_path / "d.parquet", field="page.body", meta={"n": "page.n"})
    assert [(document.text, document.meta) for document in documents] == [
        ("one", {"n": 1}),
        ("two", {"n": 2}),
    ]
    assert tally.rejected == {"no field 'page.body'": 1}


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", *COLUMNAR])
def test_a_table_without_the_column_is_refused_with_those_it_has(tmp_path, name):
    (tmp_path / name).write_bytes(FORMATS[name](TEXTS))
    with pytest.raises(
        DataError, match=rf"{name} has no column 'body' \(it has id, text, url\): correct field"
    ):
        read(tmp_path / name, field="body")
    with pytest.raises(DataError, match="has no column 'language'"):
        read(tmp_path / name, meta={"lang": "language"})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"field": ""}, "is empty"), ({"meta": [""]}, "is empty"), ({"format": "docx"}, "format")],
)
def test_a_field_without_a_name_and_an_unknown_format_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        build(corpus_file(tmp_path, sources=[{"path": "x", **options}]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.txt",
            {"field": "body"},
            r"sources.0.field = 'body': \S+ is text, which has no fields: leave field",
        ),
        ("a.txt", {"meta": ["url"]}, r"sources.0.meta = \('url',\): \S+ is text, which has no fields"),
        ("a.jsonl", {"separator": "--"}, r"sources.0.separator = '--': \S+ is jsonl, and only text is cut"),
        ("a.txt", {"revision": "main"}, "revision is for a dataset on the Hub, and there is no hub"),
        ("a.txt", {"streaming": False}, "streaming is for a dataset on the Hub"),
    ],
)
def test_what_means_nothing_for_a_source_is_refused(tmp_path, name, options, message):
    (tmp_path / name).write_text('{"text": "some text"}\n')
    with pytest.raises(InputError, match=message):
        build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / name), **options}]))


def page(name: str, folder: Path, content: bytes) -> tuple[list[str], dict[str, int]]:
    (folder / name).write_bytes(content)
    documents, tally = read(folder / name)
    return [document.text for document in documents], tally.rejected


def test_a_page_is_its_main_text(tmp_path):
    (text,), _ = page("p.html", tmp_path, PAGE.encode())
    assert "Paragraph 5" in text and "Häuser" in text
    assert "Menu" not in text and "Copyright" not in text and "<p>" not in text
    declared = PAGE.replace("<head>", '<head><meta charset="iso-8859-1">').encode("latin-1")
    assert page("l.htm", tmp_path, declared) == ([text], {})
    assert page("u.html", tmp_path, PAGE.encode("latin-1")) == (
        [],
        {"not UTF-8, nor what the page declares": 1},
    )
    assert page("e.html", tmp_path, b"") == ([], {"empty": 1})
    assert page("n.html", tmp_path, b"<html><body></body></html>") == ([], {"HTML without main text": 1})
    (tmp_path / "p.txt").write_text(PAGE)
    assert read(tmp_path / "p.txt")[0][0].text == PAGE
    assert read(tmp_path / "p.txt", format="html")[0][0].text == text


@pytest.mark.parametrize("name", ["p.html", "p.warc.gz"])
def test_pages_without_the_extra_are_refused_before_anything_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr("data_prep.sources.installed", lambda: False)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        DataError, match=rf"sources\.0: .*{name} is read by trafilatura, .*pip install trafilatura lxml_html"
    ):
        build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / name)}]))


def http(
    body: bytes, status: str = "200 OK", kind: str = "text/html; charset=utf-8", more: str = ""
) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body


def test_the_pages_of_a_web_archive_come_with_their_address_and_the_rest_has_a_reason(tmp_path):
    body = PAGE.encode()
    chunked = b"5\r\n" + body[:5] + b"\r\n" + b"%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
    responses = [
        http(body),
        http(gzip.compress(body), more="Content-Encoding: gzip\r\n"),
        http(zlib.compress(body), more="Content-Encoding: deflate\r\n"),
        http(chunked, more="Transfer-Encoding: chunked\r\n"),
        http(PAGE.encode("latin-1"), kind="text/html;charset=ISO-8859-1"),
        http(body, status="404 Not Found"),
        http(b"\x89PNG", kind="image/png"),
        http(b"xx", more="Content-Encoding: br\r\n"),
        http(b"zz\r\n", more="Transfer-Encoding: chunked\r\n"),
        b"",
    ]
    raw = warc_record("warcinfo", "", b"x: y\r\n") + warc_record(
        "request", "http://q/", b"GET / HTTP/1.1\r\n\r\n"
    )
    raw += b"".join(warc_record("response", f"http://x/{k}", each) for k, each in enumerate(responses))
    (tmp_path / "d.warc.gz").write_bytes(gzip.compress(raw))
    documents, tally = read(tmp_path / "d.warc.gz")
    assert [document.meta["url"] for document in documents] == [f"http://x/{k}" for k in range(5)]
    assert len({document.text for document in documents}) == 1 and "Häuser" in documents[0].text
    assert tally.rejected == {
        "HTTP status is not 200": 2,
        "HTTP response is no page": 1,
        "broken HTTP body": 2,
    }


def test_a_hub_dataset_may_be_fetched_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": TEXTS, "lang": ["en"] * len(TEXTS)}), tmp_path / "hub/train.parquet"
    )
    source = {"hub": str(tmp_path / "hub"), "streaming": False, "meta": {"language": "lang"}}
    build(corpus_file(tmp_path, sources=[source]))
    assert texts_of(tmp_path / "out", "train") == TEXTS
    assert read_manifest(tmp_path / "out").counts.documents_in == len(TEXTS)
