"""A rank ends with its launcher, however many layers stand above it, and never because a shell went away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANK = """
import pathlib, sys, time
from llmtrain.engine.supervisors import follow_launchers
above = follow_launchers()
pathlib.Path(sys.argv[1]).write_text(f"{__import__('os').getpid()} {len(above)}")
time.sleep(60)
"""
STOPPED_RANK = """
import os, pathlib, sys, time
from llmtrain.engine.supervisors import end_restarts
class Comm:
    def barrier(self): pass
end_restarts(Comm(), int(sys.argv[2]))
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} 0")
time.sleep(60)
"""
LAYER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"


def started(
    tmp_path: Path, layers: list[str], program: str = RANK, *words: str
) -> tuple[subprocess.Popen[bytes], int, int]:
    """A rank below `layers`, outermost first: (outermost process, rank's id, launchers it follows)."""
    rank, told = tmp_path / "rank.py", tmp_path / "told"
    rank.write_text(program)
    command = [sys.executable, str(rank), str(told), *words]
    for name in reversed(layers):
        if name == "sh":
            command = ["sh", "-c", f"{' '.join(command)} & wait"]
        else:
            script = tmp_path / name
            script.write_text(LAYER)
            command = [sys.executable, str(script), *command]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (told.exists() and " " in told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid, above = map(int, told.read_text().split())
    return process, pid, above


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("layers", "above"), [(["torchrun"], 1), (["accelerate", "torchrun"], 2), (["sh", "deepspeed"], 1)]
)
def test_a_rank_ends_when_any_launcher_above_it_was_killed(
    tmp_path: Path, layers: list[str], above: int
) -> None:
    process, pid, followed = started(tmp_path, layers)
    try:
        assert followed == above
        victim = process.pid
        if layers[0] == "sh":  # the launcher is the shell's child
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            victim = int(children[0])
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while lives(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not lives(pid), "an orphan after 10 s"
    finally:
        for each in (pid, process.pid):
            if lives(each):
                os.kill(each, signal.SIGKILL)
        process.wait()


def test_a_shell_that_goes_away_takes_no_run_with_it(tmp_path: Path) -> None:
    process, pid, followed = started(tmp_path, ["sh"])
    try:
        assert followed == 0
        process.kill()
        process.wait()
        time.sleep(2.5)
        assert lives(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("layer", "restarts", "local_rank", "ends"),
    [("torchrun", 3, 0, True), ("torchrun", 3, 1, False), ("torchrun", 0, 0, False), ("layer", 3, 0, False)],
)
def test_a_launcher_that_would_restart_the_ranks_is_ended_once_on_each_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, restarts: int, local_rank: int, ends: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    process, pid, _ = started(tmp_path, [layer], STOPPED_RANK, str(local_rank))
    try:
        if ends:
            assert process.wait(30) == -signal.SIGTERM
            os.kill(pid, signal.SIGTERM)  # as the agent does: no second request
        time.sleep(0.3)
        assert lives(pid) and (process.poll() is None) is not ends
    finally:
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
