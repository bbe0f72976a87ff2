"""Saving behind the loop: what is committed is the state at the save, once every rank has written it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine, State, empty_like, make_facts, on_ranks, same_state, small_state

from llmtrain.checkpoint import SaveEnd, Saver, background, host_copy, newest
from llmtrain.checkpoint.host_copy import HostCopy
from llmtrain.checkpoint.save import file_specs, in_file_order
from llmtrain.errors import EngineError


class Rank:
    """One rank of a run: an engine, its saver, and how its saves ended."""

    def __init__(
        self,
        comm: Any,
        folder: Path,
        state: State,
        keep: int = 2,
        strict: bool = False,
        first: Callable[[], object] = lambda: None,
    ):
        self.engine = FakeEngine(comm, state)
        self.ends: list[SaveEnd] = []
        tell = self.ends.append
        self.saver = Saver(
            self.engine, folder, keep, lambda step, tokens: make_facts(step), tell, strict, first
        )

    def exchange(self) -> None:
        """What the loop does after each step."""
        self.saver.settle(self.engine.comm.gather(self.saver.state()))


def run_ranks(
    size: int, folder: Path, work: Callable[[Rank], Any], state: State | None = None, **settings: Any
) -> list[Any]:
    """Results of `work` on each rank; raises the first exception."""
    shared = small_state(4) if state is None else state
    results = on_ranks(size, lambda comm: work(Rank(comm, folder, shared, **settings)))
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def loaded(folder: Path) -> tuple[int, State]:
    """Step and content of the newest checkpoint."""
    found = newest(folder)
    assert found is not None
    copy = empty_like(small_state())
    with found.reader() as reader:
        FakeEngine(on_ranks(1, lambda comm: comm)[0], copy).load(reader, {})
    return found.step, copy


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes of a rank's file wait until it is set."""
    opened = threading.Event()
    write = os.write

    def gated(descriptor: int, data: Any) -> int:
        if "/rank-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            assert opened.wait(60)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", gated)
    yield opened
    opened.set()


def test_what_is_saved_is_the_state_at_the_save_whatever_training_does_to_it_since(
    tmp_path: Path, gate: threading.Event
) -> None:
    state = small_state(4)

    def work(rank: Rank) -> list[int]:
        rank.engine.comm.barrier()
        rank.saver.save(4, 40, wait=False)
        rank.engine.comm.barrier()
        if rank.engine.comm.rank == 0:  # the next step, in place
            for kinds in state.values():
                for tensor in kinds.values():
                    tensor.fill_(1)
        rank.engine._scalars["step"] = 5.0
        rank.engine.comm.barrier()
        gate.set()
        rank.saver.finish()
        return [end.step for end in rank.ends]

    assert run_ranks(2, tmp_path, work, state) == [[4], [4]]
    step, copy = loaded(tmp_path)
    assert step == 4 and same_state(copy, small_state(4)) and not same_state(copy, state)
    found = newest(tmp_path)
    assert found is not None and found.scalars == {"step": 3.0}


def test_a_file_written_behind_is_byte_for_byte_the_one_written_in_the_loop(tmp_path: Path) -> None:
    for name, wait in (("behind", False), ("waited", True)):

        def work(rank: Rank, wait: bool = wait) -> None:
            rank.saver.save(4, 40, wait)
            rank.saver.finish()

        run_ranks(2, tmp_path / name, work)
    behind, waited = (tmp_path / name / "checkpoints" / "step-00000004" for name in ("behind", "waited"))
    for path in waited.iterdir():
        assert path.read_bytes() == (behind / path.name).read_bytes(), path.name


def test_blocks_may_end_inside_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "BLOCK", 7)
    engine = FakeEngine(on_ranks(1, lambda comm: comm)[0], small_state())
    plan = {
        "slices": [
            [piece.name, piece.kind, 0, piece.tensor.numel(), name]
            for piece in engine.slices()
            for name in [{4: "F32", 2: "BF16", 8: "I64", 1: "BOOL"}[piece.tensor.element_size()]]
        ]
    }
    specs = file_specs(plan, 0)
    copy = HostCopy()
    copy.reserve(sum(spec.size for spec in specs))
    copy.take(engine, specs)
    expected = b"".join(
        tensor.contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in in_file_order(engine, specs)
    )
    assert b"".join(copy.pieces()) == expected and copy.size == len(expected) > 7


