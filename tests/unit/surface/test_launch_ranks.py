"""The local launcher, with ranks that are small scripts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llmtrain.errors import EngineError, InputError, StopRequested
from llmtrain.launch import last_error, launch, rank_environment, rendezvous_port

LAUNCH = "import sys; from pathlib import Path; from llmtrain.launch import launch; "


def script(folder: Path, body: str) -> list[str]:
    """A rank program: `rank` is its number; everything it may need is imported."""
    path = folder / "rank.py"
    head = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n"
    path.write_text(head + textwrap.dedent(body))
    return [sys.executable, str(path)]


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has waited for yet counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(found: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def test_ranks_know_their_world_and_log_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR")
        print(" ".join(os.environ[name] for name in names), sys.argv[1:])
        print("aside of", rank, file=sys.stderr)
    """
    logs = tmp_path / "logs"
    assert launch(["a", "b=1"], 3, logs, script(tmp_path, body)) == 0
    shown = capfd.readouterr()
    assert shown.out == "0 0 3 3 3 127.0.0.1 ['a', 'b=1']\n"
    assert shown.err == "aside of 0\n"
    assert (logs / "rank-0.log").read_text() == "aside of 0\n"
    assert (logs / "rank-2.log").read_text() == "2 2 3 3 3 127.0.0.1 ['a', 'b=1']\naside of 2\n"


