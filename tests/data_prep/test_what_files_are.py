"""A file is what its first bytes say, packed or a pointer of git-lfs; its name says its format, any case."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from corpora import corpus_file
from text_files import PACKERS, jsonl, parquet, read, source, tar

from data_prep.build import build
from data_prep.convert import import_tokens
from data_prep.corpus import TokenizerSection
from data_prep.tokenizer import find_tokenizer
from llmtrain.data.shards import Shard
from llmtrain.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 12345\n"
ROWS = jsonl(["one", "two"])
GZIP, ZSTD, BZ2, XZ = (PACKERS[suffix](ROWS) for suffix in (".gz", ".zst", ".bz2", ".xz"))
NAMED = {
    "d.jsonlines": ROWS,
    "d.JSONL.GZ": GZIP,
    "d.Jsonl.XZ": XZ,
    "d.ndjson.zstd": ZSTD,
    "d.jl.bz2": BZ2,
    "d.jsonl": GZIP,  # what a download unpacked in name alone
    "d.jsonl.gz": ZSTD,
    "d.pq": parquet(["one", "two"]),
    "d.tgz": gzip.compress(tar([("a.txt", b"one"), ("b.txt", b"two")])),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_file_is_read_as_what_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(NAMED[name])
    documents, tally = read(tmp_path / name)
    assert [document.text for document in documents] == ["one", "two"] and not tally.rejected


def test_a_dictionary_packed_as_gzip_is_text_and_that_is_said(tmp_path):
    (tmp_path / "jargon.dict.dz").write_bytes(gzip.compress(b"hacker: one who"))
    (tmp_path / "notes.txt").write_bytes(gzip.compress(b"unseen"))
    documents, _ = read(tmp_path)
    assert [document.text for document in documents] == ["hacker: one who", "unseen"]
    assert [file.really for file in source(tmp_path).files] == ["", "gzip"]
    report = build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.[dt]?[zt]")}]))
    assert "notes.txt is a gzip file by its first bytes" in report.render()


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.json", "d.parquet", "d.arrow", "d.csv", "d.tar", "d.jsonl.gz"]
)
def test_pointers_in_place_of_data_are_refused_by_name(tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError) as said:
        source(tmp_path / f"**/{name}")
    assert str(said.value) == (
        f"sources.0: 1 of 1 files are git-lfs pointers, not the files (such as {tmp_path / name}): "
        "fetch the file itself with `git lfs pull`"
    )


def test_a_pointer_among_texts_is_bad_input(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_bytes(POINTER)
    for options in ({}, {"separator": "\n"}):
        documents, tally = read(tmp_path, **options)
        assert [document.text for document in documents] == ["text"]
        assert tally.bad == {"git-lfs pointer": 1}


def test_pointers_in_place_of_tokens_and_tokenizers_are_refused(tmp_path):
    def pointed(*names: str) -> Path:
        for name in names:
            (tmp_path / name).write_bytes(POINTER)
        return tmp_path

    for call in (
        lambda: find_tokenizer(TokenizerSection(source=str(pointed("tokenizer.json")))),
        lambda: Shard(pointed("0.bin", "0.idx") / "0"),
        lambda: import_tokens("nanogpt", [str(pointed("0.bin") / "0.bin")], "t", tmp_path / "out"),
    ):
        with pytest.raises(DataError, match=r"is a git-lfs pointer, not the file: fetch .* `git lfs pull`"):
            call()
