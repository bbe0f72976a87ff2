"""Builds that are killed, interrupted, joined, or find their corpus changed: what is done is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from corpora import corpus_file, files_of
from data_crash import World

from data_prep import leases
from data_prep.build import build
from data_prep.join import join
from data_prep.leases import Heart, Queue, Watch, holder
from llmtrain.errors import DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("crash"))


@pytest.mark.parametrize(("seed", "victim"), [(2, "build"), (5, "helper"), (9, "worker")])
def test_sigkill_at_a_random_moment_costs_only_the_chunks_in_hand(world, seed, victim):
    outcome = world.trial(seed)
    assert outcome.victim == victim, "the seed draws something else now: choose others"
    assert outcome.same
    assert outcome.again <= 4  # two workers of the build and two of its helper


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """A corpus file over two files of some 14 chunks in all."""
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 4_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 4_000)
    for name in ("a", "b"):
        rows = "".join(json.dumps({"text": f"{name} {number} some text"}) + "\n" for number in range(1000))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    return corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.jsonl")}])


def interrupt(path, after: int = 30_000, how: type[BaseException] = KeyboardInterrupt) -> None:
    """Begins a build that ends once so many bytes are tokenized."""

    def stop(what, done, total, dropped=0):
        if what == "tokenizing" and done > after:
            raise how("stopped")

    with pytest.raises(how):
        build(path, progress=stop)


def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(tmp_path, chunks):
    interrupt(chunks)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.jsonl", "corpus.yaml", "out.partial"]
    interrupt(chunks, after=45_000, how=MemoryError)
    report = build(chunks)
    assert report.kept >= 8 and f"{report.kept} chunks of an earlier build kept" in report.render()
    built = json.loads((tmp_path / "out/build.json").read_text())
    assert built["chunks_taken"] <= built["chunks"] + 2
    build(chunks, [f"output={tmp_path}/undisturbed"])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_a_result_that_lost_bytes_is_made_again(tmp_path, chunks):
    interrupt(chunks)
    tokens = sorted((tmp_path / "out.partial").rglob("train.tokens"))
    tokens[2].write_bytes(tokens[2].read_bytes()[:-5])
    (tokens[3].parent / "result.json").write_text("")
    assert build(chunks).kept == len(tokens) - 2
    build(chunks, [f"output={tmp_path}/undisturbed"])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_a_corpus_that_changed_since_is_refused_by_name_and_made_anew_when_asked(tmp_path, chunks):
    interrupt(chunks)
    before = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(before.replace(b"a 7 ", b"A 7 "))
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    message = (
        r"holds the unfinished build of another corpus \(sources\.0: a\.jsonl has changed, b\.jsonl is gone, "
        r"c\.jsonl is new\): change that back to go on with it, or start anew with --overwrite"
    )
    with pytest.raises(DataError, match=message):
        build(chunks)
    with pytest.raises(DataError, match=r"\(append_eos, sources\.0: a\.jsonl"):
        build(chunks, ["append_eos=false"])
    (tmp_path / "a.jsonl").write_bytes(before)
    (tmp_path / "c.jsonl").rename(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"\(sources\.0\.weight\)"):
        build(chunks, ["sources.0.weight=2"])
    with pytest.raises(DataError, match=r"\(keep_rejected\)"):
        build(chunks, ["keep_rejected=true"])
    report = build(chunks, ["append_eos=false"], overwrite=True)
    assert report.kept == 0 and not report.manifest.append_eos
    assert not (tmp_path / "out.partial").exists()


def test_a_corpus_that_changes_while_it_is_built_ends_the_build(tmp_path, chunks):
    def change(what, done, total, dropped=0):
        if what == "training the tokenizer" and not (tmp_path / "changed").exists():
            with open(tmp_path / "b.jsonl", "a") as file:
                file.write('{"text": "late"}\n')
            (tmp_path / "changed").touch()

    with pytest.raises(DataError, match=r"b\.jsonl is not what it was when this build began"):
        build(chunks, progress=change)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    os.utime(tmp_path / "a.jsonl", ns=(0, 0))  # touched, not changed
    build(chunks)


def test_there_must_be_a_build_to_join_and_of_the_same_corpus(tmp_path, chunks):
    with pytest.raises(DataError, match=r"no build of .*out is under way that could be joined"):
        join(chunks)
    interrupt(chunks)
    with pytest.raises(DataError, match=r"is of another corpus \(it differs in append_eos\)"):
        join(chunks, ["append_eos=false"])
    ended = subprocess.run(
        [sys.executable, "-c", "from data_prep.leases import holder; print(holder())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / "out.partial/UNFINISHED").write_text(json.dumps(ended))
    with pytest.raises(DataError, match=r"the build of .*out has died: run the command without --join"):
        join(chunks)


def test_the_work_of_the_dead_is_taken_back_and_that_of_the_living_is_not(tmp_path, monkeypatch):
    queue = Queue.create(tmp_path / "queue", range(4))
    mine = queue.claim()
    assert mine is not None and mine.number == 0
    gone = f"{leases.here()}.{2**22 - 1}.1"
    (queue.todo / "000001").rename(queue.taken / f"000001@{gone}")
    (queue.todo / "000002").rename(queue.taken / "000002@elsewhere-1234.17.1")
    assert [queue.claim().number for _ in range(2)] == [3, 1]  # what waits, then what the dead one had
    assert queue.claim() is None  # another machine may be at work for SILENT_SECONDS without a sign of life
    sign = queue.taken / "000002@elsewhere-1234.17.1"
    monkeypatch.setattr(leases, "SILENT_SECONDS", 0.2)
    for _ in range(3):
        time.sleep(0.1)
        os.utime(sign, ns=(time.time_ns(),) * 2)  # it is: its clock may say what it likes
        assert queue.claim() is None
    time.sleep(0.3)
    assert queue.claim().number == 2 and not sign.exists()
    mine.release()
    assert queue.at_work().keys() == {1, 2, 3}


def test_a_process_is_known_by_more_than_its_number_and_beats_while_it_lives(tmp_path, monkeypatch):
    host, pid, started = holder().rsplit(".", 2)
    watch = Watch()
    assert not watch.gone(holder(), tmp_path)
    assert watch.gone(f"{host}.{pid}.{int(started) + 1}", tmp_path)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    sign = tmp_path / "sign"
    sign.write_text("")
    os.utime(sign, ns=(0, 0))
    heart = Heart()
    heart.content, heart.sign = 17, sign
    deadline = time.monotonic() + 20
    while sign.read_text() != "17" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sign.read_text() == "17" and sign.stat().st_mtime_ns > 0


def test_what_a_worker_meets_is_told_by_the_build(tmp_path, chunks, monkeypatch):
    """Errors cross from worker processes: the first in the order of the corpus, whoever was faster."""
    monkeypatch.setattr("data_prep.build.ALONE_BELOW_BYTES", 0)
    for name, number in (("a", 500), ("b", 2)):
        lines = (tmp_path / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        lines[number - 1] = b"{broken\n"
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"^a\.jsonl:500: broken JSON"):
        build(chunks, ["strict=true", "workers=2"])
    assert not list(tmp_path.glob("out*"))


def test_an_unforeseen_error_keeps_what_is_done_and_shows_where(tmp_path, chunks, monkeypatch):
    from data_prep import worker

    quick = worker.run_steps

    def fail(steps, documents, tally, clock):
        if documents[0].file == "b.jsonl":
            raise ZeroDivisionError("a bug")
        return quick(steps, documents, tally, clock)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "run_steps", fail)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            build(chunks)
    assert build(chunks).kept >= 5