def test_cores_are_shared_out_unless_somebody_said_otherwise() -> None:
    cores = len(os.sched_getaffinity(0))
    assert rank_environment(0, 1, 1, {})["OMP_NUM_THREADS"] == str(cores)
    assert rank_environment(0, 10**6, 1, {})["OMP_NUM_THREADS"] == "1"
    assert rank_environment(0, 2, 1, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_a_full_disk_does_not_keep_rank_0_from_speaking(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    more_than_a_pipe_holds = "import sys; sys.stderr.write('x' * 500_000 + ' said')"
    program = [sys.executable, "-c", more_than_a_pipe_holds]
    assert launch([], 1, tmp_path, program) == 0
    assert capfd.readouterr().err.endswith(" said")
    command = [sys.executable, "-c", LAUNCH + f"sys.exit(launch([], 1, Path('logs'), {program!r}))"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, cwd=tmp_path, stderr=full, timeout=60).returncode == 0


@pytest.mark.parametrize(("signals", "apart_s"), [("USR1 USR1", 1.0), ("TERM TERM", 0.1), ("INT TERM", 0.1)])
def test_a_repeated_request_does_not_kill_a_save(tmp_path: Path, signals: str, apart_s: float) -> None:
    body = """
        asked = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: asked.append(1))
        open(f"up-{rank}", "w").close()
        while not asked: time.sleep(0.01)
        end = time.monotonic() + 2.5
        while time.monotonic() < end: time.sleep(0.01)
        sys.exit(75)
    """
    start = f"sys.exit(launch([], 2, Path('logs'), {script(tmp_path, body)!r}))"
    with subprocess.Popen([sys.executable, "-c", LAUNCH + start], cwd=tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both ranks are up")
        for name in signals.split():
            process.send_signal(signal.Signals[f"SIG{name}"])
            time.sleep(apart_s)
        assert process.wait(60) == 75


def test_a_late_second_request_ends_ranks_that_hear_nothing(tmp_path: Path) -> None:
    body = """
        for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
        open(f"up-{rank}", "w").close()
        time.sleep(60)
    """
    quick = "from llmtrain.stopping import StopRequest; StopRequest.REPEAT_S = 0.5\n"
    start = f"sys.exit(launch([], 2, Path('logs'), {script(tmp_path, body)!r}))"
    with subprocess.Popen([sys.executable, "-c", LAUNCH + quick + start], cwd=tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both ranks are up")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1


def test_a_rank_that_dies_ends_the_others_and_is_named(tmp_path: Path) -> None:
    body = """
        open(f"pid-{rank}", "w").write(str(os.getpid()))
        if rank == 1:
            while not os.path.exists("pid-0"): time.sleep(0.01)
            print("ValueError: the cause", file=sys.stderr)
            print("and a last word", file=sys.stderr)
            sys.exit(1)
        signal.signal(signal.SIGTERM, lambda *_: None)  # as a rank that is stuck in a collective
        while True: time.sleep(0.1)
    """
    program = script(tmp_path, f"os.chdir({str(tmp_path)!r})\n" + textwrap.dedent(body))
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        launch([], 2, tmp_path / "logs", program)
    assert time.monotonic() - began < 30
    first = str(caught.value).splitlines()[0]
    assert first == "rank 1 of 2 ended with status 1: ValueError: the cause"
    assert gone(int((tmp_path / "pid-0").read_text()))


def test_a_rank_that_only_lost_its_peer_is_not_the_one_that_is_named(tmp_path: Path) -> None:
    body = """
        if rank == 0:
            sys.exit("error: RuntimeError: Read error: Connection reset by peer")
        time.sleep(0.2)
        sys.exit("error: the disk is full")
    """
    with pytest.raises(EngineError, match="rank 1 of 2 ended with status 1: error: the disk is full"):
        launch([], 2, tmp_path / "logs", script(tmp_path, body))


def test_a_rank_killed_by_a_signal_is_named(tmp_path: Path) -> None:
    body = """
        if rank == 2:
            print("was at work", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    with pytest.raises(
        EngineError, match=r"rank 2 of 3 was killed by SIGKILL \(out of memory\?\): was at work"
    ):
        launch([], 3, tmp_path / "logs", script(tmp_path, body))


def test_a_rank_that_leaves_early_is_named_beside_the_one_that_misses_it(tmp_path: Path) -> None:
    body = """
        if rank == 1: sys.exit(0)
        time.sleep(1)
        print("error: connection closed", file=sys.stderr)
        sys.exit(1)
    """
    with pytest.raises(EngineError) as caught:
        launch([], 3, tmp_path / "logs", script(tmp_path, body))
    assert "rank 1 had ended with status 0 while it was still needed" in str(caught.value).splitlines()
    assert "of 3 ended with status 1: error: connection closed" in str(caught.value)


def test_a_hang_is_told_as_the_ranks_have_told_it(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            print("error: no progress for 9 s: rank 0 gives no sign (stopped)", file=sys.stderr)
            sys.exit(1)
        time.sleep(60)
    """
    with pytest.raises(EngineError) as caught:
        launch([], 2, tmp_path / "logs", script(tmp_path, body))
    assert str(caught.value).splitlines()[0] == "no progress for 9 s: rank 0 gives no sign (stopped)"


def test_a_library_that_exits_with_0_in_a_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exits(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("llmtrain.train.run", exits)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    from llmtrain.train import main

    assert main(["run.yaml"]) == 1
    assert "error: SystemExit: 0" in capsys.readouterr().err


def test_only_this_launchs_log_is_searched_for_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("OldError: of an earlier run\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("all is well\n\n")
    assert last_error(log, start) == "all is well"
    assert last_error(log) == "OldError: of an earlier run"


def test_bad_input_and_stops_keep_their_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "print('error: no such key', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    for status in (2, 75):
        assert launch([str(status)], 2, tmp_path / "logs", script(tmp_path, body)) == status
    assert capfd.readouterr().err == "error: no such key\n" * 2


def test_bad_input_of_one_rank_alone_is_told_by_the_launcher(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            print("error: data/x is not here", file=sys.stderr)
            sys.exit(2)
        time.sleep(0.5)
    """
    with pytest.raises(InputError, match="rank 1 of 2 ended with status 2: error: data/x is not here"):
        launch([], 2, tmp_path / "logs", script(tmp_path, body))


def test_a_stop_of_one_rank_alone_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.launch.AGREED_GRACE_S", 0.2)  # rank 0 waits for rank 1, which never comes
    body = """
        if rank == 1:
            print("stopped on request (SIGTERM) before the ranks met", file=sys.stderr)
            sys.exit(75)
        time.sleep(60)
    """
    with pytest.raises(StopRequested, match="rank 1 of 2 ended with status 75: stopped on request"):
        launch([], 2, tmp_path / "logs", script(tmp_path, body))


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_request_reaches_every_rank(tmp_path: Path, asked: signal.Signals) -> None:
    body = """
        def stop(*_):
            open(f"stopped-{rank}", "w").close()
            sys.exit(75)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(number, stop)
        open(f"up-{rank}", "w").close()
        time.sleep(60)
    """
    program = script(tmp_path, body)
    command = [sys.executable, "-c", LAUNCH + f"sys.exit(launch([], 2, Path('logs'), {program!r}))"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both ranks are up")
        process.send_signal(asked)
        assert process.wait(60) == 75
    assert len(list(tmp_path.glob("stopped-*"))) == 2


def test_a_stop_before_a_rank_listens_is_a_stop(tmp_path: Path) -> None:
    body = "open(f'up-{rank}', 'w').close(); time.sleep(60)"
    program = script(tmp_path, body)
    command = [sys.executable, "-c", LAUNCH + f"sys.exit(launch([], 2, Path('logs'), {program!r}))"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2, "both ranks are up")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75


def test_no_orphan_outlives_a_killed_launcher(tmp_path: Path) -> None:
    body = """
        with open(f"part-{rank}", "w") as file: file.write(str(os.getpid()))
        os.rename(f"part-{rank}", f"pid-{rank}")
        time.sleep(60)
    """
    command = [sys.executable, "-c", LAUNCH + f"launch([], 2, Path('logs'), {script(tmp_path, body)!r})"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2, "both ranks are up")
        process.kill()
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    wait_for(lambda: all(gone(pid) for pid in pids), "the ranks have ended")


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(InputError, match=rf"MASTER_PORT = {port} \(environment\): .*in use.*; unset it"):
            launch([], 2, tmp_path / "logs", [sys.executable, "-c", "raise SystemExit('started')"])
    assert not (tmp_path / "logs").exists()


def test_a_free_port_is_kept_and_none_is_picked() -> None:
    port = rendezvous_port({})
    assert rendezvous_port({"MASTER_PORT": str(port)}) == port
    for wrong in ("http", "70000"):
        with pytest.raises(InputError, match=f"MASTER_PORT = '{wrong}'"):
            rendezvous_port({"MASTER_PORT": wrong})
