"""Bad input is counted under one reason each, or refused by name: lines in = documents out + rejected."""

from __future__ import annotations

import bz2
import json
import lzma
import random
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import bad_input
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from corpora import corpus_file, texts_of
from text_files import FORMATS, PACKERS, arrow, jsonl, read

from data_prep.build import build
from data_prep.corpus import SourceSection
from data_prep.files import SourceFile, list_files
from data_prep.readers.json_values import read_json
from data_prep.sources import Source, read_source
from llmtrain.errors import DataError

TEXTS = [f"{number} " + "".join(random.Random(number).choices("abc de\n", k=300)) for number in range(120)]
NAMES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


def is_prefix(texts: list[str]) -> bool:
    return texts == TEXTS[: len(texts)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_cut_at_any_offset_gives_what_was_whole_and_one_reason(tmp_path, suffix):
    raw = PACKERS[suffix](jsonl(TEXTS))
    path = tmp_path / f"d.jsonl{suffix}"
    whole = 0
    for length in [0, 1, len(raw) - 1, *random.Random(1).sample(range(2, len(raw)), 50)]:
        path.write_bytes(raw[:length])
        documents, tally = read(path)
        assert is_prefix([document.text for document in documents])
        assert tally.rejected == {f"truncated {NAMES[suffix]} file": 1}, length
        whole += len(documents)
    assert whole > 0


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_flipped_bit_in_a_packed_file_never_passes_as_other_text(tmp_path, suffix):
    raw = PACKERS[suffix](jsonl(TEXTS))
    path = tmp_path / f"d.jsonl{suffix}"
    rng = random.Random(2)
    found = 0
    for _ in range(50):
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        documents, tally = read(path)
        damaged = {f"damaged {NAMES[suffix]} file", f"truncated {NAMES[suffix]} file"} & set(tally.rejected)
        found += len(damaged)
        if not damaged:  # a bit that says nothing, such as the time in a gzip header
            assert [document.text for document in documents] == TEXTS and not tally.rejected
    assert found >= 40


BOMBS = {
    ".gz": lambda: zlib.compressobj(9, wbits=31),
    ".zst": lambda: zstandard.ZstdCompressor(level=19).compressobj(),
    ".bz2": lambda: bz2.BZ2Compressor(),
    ".xz": lambda: lzma.LZMACompressor(preset=0),
}


@pytest.mark.parametrize(
    ("suffix", "form"),
    [*((suffix, "jsonl") for suffix in BOMBS), (".gz", "json"), (".gz", "csv"), (".gz", "text")],
)
def test_a_bomb_is_too_large_and_is_never_held(tmp_path, suffix, form):
    """60 MB of one byte in some kilobytes, where a record may have 100 kB."""
    packer = BOMBS[suffix]()
    path = tmp_path / f"d{suffix}"
    head = {"jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b"text\n", "text": b""}[form]
    parts = [packer.compress(head)] + [packer.compress(b"a" * (1 << 20)) for _ in range(60)]
    path.write_bytes(b"".join(parts) + packer.flush())
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    documents, tally = read(path, longest=100_000, format=form)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not documents and tally.rejected == {"too large": 1}
    assert peak < 30 << 20


def test_a_zstd_file_that_asks_for_a_gigabyte_of_memory_is_damaged(tmp_path):
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    (tmp_path / "d.txt.zst").write_bytes(writer.compress(b"text") + writer.flush())
    documents, tally = read(tmp_path / "d.txt.zst")
    assert not documents and tally.rejected == {"damaged zstd file": 1}


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "stream.arrow"])
def test_a_table_cut_at_any_offset_gives_what_was_whole_and_one_reason(tmp_path, name):
    raw = FORMATS[name](TEXTS)
    kind = "parquet" if name == "d.parquet" else "arrow"
    for length in [0, 3, len(raw) // 2, *random.Random(3).sample(range(8, len(raw) - 20), 20)]:
        (tmp_path / name).write_bytes(raw[:length])
        documents, tally = read(tmp_path / name)
        assert is_prefix([document.text for document in documents])
        assert tally.rejected == {f"damaged {kind} file": 1}, length


def test_an_arrow_stream_that_lies_about_its_offsets_is_damaged(tmp_path):
    raw = bytearray(arrow(["aaaa", "bbbb"] * 2, stream=True))
    place = raw.index(b"\x00\x00\x00\x00\x04\x00\x00\x00\x08\x00\x00\x00\x0c\x00\x00\x00\x10\x00\x00\x00")
    raw[place + 8 : place + 12] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "d.arrow").write_bytes(raw)
    assert read(tmp_path / "d.arrow")[1].rejected == {"damaged arrow file": 1}


