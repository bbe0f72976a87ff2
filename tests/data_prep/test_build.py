"""Builds from end to end: every document once, the same bytes however built, and never half a dataset."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from corpora import corpus_file, files_of, some_text, texts_of

from data_prep import build as build_module
from data_prep.build import build
from llmtrain.data.verify import verify
from llmtrain.errors import DataError, LlmtrainError


def jsonl(path: Path, count: int, seed: int = 0) -> list[str]:
    """Writes `count` documents, no two alike, and returns their texts in order."""
    rng = random.Random(seed)
    texts = [f"{seed}.{number} " + some_text(rng, rng.randint(1, 60)) for number in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return texts


def small_chunks(monkeypatch, size: int) -> None:
    """Lets files be cut after about `size` bytes."""
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", size)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", size)


def test_every_document_comes_back_once_in_one_split_and_in_order(tmp_path):
    texts = jsonl(tmp_path / "d.jsonl", 3000)
    path = corpus_file(
        tmp_path, sources=[{"path": str(tmp_path / "d.jsonl")}], splits={"valid": 0.1, "test": 0.05}
    )
    report = build(path)
    got = {split: texts_of(tmp_path / "out", split) for split in ("train", "valid", "test")}
    assert sorted(text for split in got.values() for text in split) == sorted(texts)
    waiting = iter(texts)
    assert all(text in waiting for text in got["train"])  # a subsequence: the order is the source's
    assert 200 < len(got["valid"]) < 400 and 80 < len(got["test"]) < 230
    counts = report.manifest.counts
    assert (counts.documents_in, counts.documents_out, counts.rejected) == (3000, 3000, {})
    assert report.text_bytes == sum(len(text.encode()) for text in texts)
    verify(tmp_path / "out")


def test_text_files_are_documents_and_a_separator_cuts_them(tmp_path):
    rng = random.Random(1)
    texts = {f"f{number}.txt": some_text(rng, 50) for number in range(20)}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.txt")}]))
    assert texts_of(tmp_path / "out", "train") == [texts[name] for name in sorted(texts)]
    (tmp_path / "one.md").write_text("first\nstory<|end|>second<|end|>\n\n<|end|>third")
    source = {"path": str(tmp_path / "one.md"), "separator": "<|end|>"}
    report = build(corpus_file(tmp_path, sources=[source]), overwrite=True)
    assert texts_of(tmp_path / "out", "train") == ["first\nstory", "second", "third"]
    assert report.manifest.counts.rejected == {"empty": 1}
    assert report.manifest.counts.examples == {"empty": ("one.md:3",)}


def test_no_worker_count_changes_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    small_chunks(monkeypatch, 10_000)
    jsonl(tmp_path / "a.jsonl", 1500)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"{broken\n\xff\n")
    jsonl(tmp_path / "b.jsonl", 500, seed=3)
    sources = [{"path": str(tmp_path / "a.jsonl")}, {"path": str(tmp_path / "b.jsonl"), "weight": 2.5}]
    path = corpus_file(tmp_path, sources=sources, splits={"valid": 0.1}, shard_tokens=30_000)
    results = []
    for workers in (1, 2, 3):
        build(path, [f"workers={workers}", f"output={tmp_path}/w{workers}"])
        results.append(files_of(tmp_path / f"w{workers}"))
    assert results[0] == results[1] == results[2]
    assert len([name for name in results[0] if name.startswith("train/")]) >= 4


def test_bad_input_is_counted_and_said_and_the_law_holds(tmp_path):
    texts = jsonl(tmp_path / "a.jsonl", 50)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": "cut\n{"other": 1}\n\n{"text": 5}\n\xff\xfe\n{"text": "\\udc00"}\n' + b"[]")
    more = jsonl(tmp_path / "b.jsonl", 400, seed=9)
    packed = gzip.compress((tmp_path / "b.jsonl").read_bytes())
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl.gz").write_bytes(packed[: len(packed) * 3 // 4])
    (tmp_path / "c.txt").write_bytes(b"x" * 5000)
    report = build(
        corpus_file(tmp_path, sources=[{"path": str(tmp_path / "[abc].*")}], max_document_bytes=4000)
    )
    counts = report.manifest.counts
    got = texts_of(tmp_path / "out", "train")
    assert counts.rejected == {
        "broken JSON": 1,
        "empty": 1,
        "field 'text' is not text": 1,
        "lone surrogate": 1,
        "no field 'text'": 1,
        "not UTF-8": 1,
        "not a JSON object": 1,
        "too large": 1,
        "truncated gzip file": 1,
    }
    assert counts.documents_in == counts.documents_out + 9 == len(got) + 9
    assert got[:50] == texts and got[50:] == more[: len(got) - 50] and len(got) > 200
    shown = report.render()
    assert "a.jsonl:51" in shown and f"b.jsonl.gz:{len(got) - 49}" in shown and "c.txt" in shown


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_ends_the_build_with_file_and_line_and_leaves_nothing(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    jsonl(tmp_path / "a.jsonl", 50)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"{broken\n")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}], strict=True, workers=workers)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError, match=r"^a\.jsonl:51: broken JSON"):
        build(path)
    assert sorted(os.listdir(tmp_path)) == before


def test_an_empty_corpus_says_why_it_is_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"body": "y"}\n')
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    message = r"corpus 'test' is empty: 2 documents in, none out\. 2 no field 'text' \(such as a\.jsonl:1\)"
    with pytest.raises(DataError, match=message):
        build(path)
    assert not (tmp_path / "out").exists()


def test_a_split_without_a_document_is_refused_with_the_ways_out(tmp_path):
    (tmp_path / "only.txt").write_text("one long story")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "only.txt")}], splits={"valid": 0.01})
    with pytest.raises(
        DataError, match="split 'valid' got none of the 1 documents .*valid=0.5.*splits: {}.* separator"
    ):
        build(path)


def test_weights_repeat_and_thin_out_train_alone(tmp_path):
    one, two = jsonl(tmp_path / "a.jsonl", 400), jsonl(tmp_path / "b.jsonl", 400, seed=2)
    sources = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 2.5},
        {"path": str(tmp_path / "b.jsonl"), "weight": 0.25},
    ]
    report = build(corpus_file(tmp_path, sources=sources, splits={"valid": 0.2}))
    train, valid = (texts_of(tmp_path / "out", split) for split in ("train", "valid"))
    counts = report.manifest.counts
    assert counts.documents_in == 800 == counts.documents_out + counts.rejected["left out by weight"]
    assert counts.repeats == len(train) + len(valid) - counts.documents_out
    of_one = [text for text in one if text in set(train)]
    assert len(valid) == len(one) - len(of_one) + len([text for text in two if text in set(valid)])
    copies = sum(text in set(one) for text in train) / len(of_one)
    assert 2.35 < copies < 2.65
    kept = sum(text in set(train) for text in two) / sum(text not in set(valid) for text in two)
    assert 0.17 < kept < 0.33


def test_a_limit_reads_so_many_records(tmp_path):
    texts = jsonl(tmp_path / "a.jsonl", 90)
    build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl"), "limit": 40}]))
    assert texts_of(tmp_path / "out", "train") == texts[:40]


def test_steps_drop_with_a_reason(tmp_path):
    texts = jsonl(tmp_path / "a.jsonl", 200)
    steps = [{"length": {"min_chars": 40, "max_chars": 200}}]
    report = build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}], steps=steps))
    assert texts_of(tmp_path / "out", "train") == [text for text in texts if 40 <= len(text) <= 200]
    short, long = (sum(test(len(text)) for text in texts) for test in ((40).__gt__, (200).__lt__))
    assert report.manifest.counts.rejected == {"length: too short": short, "length: too long": long}


def test_splitting_by_file_keeps_a_file_together(tmp_path):
    for number in range(40):
        lines = "".join(json.dumps({"text": f"{number} {k}"}) + "\n" for k in range(5))
        (tmp_path / f"{number:02d}.jsonl").write_text(lines)
    path = corpus_file(
        tmp_path, sources=[{"path": str(tmp_path / "*.jsonl")}], splits={"valid": 0.3}, split_by="file"
    )
    build(path)
    files = [{text.split()[0] for text in texts_of(tmp_path / "out", split)} for split in ("train", "valid")]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 40


def test_the_same_build_again_is_reused_and_another_refused_unless_asked(tmp_path):
    jsonl(tmp_path / "a.jsonl", 100)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    first = build(path)
    stamp = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    again = build(path, ["workers=2"])
    assert again.reused and not first.reused and "is up to date and was left as it is" in again.render()
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"holds another dataset \(it differs in tokenizer\).*--overwrite"):
        build(path, ["tokenizer.vocab_size=500"])
    jsonl(tmp_path / "a.jsonl", 101)
    with pytest.raises(DataError, match=r"differs in sources"):
        build(path)
    replaced = build(path, overwrite=True)
    assert replaced.manifest.counts.documents_in == 101
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "corpus.yaml", "out"]


def test_a_damaged_dataset_is_not_reused(tmp_path):
    jsonl(tmp_path / "a.jsonl", 100)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    build(path)
    (tmp_path / "out/train/00000.bin").unlink()
    with pytest.raises(DataError, match=r"holds a damaged dataset .*00000\.bin is missing.*--overwrite"):
        build(path)


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    jsonl(tmp_path / "a.jsonl", 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    with pytest.raises(DataError, match="is not a dataset: choose another output"):
        build(path, overwrite=True)
    (tmp_path / "out/thesis.tex").rename(tmp_path / "thesis.tex")
    (tmp_path / "out").rmdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/notes.txt").touch()
    with pytest.raises(DataError, match=r"out\.partial is in the way"):
        build(path)
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "out.partial").exists()


def test_a_replacement_cut_short_at_any_point_is_mended(tmp_path):
    jsonl(tmp_path / "a.jsonl", 30)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    build(path)
    expected = files_of(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.old")  # killed after the first of two renames
    shutil.copytree(tmp_path / "out.old", tmp_path / "out.partial/1234/dataset")
    for name in ("UNFINISHED", "build.json"):
        (tmp_path / "out.partial" / name).touch()
    assert build(path).reused and files_of(tmp_path / "out") == expected
    assert not (tmp_path / "out.partial").exists()
    shutil.copytree(tmp_path / "out", tmp_path / "out.old")  # killed before the older one was cleared away
    assert not build(path, overwrite=True).reused
    assert files_of(tmp_path / "out") == expected
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "corpus.yaml", "out"]


def test_two_builds_into_one_folder_at_once_are_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", 10)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    with open(tmp_path / "out.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing .*out"):
            build(path)
    build(path)


def test_a_full_disk_is_said_and_leaves_no_dataset_but_what_is_done(tmp_path, monkeypatch):
    jsonl(tmp_path / "a.jsonl", 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    said = (
        r"no space left while writing .*: about [\d.]+ MB more are needed and [\d.,]+ MB are free; make room"
    )
    with monkeypatch.context() as patched:
        patched.setattr("llmtrain.data.shards.ShardWriter.add", full)
        with pytest.raises(LlmtrainError, match=said):
            build(path)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "corpus.yaml", "out.partial"]
    assert not list((tmp_path / "out.partial").rglob("*.bin"))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
        with pytest.raises(LlmtrainError, match=said.replace(r"[\d.,]+ MB are", r"0\.0 MB are")):
            build(path)
    assert build(path).kept == 1


def test_a_disk_that_is_full_while_chunks_are_written_is_said_too(tmp_path, monkeypatch):
    jsonl(tmp_path / "a.jsonl", 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.results.ResultWriter.append", full)
    with pytest.raises(LlmtrainError, match="no space left while writing .*MB more are needed"):
        build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}]))
    assert not (tmp_path / "out").exists()


def test_an_output_that_can_not_be_written_is_said(tmp_path):
    jsonl(tmp_path / "a.jsonl", 10)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    with pytest.raises(DataError, match=r"output = '.*a\.jsonl/out' can't be written"):
        build(path, [f"output={tmp_path}/a.jsonl/out"])


def test_an_output_behind_a_link_is_replaced_where_it_lies(tmp_path):
    jsonl(tmp_path / "a.jsonl", 10)
    (tmp_path / "disk/out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk/out")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    build(path)
    build(path, overwrite=True)
    assert (tmp_path / "out").is_symlink() and verify(tmp_path / "out").files == 2
    assert os.listdir(tmp_path / "disk") == ["out"]


def test_a_worker_that_is_killed_ends_the_build_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "ALONE_BELOW_BYTES", 0)
    small_chunks(monkeypatch, 5_000)
    jsonl(tmp_path / "a.jsonl", 1500)

    def kill_workers(what, done, total, dropped=0):
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if what == "tokenizing" and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}], workers=2)
    with pytest.raises(LlmtrainError, match="a worker of the build died.*what is done is kept"):
        build(path, progress=kill_workers)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "corpus.yaml", "out.partial"]
    assert build(path).manifest.counts.documents_out == 1500


def test_progress_rises_to_all_bytes(tmp_path):
    jsonl(tmp_path / "a.jsonl", 300)
    heard = []
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}])
    build(path, progress=lambda *what: heard.append(what))
    stages = {what: [done for name, done, *_ in heard if name == what] for what, *_ in heard}
    early, late = ["reading sources", "training the tokenizer"], ["tokenizing", "writing shards"]
    assert list(stages) == [*early, "comparing tokenizer engines", *late]
    assert all(done == sorted(done) for done in stages.values())
    size = (tmp_path / "a.jsonl").stat().st_size
    assert ("tokenizing", size, size, 0) in heard
    assert heard[-1][1] == heard[-1][2]
