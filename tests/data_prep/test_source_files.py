"""Which files a source has, and their bytes: packed, cut, too long, or in a cycle of links."""

from __future__ import annotations

import gzip
import random

import pytest
import zstandard

from data_prep.corpus import SourceSection
from data_prep.files import DamagedFileError, list_files, read_chunks, split_chunks
from llmtrain.errors import DataError


def names(path: str, **options) -> list[str]:
    return [file.name for file in list_files(SourceSection(path=path, **options), "sources.0.path")]


@pytest.fixture
def tree(tmp_path):
    for name in ["a.txt", "b.py", "sub/c.txt", "sub/deep/d.txt", "sub/.hidden.txt", ".git/e.txt", "x1.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.txt", "b.py", "sub/c.txt", "sub/deep/d.txt", "x1.txt"]),
        ("/**/*.txt", ["a.txt", "sub/c.txt", "sub/deep/d.txt", "x1.txt"]),
        ("/*.txt", ["a.txt", "x1.txt"]),
        ("/sub/**", ["c.txt", "deep/d.txt"]),
        ("/[ab].*", ["a.txt", "b.py"]),
        ("/[!a]?.txt", ["x1.txt"]),
        ("/sub/*/?.txt", ["deep/d.txt"]),
        ("/a.txt", ["a.txt"]),
    ],
)
def test_folders_files_and_globs_list_what_they_say_in_order(tree, pattern, expected):
    assert names(str(tree) + pattern) == expected


def test_excluded_files_are_left_out(tree):
    assert names(str(tree), exclude=["sub/**", "*.py"]) == ["a.txt", "x1.txt"]


def test_a_cycle_of_links_ends(tree):
    (tree / "sub/loop").symlink_to(tree)
    (tree / "dangling.txt").symlink_to(tree / "nothing")
    assert len(names(str(tree))) == 5


def test_nothing_found_is_said_with_the_field(tree):
    with pytest.raises(
        DataError, match=r"sources\.0\.path = '.*sbu/\*\.txt': no such file or folder .*mean '.*/sub'"
    ):
        names(str(tree / "sbu/*.txt"))
    with pytest.raises(
        DataError, match=r"sources\.0\.path = '.*sub/\*\.md': no file there .* that fits \*\.md: cor"
    ):
        names(str(tree / "sub/*.md"))


def test_what_lies_there_by_the_very_name_is_no_pattern(tmp_path):
    for name in ("data [2024]/a.txt", "data [2024]/b.md", "b[1].txt", "what?.txt", "data 2/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(str(tmp_path / "data [2024]")) == ["a.txt", "b.md"]
    assert names(str(tmp_path / "data [2024]/*.md")) == ["b.md"]
    assert names(str(tmp_path / "b[1].txt")) == ["b[1].txt"] and names(str(tmp_path / "what?.txt")) == [
        "what?.txt"
    ]
    assert names(str(tmp_path / "data [0-9]/*")) == ["data 2/c.txt"]
    assert names(str(tmp_path / "*.txt"), exclude=["b[1].txt"]) == ["what?.txt"]


def test_the_standard_library_is_text_of_tens_of_megabytes():
    files = list_files(SourceSection(stdlib=True), "sources.0.stdlib")
    assert sum(file.bytes for file in files) > 5_000_000
    assert "argparse.py" in {file.name for file in files}
    assert not any("site-packages" in file.name for file in files)


TEXT = b"".join(b"line %d\n" % number for number in range(3000))
PACKED = {
    "t.txt": TEXT,
    "t.gz": gzip.compress(TEXT[:900]) + gzip.compress(TEXT[900:]),
    "t.zst": zstandard.compress(TEXT[:900]) + zstandard.compress(TEXT[900:]),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_of_several_members_read_whole(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    counts: list[int] = []
    assert b"".join(read_chunks(tmp_path / name, counts.append)) == TEXT
    assert sum(counts) == len(PACKED[name])


@pytest.mark.parametrize("name", ["t.gz", "t.zst"])
def test_a_packed_file_cut_anywhere_is_damaged_never_short(tmp_path, name):
    rng = random.Random(1)
    boundary = len(gzip.compress(TEXT[:900]) if name == "t.gz" else zstandard.compress(TEXT[:900]))
    for length in rng.sample(range(1, len(PACKED[name])), 50):
        if length == boundary:
            continue
        (tmp_path / name).write_bytes(PACKED[name][:length])
        read = b""
        with pytest.raises(DamagedFileError, match="truncated"):
            for chunk in read_chunks(tmp_path / name):
                read += chunk
        assert TEXT.startswith(read)


@pytest.mark.parametrize("name", ["t.gz", "t.zst"])
def test_packed_rubbish_is_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no packed file at all")
    with pytest.raises(DamagedFileError, match="damaged"):
        list(read_chunks(tmp_path / name))


@pytest.mark.parametrize("separator", [b"\n", b"<|end|>"])
def test_pieces_do_not_depend_on_where_chunks_are_cut(separator):
    rng = random.Random(2)
    for _ in range(300):
        pieces = [bytes(rng.choices(b"ab<|", k=rng.randint(0, 12))) for _ in range(rng.randint(0, 6))]
        whole = separator.join(pieces)
        pieces = whole.split(separator)
        chunks, at = [], 0
        while at < len(whole):
            step = rng.randint(1, 5)
            chunks.append(whole[at : at + step])
            at += step
        expected = [piece if len(piece) <= 8 else None for piece in pieces]
        if expected and expected[-1] == b"":
            expected.pop()
        assert list(split_chunks(iter(chunks), separator, longest=8)) == expected
