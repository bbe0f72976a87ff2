from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import AloneComm

from llmtrain.stopping import END_TIME, MARGIN_S, StopRequest, StopWithinStep, stopped


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_signal_is_a_request_and_its_echo_is_the_same_one(handlers: None, number: signal.Signals) -> None:
    stop = StopRequest({}).listen()
    stop.meet()
    assert stop.reason == ""
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert stop.reason == number.name


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "2"}])
def test_before_the_ranks_meet_the_first_request_ends_at_once(
    handlers: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environ: dict[str, str],
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    StopRequest(environ).listen()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ended == [75]
    launched = " (a launcher asks too, when another rank has failed: see whether one tells of an error)"
    said = f"stopped on request (SIGTERM) before the ranks met{launched * bool(environ)}"
    assert capfd.readouterr().err == f"{said}; the same command goes on\n"


WAITS = """
import ctypes
from llmtrain.stopping import StopRequest
StopRequest({}).listen()
lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
print("up", flush=True)
library.pthread_mutex_lock(lock)  # never comes back: the handler of a signal would wait for ever
"""


def test_a_library_that_waits_for_the_others_keeps_no_request_from_being_heard() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.terminate()
        try:
            assert process.wait(10) == 75
        finally:
            process.kill()


def test_a_second_request_ends_at_once(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(StopRequest, "REPEAT_S", 0.0)
    StopRequest({}).listen().meet()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_the_stop_file_is_heeded_once_and_an_old_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    os.utime(tmp_path / "STOP", (time.time() - 30 * 86400,) * 2)  # no test process is so old
    stop = StopRequest({})
    stop.watch(tmp_path)
    assert stop.reason == "", "it asked for the stop before this start"
    assert not (tmp_path / "STOP").exists()
    (tmp_path / "STOP").touch()
    assert stop.reason == f"the file {tmp_path / 'STOP'}"
    assert not (tmp_path / "STOP").exists(), "the next start is not to find it"
    assert stop.reason, "what was asked for stays asked for"


def test_the_time_limit_of_the_job_is_a_request_in_time() -> None:
    near, far = (str(int(time.time() + MARGIN_S + seconds)) for seconds in (-5, 60))
    assert StopRequest({END_TIME: near}).reason == "the job's time limit is near"
    assert StopRequest({END_TIME: far}).reason == ""
    assert StopRequest({END_TIME: "unknown"}).reason == ""


def test_a_stop_file_made_while_this_start_opens_is_heeded_before_a_step(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    stop = StopRequest({END_TIME: str(int(time.time()))})
    assert stop.asked == "", "another start may train in that folder, and the file is for that one"
    stop.watch(tmp_path)
    assert stop.asked == f"the file {tmp_path / 'STOP'}"


def test_a_signal_may_be_for_one_machine_all_else_is_for_the_run() -> None:
    assert not any(stopped(number.name, "now").whole for number in StopRequest.SIGNALS)
    assert stopped("the file run/STOP", "now").whole and stopped("the job's time limit is near", "now").whole


def test_within_a_long_step_all_ranks_leave_after_the_same_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slower rank, here the other one, sets the pace at which both ask; short steps ask nobody."""
    clock, asked = [0.0], [""]
    monkeypatch.setattr("llmtrain.stopping.time.monotonic", lambda: clock[0])
    exchanges: list[float] = []

    class Two(AloneComm):
        def gather(self, value: Any) -> list[object]:
            exchanges.append(clock[0])
            return [value, [asked[0], 2 * value[1]]]

    ask = StopWithinStep(Two(), StopRequest({}))

    def step(seconds: float, many: int) -> int:
        """The micro-batches that were made."""
        exchanges.clear()
        for done in range(many):
            if ask(done):
                return done
            clock[0] += seconds
        return many

    assert step(0.5, 100) == 100
    assert exchanges == [0.5, *(0.5 + 5.0 * k for k in range(1, 10))], "every 10 s of the slower rank"
    asked[0] = "SIGTERM"
    assert step(0.5, 100) == 10, "after 10 s of the slower rank"
    asked[0] = ""
    assert step(0.001, 100) == 100 and len(exchanges) == 1
    assert step(0.001, 100) == 100 and not exchanges