def test_nothing_is_committed_before_every_rank_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = threading.Event()
    fsync = os.fsync

    def late(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("rank-00001.safetensors"):
            assert slow.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    folder = tmp_path / "checkpoints" / "step-00000004"

    def work(rank: Rank) -> tuple[list[bool], int]:
        rank.saver.save(4, 40, wait=False)
        committed = []
        for _ in range(20):
            rank.exchange()
            committed.append((folder / "COMMIT").exists() or (folder / "manifest.json").exists())
        rank.engine.comm.barrier()
        slow.set()
        rank.saver.finish()
        return committed, len(rank.ends)

    assert run_ranks(2, tmp_path, work) == [([False] * 20, 1)] * 2
    assert loaded(tmp_path)[0] == 4


def test_one_save_at_a_time_and_one_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def work(rank: Rank) -> tuple[list[int], int]:
        places = set()
        for step in range(1, 6):
            rank.saver.save(step, step, wait=False)
            places.add(tuple(block.data_ptr() for block in rank.saver._copy._blocks))
            assert [end.step for end in rank.ends] == list(range(1, step)), "the one before has ended"
        rank.saver.finish()
        return [end.step for end in rank.ends], len(places)

    assert run_ranks(2, tmp_path, work) == [([1, 2, 3, 4, 5], 1)] * 2
    assert "saving step 5 waited" in caplog.text and "for the save before it" in caplog.text
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000004", "step-00000005"]


def test_a_save_that_is_waited_for_comes_after_the_one_under_way(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop while a slow save is under way: both are committed, in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(background, "_JOIN_S", 0.01)

    def work(rank: Rank) -> list[tuple[int, Path | None]]:
        rank.saver.save(4, 4, wait=False)
        rank.exchange()
        assert not rank.ends
        threading.Timer(0.1, gate.set).start()
        rank.saver.save(5, 5, wait=True)
        assert rank.saver.state() is None
        return [(end.step, end.folder) for end in rank.ends]

    folders = [tmp_path / "run" / "checkpoints" / f"step-0000000{step}" for step in (4, 5)]
    assert run_ranks(2, Path("run"), work) == [list(zip((4, 5), folders, strict=True))] * 2
    assert all((folder / "COMMIT").exists() for folder in folders)


def test_what_each_rank_writes_is_exchanged_once(tmp_path: Path) -> None:
    def work(rank: Rank) -> list[int]:
        told: list[bool] = []
        gather = rank.engine.comm.gather

        def counted(value: object) -> list[object]:
            told.append("slices" in str(value))
            return gather(value)

        rank.engine.comm.gather = counted
        exchanged = []
        for step in (1, 2, 3):
            told.clear()
            rank.saver.save(step, step, wait=step == 3)
            exchanged.append(sum(told))
        return exchanged

    assert run_ranks(2, tmp_path, work) == [[1, 0, 0]] * 2
    assert loaded(tmp_path)[0] == 3


def lose(rank: Rank) -> list[SaveEnd]:
    """Step 3 is saved well, step 4 with the fault, step 5 well again."""
    rank.saver.save(3, 3, wait=True)
    rank.saver.save(4, 4, wait=False)
    rank.saver.finish()
    rank.saver.save(5, 5, wait=False)
    rank.saver.finish()
    return rank.ends


@pytest.mark.parametrize(
    ("code", "where", "sentence"),
    [
        (errno.ENOSPC, "rank-00001.safetensors", "rank 1: no space in "),
        (errno.EDQUOT, "rank-00000.safetensors", "rank 0: the disk quota is used up in "),
        (errno.EIO, "rank-00001.safetensors", "rank 1: Input/output error ("),
        (errno.EROFS, "config.json", "Read-only file system ("),
        (errno.ENOSPC, "COMMIT.part", "no space in "),
    ],
)
def test_a_lost_save_is_told_on_every_rank_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str, sentence: str
) -> None:
    write = os.write

    def failing(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"step-00000004/{where}"):
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", failing)
    for ends in run_ranks(2, tmp_path, lose, keep=3):
        assert [(end.step, end.folder is None) for end in ends] == [(3, False), (4, True), (5, False)]
        assert ends[1].why.startswith(f"saving step 4 failed: {sentence}")
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000003", "step-00000005"]
    assert loaded(tmp_path)[0] == 5


def test_a_folder_that_became_read_only_is_a_lost_save_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def refused(path: Any, *rest: Any, **names: Any) -> None:
        if str(path).endswith("step-00000004"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *rest, **names)

    monkeypatch.setattr(os, "mkdir", refused)
    for ends in run_ranks(2, tmp_path, lose):
        assert [end.folder is None for end in ends] == [False, True, False]
        assert ends[1].why.startswith("saving step 4 failed: Read-only file system (")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of step 4 can be written."""
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if "/step-00000004/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)


@pytest.mark.parametrize("strict, wait", [(True, False), (False, True)])
def test_a_lost_save_that_matters_ends_the_run_on_every_rank(
    tmp_path: Path, full_disk: None, strict: bool, wait: bool
) -> None:
    def work(rank: Rank) -> str:
        rank.saver.save(3, 3, wait=True)
        try:
            rank.saver.save(4, 4, wait)
            assert not wait
            rank.saver.finish()
        except EngineError as error:
            return str(error)
        return "went on"

    answers = run_ranks(2, tmp_path, work, strict=strict)
    assert answers[0] == answers[1] and answers[0].startswith("saving step 4 failed: rank 0: no space in ")
    assert loaded(tmp_path)[0] == 3


@pytest.mark.parametrize("wait", [True, False])
def test_nothing_counts_whose_steps_are_not_on_disk(tmp_path: Path, wait: bool) -> None:
    """`first` is the run log's sync: with a full disk under metrics.jsonl the save is lost."""
    room = []

    def first() -> None:
        if not room:
            raise EngineError("metrics.jsonl can't be written")

    def work(rank: Rank) -> list[str]:
        with contextlib.suppress(EngineError):
            rank.saver.save(3, 3, wait)
        rank.saver.finish()
        rank.engine.comm.barrier()
        room.append(True)
        rank.saver.save(4, 4, wait)
        rank.saver.finish()
        return [end.why for end in rank.ends if end.why]

    for told in run_ranks(2, tmp_path, work, first=first):
        assert wait or "metrics.jsonl can't be written" in told[0]
    assert loaded(tmp_path)[0] == 4 and not (tmp_path / "checkpoints" / "step-00000003").exists()


def test_without_memory_for_copies_every_save_is_waited_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_copy, "available_bytes", lambda: 1000)

    def work(rank: Rank) -> list[int]:
        for step in (4, 5):
            rank.saver.save(step, step, wait=False)
            assert rank.saver.state() is None, "nothing is under way"
        assert rank.saver._copy.size == 0
        return [end.step for end in rank.ends if end.folder]

    assert run_ranks(2, tmp_path, work) == [[4, 5]] * 2
    told = [record.message for record in caplog.records if "until it is on disk" in record.message]
    assert len(told) == 2 and "0.0 GB of memory free, the copies of its ranks' state need" in told[0]


def test_memory_that_one_rank_cannot_get_makes_all_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    reserve = HostCopy.reserve

    def refuse_one(copy: HostCopy, size: int) -> None:
        taken.append(size)
        if len(taken) == 2:
            raise RuntimeError("CUDA error: out of memory")
        reserve(copy, size)

    monkeypatch.setattr(HostCopy, "reserve", refuse_one)
    ends = run_ranks(2, tmp_path, lambda rank: (rank.saver.save(4, 4, wait=False), rank.saver._copy.size))
    assert ends == [(None, 0), (None, 0)] and loaded(tmp_path)[0] == 4
