"""A run folder belongs to one start at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import AloneComm

from llmtrain.errors import InputError, StopRequested
from llmtrain.report import run_lock
from llmtrain.report.run_lock import LOCK, sole_start


def hold(folder: Path, ready: Any) -> None:
    with sole_start(folder, AloneComm()):
        ready.set()
        time.sleep(60)


def test_a_second_start_is_refused_and_the_first_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with sole_start(folder, AloneComm()):
        named = f"output_dir = {folder} is in use by process {os.getpid()} on .*beside it: output_dir=other"
        with pytest.raises(InputError, match=named), sole_start(folder, AloneComm(), wait_s=0):
            raise AssertionError("it came in")
    assert not folder.exists(), "a start that left nothing takes the folder that was made for it away"
    with sole_start(folder, AloneComm(), wait_s=0):
        assert (folder / LOCK).exists()
        (folder / "config.yaml").touch()
    assert (folder / LOCK).exists()


def test_a_lock_whose_file_is_gone_holds_nobody_out_and_lets_nobody_in_twice(tmp_path: Path) -> None:
    waiting = run_lock._Lock(tmp_path / "run", 0, "name=other")
    with sole_start(tmp_path / "run", AloneComm(), wait_s=0):
        assert waiting.take()[1], "it is in use"
    assert waiting.take() == (False, ""), "the folder that was taken away is made again"
    with pytest.raises(InputError), sole_start(tmp_path / "run", AloneComm(), wait_s=0):
        raise AssertionError("two are in")
    waiting.close()


def test_it_waits_for_a_start_that_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = threading.Event()

    def first() -> None:
        with sole_start(tmp_path, AloneComm()):
            inside.set()
            ends.wait(30)

    inside = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    threading.Timer(0.5, ends.set).start()
    with sole_start(tmp_path, AloneComm(), wait_s=30, another="name=other"):
        assert ends.is_set()
    thread.join()
    said = capsys.readouterr().err
    assert said.startswith(f"waiting up to 30 s for {tmp_path}, in use by process {os.getpid()} on ")
    assert said.endswith(" (to start another run beside it: name=other)\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_asked_for_while_it_waits_ends_all_ranks_at_once(tmp_path: Path, rank: int) -> None:
    comm, polls = AloneComm(), [""] * 3 + ["SIGTERM"] * 9

    class Two(AloneComm):
        size = 2

        def gather(self, value: object) -> list[object]:
            return [value, [None, polls.pop(0) if rank == 1 else ""]]

    def asked() -> str:
        return polls.pop(0) if rank == 0 else ""

    told = r"stopped on request \(SIGTERM\) before a step was made; the same command goes on"
    with (
        sole_start(tmp_path, comm),
        pytest.raises(StopRequested, match=told),
        sole_start(tmp_path, Two(), asked, wait_s=3600),
    ):
        raise AssertionError("it came in")
    assert len(polls) == 8


def test_a_killed_start_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30) and process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with sole_start(tmp_path, AloneComm(), wait_s=0):
        pass


def test_all_ranks_hear_of_it(tmp_path: Path) -> None:
    class Other(AloneComm):
        rank, size = 1, 2

        def gather(self, value: object) -> list[object]:
            return [[[False, "rank 0 could not"], ""], value]

    with pytest.raises(InputError, match="rank 0 could not"), sole_start(tmp_path, Other()):
        raise AssertionError("it came in")
    assert not (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "llmtrain"), sole_start(tmp_path, AloneComm()):
        pass
    assert "has no file locks: nothing keeps a second start out of it" in caplog.text


def test_a_folder_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    named, folder = (
        r"output_dir = .*/file/run: can't be written \(Not a directory\)",
        tmp_path / "file" / "run",
    )
    with pytest.raises(InputError, match=named), sole_start(folder, AloneComm()):
        raise AssertionError("it came in")
