"""Shards against the layout table of Megatron's format, and every way a shard can be broken."""

from __future__ import annotations

import gc
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import random_documents

from llmtrain.data.shards import Shard, ShardWriter, index_bytes, token_dtype
from llmtrain.errors import DataError


def write(prefix: Path, documents, vocab_size: int = 1000, **options):
    writer = ShardWriter(prefix, vocab_size, **options)
    for document in documents:
        writer.add(np.array(document, np.int64))
    return writer.close()


def parse_by_hand(prefix: Path) -> tuple[str, list[list[int]]]:
    """The documents of a shard, read with `struct` alone, byte by byte after the format's table."""
    raw = prefix.with_name(prefix.name + ".idx").read_bytes()
    body = prefix.with_name(prefix.name + ".bin").read_bytes()
    assert raw[0:9] == b"MMIDIDX\x00\x00"
    assert raw[9:17] == (1).to_bytes(8, "little")
    letter, size = {8: ("H", 2), 4: ("i", 4)}[raw[17]]
    n = int.from_bytes(raw[18:26], "little")
    d = int.from_bytes(raw[26:34], "little")
    lengths = struct.unpack_from(f"<{n}i", raw, 34)
    pointers = struct.unpack_from(f"<{n}q", raw, 34 + 4 * n)
    starts = struct.unpack_from(f"<{d}q", raw, 34 + 12 * n)
    assert len(raw) == 34 + 12 * n + 8 * d
    assert len(body) == sum(lengths) * size
    sequences = [
        list(struct.unpack_from(f"<{length}{letter}", body, pointer))
        for length, pointer in zip(lengths, pointers, strict=True)
    ]
    documents = [
        [token for sequence in sequences[first:last] for token in sequence]
        for first, last in zip(starts[:-1], starts[1:], strict=True)
    ]
    return letter, documents


@pytest.mark.parametrize(("vocab_size", "letter"), [(1000, "H"), (65499, "H"), (65500, "i"), (128000, "i")])
def test_bytes_follow_megatrons_table(tmp_path, vocab_size, letter):
    documents = [[1, 2, 3], [vocab_size - 1], [0, 7], list(range(300))]
    facts = write(tmp_path / "s", documents, vocab_size)
    assert parse_by_hand(tmp_path / "s") == (letter, documents)
    assert (facts.documents, facts.tokens) == (4, 306)
    assert facts.idx.bytes == 42 + 20 * 4 == (tmp_path / "s.idx").stat().st_size


def test_one_document_is_exactly_these_bytes(tmp_path):
    write(tmp_path / "s", [[258, 3]])
    assert (tmp_path / "s.bin").read_bytes() == b"\x02\x01\x03\x00"
    assert (tmp_path / "s.idx").read_bytes() == (
        b"MMIDIDX\x00\x00" + b"\x01" + bytes(7) + b"\x08" + b"\x01" + bytes(7) + b"\x02" + bytes(7)
        + b"\x02\x00\x00\x00" + bytes(8) + bytes(8) + b"\x01" + bytes(7)
    )  # fmt: skip


def test_a_document_too_long_for_an_i32_becomes_several_sequences(tmp_path):
    documents = [list(range(25)), [1], list(range(10)), list(range(11))]
    write(tmp_path / "s", documents, longest_sequence=10)
    raw = (tmp_path / "s.idx").read_bytes()
    assert struct.unpack_from("<7i", raw, 34) == (10, 10, 5, 1, 10, 10, 1)
    assert parse_by_hand(tmp_path / "s")[1] == documents
    shard = Shard(tmp_path / "s")
    assert [shard.document(k).tolist() for k in range(4)] == documents


def test_the_real_limit_splits_at_two_to_the_31_minus_1():
    raw = index_bytes(np.array([2**31 + 5]), token_dtype(100))
    assert struct.unpack_from("<QQ", raw, 18) == (2, 2)
    assert struct.unpack_from("<2i", raw, 34) == (2**31 - 1, 6)
    assert struct.unpack_from("<2q", raw, 42) == (0, 2 * (2**31 - 1))


def test_random_documents_come_back_whole_and_in_order(tmp_path):
    rng = np.random.default_rng(3)
    documents = random_documents(rng, 2000, 60)
    write(tmp_path / "s", documents)
    shard = Shard(tmp_path / "s")
    assert shard.documents == 2000
    assert [shard.document(k).tolist() for k in range(2000)] == documents