def test_text_in_a_table_that_is_no_utf8_costs_its_own_row_only(tmp_path):
    raw = pyarrow.array([b"one", b"\xff\xfe", b"three", None], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "d.parquet")
    documents, tally = read(tmp_path / "d.parquet")
    assert [document.text for document in documents] == ["one", "three"]
    assert tally.rejected == {"not UTF-8": 1, "no field 'text'": 1}


def test_bad_rows_of_a_csv_file_have_their_reasons(tmp_path):
    rows = [
        "id,text",
        "1,fine",
        "2",
        "3,a,b",
        "",
        '4,"two\nlines, and ""quotes"""',
        '5,"x"y',
        "6,",
        "7," + "z" * 3000,
        "8,\udcff",
        "9,fine",
        '10,"open',
    ]
    (tmp_path / "d.csv").write_bytes("\n".join(rows).encode("utf-8", "surrogateescape"))
    documents, tally = read(tmp_path / "d.csv", longest=1000)
    assert [document.text for document in documents] == ["fine", 'two\nlines, and "quotes"', "fine"]
    assert [document.number for document in documents] == [2, 6, 12]
    assert tally.rejected == {
        "ragged CSV row": 2,
        "empty": 2,
        "broken CSV row": 2,
        "too large": 1,
        "not UTF-8": 1,
    }
    (tmp_path / "d.csv").write_bytes(b"")
    assert read(tmp_path / "d.csv")[1].rejected == {"empty": 1}
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbftext\r\nfine\r\n")
    assert [document.text for document in read(tmp_path / "d.csv")[0]] == ["fine"]


def test_a_json_file_of_mixed_values_loses_only_the_bad_ones(tmp_path):
    parts = [
        "1",
        '"a, b"',
        '{"text": "one"}',
        "null",
        '{"text": 5}',
        '{"text": "x" "y"}',
        '{"text": "t]}w\\"o"}',
    ]
    parts += [
        "[]",
        '{"text": "' + "z" * 3000 + '"}',
        '{"text": "three", "deep": ' + "[" * 50 + "]" * 50 + "}",
    ]
    (tmp_path / "d.json").write_text("\ufeff[" + ",\n".join(parts) + "]\n")
    documents, tally = read(tmp_path / "d.json", longest=1000)
    assert [document.text for document in documents] == ["one", 't]}w"o', "three"]
    assert tally.rejected == {
        "not a JSON object": 3,
        "field 'text' is not text": 1,
        "broken JSON": 1,
        "too large": 1,
    }
    for content, why in [
        ("", {"empty": 1}),
        ("[]", {"empty": 1}),
        ('[{"text": "cut', {"broken JSON": 1}),
    ]:
        (tmp_path / "d.json").write_text(content)
        assert read(tmp_path / "d.json")[1].rejected == why
    whole = ["one", "two [{\\", '"', "thr}ee"]
    raw = json.dumps([{"text": text} for text in whole]).encode()
    for size in (1, 2, 3, 7):  # wherever the chunks are cut
        chunks = iter([raw[at : at + size] for at in range(0, len(raw), size)])
        records = read_json(SourceFile(Path("d"), "d", 0), chunks, 99)
        found = [json.loads(record.content)["text"] for record in records]
        assert found == whole


