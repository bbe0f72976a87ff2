"""Where files are cut: the parts read one by one are the file read whole, with the numbers of its records."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from data_prep import files as files_module
from data_prep.corpus import SourceSection
from data_prep.sources import read_source, settle


def ignore(_: int) -> None:
    pass


@pytest.mark.parametrize("separator", ["\n", "\n\n", "<|end|>", "abab"])
def test_the_parts_of_a_file_hold_each_record_once_under_its_number(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(files_module, "CHUNK_BYTES", 7)
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 40)
    rng = random.Random(5)
    alphabet = ["\n", "a", "b", "ab", separator, "é", separator + separator]
    (tmp_path / "t.txt").write_text("".join(rng.choice(alphabet) for _ in range(900)) + separator)
    section = SourceSection(path=str(tmp_path / "t.txt"), separator=separator)
    source = settle(section, 0, ignore)
    (file,) = source.files
    whole = list(read_source(source, 100, ignore))
    assert len(file.cuts) > 10 and len(whole) > 100
    borders = [(0, 0), *file.cuts, (None, 0)]
    read, sizes = [], []
    for (start, first), (end, _) in zip(borders, borders[1:], strict=False):
        part = replace(file, start=start, end=end, first=first)
        read += read_source(source, 100, sizes.append, [part])
    assert read == whole
    assert sum(sizes) == file.bytes


def test_packed_files_and_whole_documents_are_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 10)
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        (tmp_path / name).write_bytes(b"0123456789\n" * 300)
    monkeypatch.setattr(files_module, "CHUNK_BYTES", 100)
    cuts = {file.name: file.cuts for file in settle(SourceSection(path=str(tmp_path)), 0, ignore).files}
    assert len(cuts["a.jsonl"]) > 10
    assert cuts["b.jsonl.gz"] == cuts["c.txt"] == ()
