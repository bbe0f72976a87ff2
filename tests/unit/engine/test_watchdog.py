"""A rank that makes no progress is named, with what it was at, and the run ends."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llmtrain.config.world import World
from llmtrain.engine import watchdog
from llmtrain.engine.busy import BusyClock
from llmtrain.engine.watchdog import Watchdog, summary


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "POLL_S", 0.05)
    monkeypatch.setattr(watchdog, "GATHER_S", 0.4)
    monkeypatch.setattr(
        watchdog.faulthandler, "dump_traceback", lambda file, all_threads: file.write("stacks")
    )
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *a, **k: None)


def watched(logs: Path, rank: int, size: int, limit_s: float) -> tuple[Watchdog, Path, list[int]]:
    ended: list[int] = []
    watch = Watchdog(World(rank, size, rank, size, "none"), logs, limit_s, ended.append)
    watch.begin("this-start")
    watch.log_to(logs / f"rank-{rank}.log")
    return watch, logs / f"rank-{rank}.log", ended


def wait_for(condition: object, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)


def test_all_ranks_end_and_the_lowest_that_speaks_says_who_stopped_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, first_log, first_ended = watched(tmp_path, 0, 3, 0.5)
    second, second_log, second_ended = watched(tmp_path, 1, 3, 60)  # rank 2 is stopped: no thread
    first.enter("training", 812)
    first.enter("training", 812)
    second.enter("evaluation", 811)
    wait_for(lambda: first_ended and second_ended)
    assert first_ended == second_ended == [1]
    said = capsys.readouterr().err
    assert said.count("no progress for") == 1, "one rank speaks for all"
    assert "rank 2 gives no sign (stopped, or its machine is gone)" in said
    assert "rank 0 is in training of step 812" in said and "rank 1 is in evaluation of step 811" in said
    assert f"every rank's stack is in {tmp_path}/" in said
    for log in (first_log, second_log):
        assert "stacks" in log.read_text() and "no progress for" in log.read_text()


def on_gpu(asked: int, done: int) -> BusyClock:
    clock = BusyClock(torch.device("cpu"))
    clock._cuda = True
    clock._mark = lambda: SimpleNamespace(query=lambda number=clock._asked: number <= done)  # type: ignore[method-assign]
    for _ in range(asked):
        clock.asked()
    return clock


def test_on_gpus_the_rank_whose_queue_is_empty_is_told_from_those_that_wait(tmp_path: Path) -> None:
    """NCCL lets the host go on: every rank's stack is somewhere in training, so events have to tell."""
    reports: dict[int, watchdog.Report] = {}
    for rank, done in enumerate((2, 2, 4)):  # rank 2's GPU has done all: its host asks for nothing more
        clock = on_gpu(asked=4, done=done)
        watch = Watchdog(World(rank, 3, rank, 3, "none"), tmp_path, 60)
        watch.enter("training", 7)
        watch.behind = clock.behind
        reports[rank] = {"step": 7, "doing": watch.doing(), "waited_s": 61.0, "ranks": 3}
    assert summary(reports, 3) == (
        "no progress for 61 s: rank 2 is in training of step 7, "
        "ranks 0, 1 wait in the GPU's queue behind micro-batch 2 of step 7"
    )
    watch.behind = lambda: 1 // 0 * ""  # the GPU is gone
    assert watch.doing() == "is in training"


def test_a_rank_that_fails_because_a_peer_has_spoken_and_gone_speaks_first(tmp_path: Path) -> None:
    watch, log, ended = watched(tmp_path, 1, 3, 60)  # it waits for rank 2
    (tmp_path / "hang" / "this-start" / "rank-0.json").write_text(
        '{"step": 3, "doing": "is in saving", "waited_s": 61.0, "ranks": 3}'
    )
    wait_for((tmp_path / "hang" / "this-start" / "rank-1.json").exists)
    watch.close()
    assert ended == [1] and "rank 0 is in saving of step 3" in log.read_text()


def test_progress_keeps_a_rank_alive_and_one_that_has_ended_is_not_watched(tmp_path: Path) -> None:
    watch, _, ended = watched(tmp_path, 0, 2, 0.5)
    for step in range(30):
        watch.enter("training", step)
        time.sleep(0.03)
    assert ended == []
    watch.close()
    time.sleep(0.7)
    assert ended == []


def test_what_an_earlier_start_has_reported_is_no_alarm(tmp_path: Path) -> None:
    (tmp_path / "hang" / "earlier").mkdir(parents=True)
    (tmp_path / "hang" / "earlier" / "rank-3.json").write_text("{}")
    watch, _, ended = watched(tmp_path, 1, 4, 60)
    time.sleep(0.3)
    assert ended == [] and watch.folder.is_dir()
    watch.close()
    assert not watch.folder.exists()


def test_what_ended_the_start_before_is_told_once(tmp_path: Path) -> None:
    """Rank 0 may be the one that hung, so the next start reads it."""
    earlier = tmp_path / "hang" / "earlier"
    earlier.mkdir(parents=True)
    report = {"step": 812, "doing": "waits in barrier", "waited_s": 61.0, "ranks": 2}
    (earlier / "rank-1.json").write_text(json.dumps(report))
    (tmp_path / "hang" / "rank-3.json").write_text("{}")  # 0.3.0 wrote them there
    watch = Watchdog(World(0, 2, 0, 2, "none"), tmp_path, 60)
    watch.begin("this-start")
    assert watch.log_to(tmp_path / "rank-0.log") == (
        "no progress for 61 s: rank 0 gives no sign (stopped, or its machine is gone), "
        "rank 1 waits in barrier of step 812"
    )
    assert watch.log_to(tmp_path / "rank-0.log") == ""
    assert not earlier.exists()
    watch.close()


