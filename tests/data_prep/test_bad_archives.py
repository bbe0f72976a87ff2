"""Archives that are cut, broken, or made to be written outside: counted, and never extracted."""

from __future__ import annotations

import io
import random
import tarfile

from text_files import read, samples, tar, warc_record, wet

TEXTS = [f"{number} " + "".join(random.Random(number).choices("abc de\n", k=300)) for number in range(120)]


def is_prefix(texts: list[str]) -> bool:
    return texts == TEXTS[: len(texts)]


def test_a_tar_cut_at_any_offset_gives_what_was_whole_and_one_reason(tmp_path):
    raw = samples(TEXTS)
    end = len(raw.rstrip(b"\0")) // 512 * 512 + 512
    for length in [1, 511, 512, 1024, end, *random.Random(4).sample(range(2, end), 40)]:
        (tmp_path / "d.tar").write_bytes(raw[:length])
        documents, tally = read(tmp_path / "d.tar")
        assert is_prefix([document.text for document in documents])
        assert tally.rejected == {"truncated tar file": 1}, length
    (tmp_path / "d.tar").write_bytes(b"")
    assert read(tmp_path / "d.tar")[1].rejected == {"empty": 1}
    (tmp_path / "d.tar").write_bytes(b"no archive" * 100)
    assert read(tmp_path / "d.tar")[1].rejected == {"damaged tar file": 1}
    broken = bytearray(raw)
    broken[raw.index(b"a/0050.txt")] ^= 1
    (tmp_path / "d.tar").write_bytes(broken)
    documents, tally = read(tmp_path / "d.tar")
    assert [document.text for document in documents] == TEXTS[:49]
    assert tally.rejected == {"damaged tar file": 1}


def member(name: str, kind: bytes, target: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return out.getvalue()[:512]


def test_names_that_leave_an_archive_and_links_spoil_their_sample_and_nothing_is_written(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = tar([("ok.txt", b"fine"), ("sub/ok.txt", b"fine too")])
    bad = tar(
        [("../x.txt", b"out"), ("/etc/y.txt", b"out"), ("a/../../z.txt", b"out"), ("big.txt", b"b" * 2000)]
    )
    bad = bad[: len(bad.rstrip(b"\0")) // 512 * 512 + 512]
    links = member("link.txt", tarfile.SYMTYPE, "/etc/passwd") + member("hard.txt", tarfile.LNKTYPE, "ok.txt")
    links += member("device.txt", tarfile.CHRTYPE) + member("folder", tarfile.DIRTYPE)
    more = tar([("broken.json", b"{"), ("latin.txt", b"\xff"), ("picture.jpg", b"x"), ("list.json", b"[1]")])
    (folder / "d.tar").write_bytes(bad + links + more[: len(more.rstrip(b"\0")) // 512 * 512 + 512] + good)
    documents, tally = read(folder / "d.tar", longest=1000)
    assert [document.text for document in documents] == ["fine", "fine too"]
    assert tally.rejected == {
        "unsafe name in tar file": 3,
        "too large": 1,
        "link or device in tar file": 3,
        "broken JSON": 1,
        "not UTF-8": 1,
        "no field 'text'": 1,
        "not a JSON object": 1,
    }
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "d.tar"]


def test_a_tar_header_of_any_length_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    (tmp_path / "d.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    documents, tally = read(tmp_path / "d.tar")
    assert not documents and tally.rejected == {"damaged archive": 1}


def test_a_web_archive_cut_at_any_offset_gives_what_was_whole_and_one_reason(tmp_path):
    raw = wet(TEXTS)
    starts = {0, *(place for place in range(len(raw)) if raw.startswith(b"WARC/1.0", place))}
    path = tmp_path / "d.wet"
    for length in [1, 100, len(raw) - 10, *random.Random(5).sample(range(2, len(raw) - 4), 50)]:
        path.write_bytes(raw[:length])
        documents, tally = read(path)
        assert is_prefix([document.text for document in documents])
        between = raw[:length].endswith(b"\r") or raw[:length].rstrip(b"\r\n") != raw[:length]
        if length not in starts and not between:
            assert len(tally.rejected) == 1 and sum(tally.rejected.values()) == 1, length
    path.write_bytes(b"WARC/1.0\r\nContent-Length: x\r\n\r\n")
    assert read(path)[1].rejected == {"damaged WARC file": 1}
    path.write_bytes(b"WARC/1.0\r\nX: " + b"y" * 3_000_000)
    assert read(path)[1].rejected == {"damaged WARC file": 1}
    path.write_bytes(
        warc_record("conversion", "http://x", b"z" * 5000) + warc_record("conversion", "", b"ok")
    )
    documents, tally = read(path, longest=100)
    assert [document.text for document in documents] == ["ok"] and tally.rejected == {"too large": 1}