def test_many_documents_at_once_give_the_same_bytes(tmp_path):
    documents = random_documents(np.random.default_rng(4), 50, 9)
    write(tmp_path / "one", documents)
    with ShardWriter(tmp_path / "many", 1000) as writer:
        writer.add(np.concatenate(documents), np.array([len(document) for document in documents]))
        writer.add(np.zeros(0, np.int64), np.zeros(0, np.int64))
    for suffix in (".bin", ".idx"):
        one, many = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("one", "many"))
        assert one == many


def test_an_unfinished_shard_has_no_index(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s", 1000) as writer:
        writer.add(np.array([1, 2]))
        raise RuntimeError("interrupted")
    assert not (tmp_path / "s.idx").exists()
    with pytest.raises(DataError, match=r"s\.idx is missing"):
        Shard(tmp_path / "s")


@pytest.mark.parametrize("wrong", [1000, 70000, -1])
def test_an_id_outside_the_vocabulary_is_refused_before_it_can_wrap(tmp_path, wrong):
    writer = ShardWriter(tmp_path / "s", 1000)
    writer.add(np.array([5]))
    with pytest.raises(DataError, match=f"token id {wrong} does not fit a vocabulary of 1000"):
        writer.add(np.array([1, wrong]))
    assert writer.close().tokens == 1


def broken(tmp_path: Path, change) -> str:
    """The message for a shard whose index bytes went through `change`."""
    write(tmp_path / "s", [[1, 2, 3], [4]])
    path = tmp_path / "s.idx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        Shard(tmp_path / "s")
    assert str(path) in str(caught.value) or "s.bin" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"TNTIDX\x00\x00" + raw[8:], "legacy TNTIDX format"),
        (lambda raw: b"PK\x03\x04" + raw[4:], "not a Megatron index"),
        (lambda raw: raw[:9] + b"\x02" + raw[10:], "index version 2"),
        (lambda raw: raw[:17] + b"\x05" + raw[18:], r"dtype code 5 (int64)"),
        (lambda raw: raw[:17] + b"\x07" + raw[18:], r"dtype code 7 (a float)"),
        (lambda raw: raw + b"\x00\x00", "multimodal"),
        (lambda raw: raw + b"\x00", "83 bytes where its header asks for 82"),
        (lambda raw: raw[:34] + b"\x02" + raw[35:], "contradicts itself"),
        (lambda raw: raw[:-8] + b"\x01" + raw[-7:], "contradicts itself"),
    ],
)
def test_a_broken_index_is_named_with_its_fault(tmp_path, change, message):
    assert message in broken(tmp_path, change)


def test_an_index_cut_anywhere_is_refused(tmp_path):
    write(tmp_path / "s", [[1, 2, 3], [4]])
    whole = (tmp_path / "s.idx").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "s.idx").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"s\.idx"):
            Shard(tmp_path / "s")


@pytest.mark.parametrize("length", [0, 3, 7, 9])
def test_tokens_cut_or_grown_are_refused(tmp_path, length):
    write(tmp_path / "s", [[1, 2, 3], [4]])
    (tmp_path / "s.bin").write_bytes(bytes(length))
    with pytest.raises(DataError, match=rf"s\.bin has {length} bytes, its \.idx says 8"):
        Shard(tmp_path / "s")


def test_shards_are_read_without_a_descriptor_each(tmp_path):
    """As under `ulimit -n 128` with 150 shards; the maps live as long as what was taken from them."""
    for number in range(60):
        with ShardWriter(tmp_path / f"{number}", 100, masked=True) as writer:
            writer.add(np.array([number, 1, 2]), mask=np.array([0, 1, 1], np.uint8))
    open_now = len(os.listdir("/proc/self/fd"))
    shards = [Shard(tmp_path / f"{number}", masked=True) for number in range(60)]
    assert len(os.listdir("/proc/self/fd")) <= open_now + 1
    views = [shard.tokens[:1] for shard in shards]
    assert all(not shard.tokens.flags.writeable and shard.mask.tolist() == [0, 1, 1] for shard in shards)
    del shards
    gc.collect()
    assert [int(view[0]) for view in views] == list(range(60))
    with open("/proc/self/maps") as maps:
        assert maps.read().count(str(tmp_path)) >= 60
    del views
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()