def test_start_up_is_watched_before_the_run_folder_is_this_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    watch = Watchdog(World(0, 2, 0, 2, "none"), tmp_path / "logs", 0.1, ended.append)
    time.sleep(0.5)
    assert ended == [], "watched before the ranks have met"
    watch.begin("this-start")
    watch.enter("start-up", 0, more_s=60)  # another start may have the folder for so long
    time.sleep(0.8)
    assert ended == [] and not (tmp_path / "logs").exists()
    watch.enter("start-up", 0)
    wait_for(lambda: ended)
    assert ended == [1]
    said = capfd.readouterr().err
    assert "stacks" in said and "rank 0 is in start-up before the first step" in said
    assert said.rstrip().endswith("every rank's stack is on its stderr")


def test_a_folder_that_takes_no_report_ends_the_run_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    ended: list[int] = []
    watch = Watchdog(World(1, 2, 1, 2, "none"), tmp_path / "file", 0.1, ended.append)
    watch.begin("this-start")
    wait_for(lambda: ended)
    assert ended == [1]
    said = capfd.readouterr().err
    assert "rank 1 is in start-up before the first step" in said
    assert "(the others' reports can't be had: Not a directory)" in said
    assert "gives no sign" not in said, "nobody is accused whose report could not be read"


def test_a_log_on_a_full_disk_has_its_stacks_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rank-1.log").symlink_to("/dev/full")
    watch, _, ended = watched(tmp_path, 1, 3, 0.1)
    for rank in (0, 2):
        report = {"step": 3, "doing": "waits in barrier", "waited_s": 9.0, "ranks": 3}
        (watch.folder / f"rank-{rank}.json").write_text(json.dumps(report))
    wait_for(lambda: ended)
    said = capfd.readouterr().err
    assert "stacks" in said and "2 ranks" not in said and "gives no sign" not in said
    assert "ranks 0, 2 wait in barrier of step 3" in said and "is on its stderr" in said


def test_the_reports_of_other_machines_are_waited_for_longer(tmp_path: Path) -> None:
    one, two = World(0, 4, 0, 4, "none"), World(0, 4, 0, 2, "none")
    assert Watchdog(one, tmp_path, 1)._gather_s < Watchdog(two, tmp_path, 1)._gather_s


def test_a_limit_of_zero_watches_nothing(tmp_path: Path) -> None:
    watch, _, ended = watched(tmp_path, 0, 1, 0)
    watch.enter("training", 1)
    time.sleep(0.3)
    assert ended == [] and "watchdog" not in {thread.name for thread in threading.enumerate()}
    watch.close()


@pytest.mark.parametrize("phase", ["training", "saving"])
def test_the_first_step_and_long_phases_have_longer(tmp_path: Path, phase: str) -> None:
    watch, _, ended = watched(tmp_path, 0, 1, 0.6)
    watch.enter(phase, 3)
    time.sleep(1.0)
    assert ended == []
    wait_for(lambda: ended)
    assert ended == [1]


def test_a_stack_tells_where_a_rank_is(tmp_path: Path) -> None:
    """Frames as torch's and ours have them, made from code compiled under those file names."""
    release, places = threading.Event(), {}

    def at(path: str, function: str) -> str:
        space: dict[str, object] = {"wait": release.wait}
        exec(compile(f"def {function}():\n    wait()", path, "exec"), space)
        thread = threading.Thread(target=space[function], daemon=True)  # type: ignore[arg-type]
        thread.start()
        time.sleep(0.1)
        return watchdog._where(sys._current_frames()[thread.ident])

    try:
        places["torch"] = at("/x/torch/distributed/distributed_c10d.py", "reduce_scatter_tensor")
        places["barrier"] = at("/x/torch/distributed/distributed_c10d.py", "barrier")
        places["data"] = at("/y/llmtrain/data/packed.py", "read")
        places["saving"] = at("/y/llmtrain/checkpoint/files.py", "write")
        places["elsewhere"] = at("/z/somewhere.py", "all_reduce")
    finally:
        release.set()
    assert places == {
        "torch": "waits in reduce-scatter",
        "barrier": "waits in barrier",
        "data": "is in data loading",
        "saving": "is in saving",
        "elsewhere": "",
    }


def test_the_summary_begins_with_the_odd_one() -> None:
    waiting = {"step": 812, "doing": "waits in reduce-scatter", "waited_s": 61.0}
    reports = {rank: dict(waiting) for rank in range(8)}
    reports[3] = {"step": 812, "doing": "is in data loading", "waited_s": 60.0}
    assert summary(reports, 8) == (
        "no progress for 61 s: rank 3 is in data loading of step 812, "
        "7 ranks wait in reduce-scatter of step 812"
    )


def test_a_held_interpreter_lock_is_ended_too(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import ctypes, pathlib, sys, time
        from llmtrain.config.world import World
        from llmtrain.engine import watchdog
        watchdog.POLL_S, watchdog.GATHER_S = 0.05, 0.1
        world = World(0, 1, 0, 1, "none")
        watch = watchdog.Watchdog(world, pathlib.Path(sys.argv[1]), 0.5)
        watch.begin("this-start")
        watch.log_to(pathlib.Path(sys.argv[1]) / "log")
        watch.enter("training", 1)
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter lock
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, timeout=45, check=False)
    assert done.returncode == 1
    assert "Timeout" in (tmp_path / "log").read_text() and "File " in (tmp_path / "log").read_text()