def test_a_file_that_became_unreadable_is_counted_and_the_others_are_read(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.csv", "e.txt"):
        (tmp_path / name).write_text("text")
    section = SourceSection(path=str(tmp_path))
    files = list_files(section, "sources.0.path")
    for file in files[:4]:
        file.path.unlink()
    (tmp_path / "a.txt").mkdir()
    reasons = [
        record.content.reason
        for _, record in read_source(Source(section, 0, tuple(files), ""), 100, lambda _: None)
        if not isinstance(record.content, bytes)
    ]
    assert (
        reasons == ["unreadable file (Is a directory)"] + ["unreadable file (No such file or directory)"] * 3
    )


def test_a_line_of_any_length_is_counted_in_bounded_memory(tmp_path):
    with open(tmp_path / "d.jsonl", "wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    documents, tally = read(tmp_path / "d.jsonl", longest=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [document.text for document in documents] == ["first", "last"]
    assert tally.rejected == {"too large": 1} and tally.examples == {"too large": ["d.jsonl:2"]}
    assert peak < 10 << 20


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_is_damaged_the_law_holds_and_nothing_else_is_raised(tmp_path, name):
    rng = random.Random(8)
    raw = FORMATS[name](TEXTS[:40])
    for _ in range(15):
        damaged = bytearray(raw)
        for _ in range(rng.choice([1, 1, 3, 20])):
            place = rng.randrange(len(damaged))
            length = rng.randint(1, 50)
            damaged[place : place + length] = rng.choice(
                [
                    bytes([rng.randrange(256)]),
                    b"",
                    damaged[place : place + length] * 2,
                    b'"',
                    b"\n",
                    b"\0",
                    b"}",
                ]
            )
        (tmp_path / name).write_bytes(damaged)
        with suppress(DataError):  # a header that names other columns
            documents, tally = read(tmp_path / name)  # which asserts the law
            assert documents or tally.rejected


LINES: dict[str, bytes] = {
    **bad_input.LINES,
    "too large": b'{"text": "' + b"z" * 5000 + b'%d"}',
}


def test_whatever_the_mixture_each_line_is_counted_once_under_its_reason(tmp_path):
    rng = random.Random(6)
    files = tmp_path / "in"
    files.mkdir()
    expected: dict[str, int] = {}
    good: list[str] = []
    for number in range(8):
        kinds = rng.sample(sorted(LINES), rng.randint(1, len(LINES)))
        lines = []
        for line in range(rng.randint(0, 300)):
            why = rng.choice([*kinds, ""])
            lines.append(LINES[why] % (1000 * number + line) + rng.choice([b"", b"\r", b" "]))
            if why:
                expected[why] = expected.get(why, 0) + 1
            else:
                good.append(f"good {1000 * number + line}")
        suffix = rng.choice(["", *PACKERS])
        raw = rng.choice([b"", b"\xef\xbb\xbf"]) + b"\n".join(lines) + rng.choice([b"", b"\n"])
        if lines and raw.removeprefix(b"\xef\xbb\xbf"):
            (files / f"{number}.jsonl{suffix}").write_bytes(PACKERS[suffix](raw) if suffix else raw)
    path = corpus_file(tmp_path, sources=[{"path": str(files)}], max_document_bytes=2000)
    counts = build(path).manifest.counts
    assert counts.rejected == expected and len(expected) == len(LINES) - 1
    assert counts.documents_in == len(good) + sum(expected.values())
    assert texts_of(tmp_path / "out", "train") == good
    share = sum(expected.values()) / counts.documents_in
    build(path, [f"max_reject_fraction={share + 1e-4}"], overwrite=True)
    with pytest.raises(DataError) as caught:
        build(path, [f"max_reject_fraction={share - 1e-4}"], overwrite=True)
    assert f"{sum(expected.values())} of {counts.documents_in} records are bad input" in str(caught.value)
    assert all(f"{count} {why} (such as " in str(caught.value) for why, count in expected.items())


def test_what_steps_leave_out_is_no_bad_input(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(jsonl(["short", "a text that is long enough"] * 50))
    path = corpus_file(
        tmp_path,
        sources=[{"path": str(tmp_path / "d.jsonl")}],
        steps=[{"length": {"min_chars": 10}}],
        max_reject_fraction=0,
    )
    assert build(path).manifest.counts.rejected == {"length: too short": 50}
    with open(tmp_path / "d.jsonl", "ab") as file:
        file.write(b"{\n")
    with pytest.raises(DataError) as caught:
        build(path, overwrite=True)
    assert str(caught.value) == (
        "max_reject_fraction = 0: 1 of 101 records are bad input (0.99%): "
        "1 broken JSON (such as d.jsonl:101); mend the source, or allow more"
    )
