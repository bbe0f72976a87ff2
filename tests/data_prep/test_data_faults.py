"""A sample of rows D1 to D4 of the fault table; `benchmarks/untrusted.py` runs all of them."""

from __future__ import annotations

import io
import random

import pyarrow.parquet
import pytest
import rows_of_data as rows
from corpora import corpus_file
from text_files import read, table

from data_prep.build import build
from llmtrain.errors import DataError


@pytest.mark.parametrize("number", [1, 8, 12, 15, 16])
def test_every_bad_line_is_counted_once_by_its_reason_or_ends_a_strict_build(tmp_path, number):
    assert not rows.mixed_lines(tmp_path, number, random.Random(number))


@pytest.mark.parametrize("number", [0, 3, 8, 9])
def test_a_damaged_file_costs_what_it_held_and_is_named(tmp_path, number):
    assert not rows.cut_or_flipped(tmp_path, number, random.Random(number))


def test_a_disk_that_fills_leaves_what_is_done_and_more_room_gives_the_same_bytes(tmp_path):
    try:
        assert not rows.full_disk(tmp_path, 0, random.Random(2))
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a small disk: {error}")


def test_a_damaged_shard_is_named_when_it_is_opened_or_verified(tmp_path):
    for number in range(28):
        assert not rows.damaged_dataset(tmp_path, number, random.Random(number))


def test_a_flipped_bit_is_found_where_parquets_pages_have_checksums(tmp_path):
    text = "a text that stands in one page " * 9
    out = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(table([text]), out, write_page_checksum=True, **options)
    raw = bytearray(out.getvalue())
    raw[raw.index(text.encode()) + 5] ^= 1
    (tmp_path / "d.parquet").write_bytes(raw)
    documents, tally = read(tmp_path / "d.parquet")
    assert not documents and tally.rejected == {"damaged parquet file": 1}


def test_a_tokenizer_whose_file_is_a_link_to_elsewhere_is_not_copied_into_a_dataset(tmp_path):
    (tmp_path / "key").write_text("a private key")
    tokenizer = rows.words_tokenizer(tmp_path / "tokenizer", 300)
    (tokenizer / "chat_template.jinja").symlink_to(tmp_path / "key")
    (tmp_path / "d.txt").write_text("w1 w2")
    sources = [{"path": str(tmp_path / "d.txt")}]
    path = corpus_file(tmp_path, sources=sources, tokenizer={"source": str(tokenizer)})
    with pytest.raises(
        DataError, match=r"chat_template\.jinja is a link that leads out of its folder, to .*key"
    ):
        build(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["corpus.yaml", "d.txt", "key", "tokenizer"]
