"""`llmtrain train --ranks N`: N ranks on this machine, watched until the last one has ended.

Each rank is a process of its own session that dies with this one, so no orphan stays. When a rank fails
the others are ended within seconds, and the error names the rank, how it ended and the last error in its
log. The exit status is the truth: 0 only if every rank ended with 0.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import IO

from llmtrain.config.search_path import SAFE, module_command
from llmtrain.engine.watchdog import HUNG
from llmtrain.errors import EngineError, InputError, StopRequested
from llmtrain.stopping import StopRequest

POLL_S = 0.05
SETTLE_S = 0.4  # a rank whose peer is gone often ends in the same moment, and may be noticed first
AGREED_GRACE_S = 15.0  # bad input and requested stops end every rank by itself
CRASH_GRACE_S = 3.0  # after SIGTERM: the peers of a dead rank are usually stuck in a collective
DEAF_GRACE_S = 1.0  # a rank that waits in a library, not in Python, can't obey a signal
HUNG_GRACE_S = 1.0  # the other watchdogs have spoken too; a rank that is left is the one that hangs
AGREED = (InputError.exit_status, StopRequested.exit_status)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_PR_SET_PDEATHSIG = 1
_PEER_LOST = re.compile(r"(reset|closed) by (remote )?peer|remote process has terminated|broken pipe", re.I)


def launch(arguments: Sequence[str], ranks: int, logs: Path, program: Sequence[str] | None = None) -> int:
    """Runs `program arguments` as `ranks` local ranks; returns the status to exit with.

    `program` runs `llmtrain.train` unless given. Rank 0 keeps this process's stdout, so that its
    progress display finds the terminal; what other ranks print goes to `logs/rank-N.log` only.
    Raises EngineError naming the first rank that failed, InputError when MASTER_PORT is taken.
    """
    assert ranks >= 1, f"cannot launch {ranks} ranks"
    port = rendezvous_port(os.environ)
    logs.parent.mkdir(0o750, parents=True, exist_ok=True)  # a new run folder is private
    logs.mkdir(exist_ok=True)
    command = [*(program or module_command("llmtrain.train")), *arguments]
    crew = _Crew(command, ranks, port, logs)
    with crew.forwarding_signals():
        failed = crew.wait_for_failure()
        if failed is None:
            return 0
        crew.end_the_others(failed)
    return crew.verdict(failed)


def rendezvous_port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT if given and free, else any free port. Raises InputError when it is taken."""
    wanted = environ.get("MASTER_PORT", "0")
    if not wanted.isdigit() or int(wanted) > 65535:
        raise InputError(f"MASTER_PORT = {wanted!r} (environment): must be a port number, 1 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(wanted)))
        except OSError as error:
            raise InputError(
                f"MASTER_PORT = {wanted} (environment): the port can't be used ({error.strerror}); "
                "unset it and a free one is picked"
            ) from error
        return int(probe.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What a rank is told about its world; LOCAL_SIZE is DeepSpeed's name on a CPU."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    ours = {name: value for name, value in environ.items() if not name.startswith("TORCHELASTIC_")}
    return {
        "OMP_NUM_THREADS": str(threads),
        **ours,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LLMTRAIN_LAUNCHER": "llmtrain",
        SAFE: "1",  # whatever a rank starts searches no working folder either
        "PYTHONUNBUFFERED": "1",  # a killed rank's last words are in its log
    }


def _die_with_parent() -> Callable[[], None] | None:
    """What a rank does between fork and exec: asks the kernel to kill it when this process ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the request was made
            os._exit(1)

    return set_death_signal


class _Crew:
    """The rank processes of one run."""

    def __init__(self, command: Sequence[str], ranks: int, port: int, logs: Path):
        self.logs = [logs / f"rank-{rank}.log" for rank in range(ranks)]
        self.log_starts = [log.stat().st_size if log.exists() else 0 for log in self.logs]
        self.signals_seen = 0
        self.kill_at = math.inf  # when the ranks that are left get SIGKILL
        self.left_early: list[int] = []  # ended with 0, and then another failed
        self.processes: list[subprocess.Popen[bytes]] = []
        before_exec = _die_with_parent()
        for rank, log in enumerate(self.logs):
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    command,
                    env=rank_environment(rank, ranks, port, os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else sink,
                    stderr=subprocess.PIPE if rank == 0 else sink,
                    start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
                    preexec_fn=before_exec,
                )
            self.processes.append(process)
        stderr = self.processes[0].stderr
        assert stderr is not None, "rank 0 was started without a pipe for stderr"
        self.copier = threading.Thread(target=_copy, args=(stderr, self.logs[0]), daemon=True)
        self.copier.start()

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Passes stop requests on to every rank, which knows what a repeated one means (`StopRequest`).

        One that is meant to end them at once does so to ranks that hear nothing, too.
        """
        first = 0.0

        def forward(number: int, frame: FrameType | None) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or now
            self.signals_seen += 1
            self.send(number)
            if number != signal.SIGUSR1 and now - first > StopRequest.REPEAT_S:
                self.kill_at = min(self.kill_at, now + DEAF_GRACE_S)

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.send(signal.SIGKILL)  # nothing is left behind, whatever was raised in between
            self.copier.join(timeout=2)

    def send(self, number: int) -> None:
        """Sends a signal to every rank that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait_for_failure(self) -> int | None:
        """The first rank that did not end with 0; None when all did."""
        while not any(statuses := [process.poll() for process in self.processes]):
            if all(status == 0 for status in statuses):
                return None
            if time.monotonic() > self.kill_at:
                self.send(signal.SIGKILL)
            time.sleep(POLL_S)
        time.sleep(SETTLE_S)
        statuses = [process.poll() for process in self.processes]
        self.left_early = [rank for rank, status in enumerate(statuses) if status == 0]
        failed = [rank for rank, status in enumerate(statuses) if status]
        # one killed by a signal is the cause; one that only lost its connection to a peer is a victim
        return min(failed, key=lambda rank: ((statuses[rank] or 0) >= 0, self._lost_a_peer(rank)))

    def _lost_a_peer(self, rank: int) -> bool:
        return bool(_PEER_LOST.search(last_error(self.logs[rank], self.log_starts[rank])))

    def end_the_others(self, failed: int) -> None:
        """Waits for the ranks to end by themselves if they will, then makes them end."""
        if self.status(failed) not in AGREED:
            self.send(signal.SIGTERM)
        hung = last_error(self.logs[failed], self.log_starts[failed]).startswith(f"error: {HUNG}")
        grace = HUNG_GRACE_S if hung else CRASH_GRACE_S
        if self.status(failed) in AGREED:
            grace = AGREED_GRACE_S
        deadline = time.monotonic() + grace
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > min(deadline, self.kill_at):
                break
            time.sleep(POLL_S)
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def status(self, rank: int) -> int:
        """How a rank ended. One that our forwarded signal ended before it could catch it was stopped."""
        status = self.processes[rank].poll()
        assert status is not None, f"rank {rank} still runs"
        if self.signals_seen and -status in FORWARDED:
            return StopRequested.exit_status
        return status

    def verdict(self, failed: int) -> int:
        """The exit status, after the reason was said: by rank 0 itself, or raised here."""
        status = self.status(failed)
        if status in AGREED and (failed == 0 or self.status(0) == status):
            return status
        if status < 0:
            ending = f"was killed by {signal.Signals(-status).name}"
            ending += " (out of memory?)" if status == -signal.SIGKILL and not self.signals_seen else ""
        else:
            ending = f"ended with status {status}"
        said = last_error(self.logs[failed], self.log_starts[failed])
        message = f"rank {failed} of {len(self.processes)} {ending}: {said or 'it left no message'}\n"
        if said.startswith(f"error: {HUNG}"):  # it names the rank that hung, seldom the first to end
            message = said.removeprefix("error: ") + "\n"
        for rank in self.left_early:
            message += f"rank {rank} had ended with status 0 while it was still needed\n"
        message += f"all ranks were ended; each one's log is in {self.logs[failed].parent}/"
        kinds = {InputError.exit_status: InputError, StopRequested.exit_status: StopRequested}
        raise kinds.get(status, EngineError)(message)


def _copy(source: IO[bytes], log: Path) -> None:
    """Rank 0's stderr goes to ours and to its log."""
    with log.open("ab", buffering=0) as sink:
        while chunk := os.read(source.fileno(), 65536):
            with suppress(OSError):  # a full disk must not keep the rank from speaking
                sink.write(chunk)
            with suppress(OSError):
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()


def last_error(log: Path, start: int = 0) -> str:
    """The last line of `log` beyond byte `start` that tells an error, else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 262_144))
            said = file.read().decode(errors="replace")
    except FileNotFoundError:  # a start whose input was wrong has taken it away
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "exception" in line.lower()]
    width = max(400, shutil.get_terminal_size().columns)
    return (errors or lines or [""])[-1][:width]


def likely_device() -> str:
    """`cuda` or `cpu`, guessed without the seconds that torch takes; the ranks look for themselves."""
    build = torch_build()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("HIP_VISIBLE_DEVICES"))
    if build.endswith("+cpu") or visible == "":
        return "cpu"
    doors = ("kfd", "dxg", "nvhost-gpu")  # of AMD, of Windows' Linux, of Jetson
    present = any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev", door).exists() for door in doors)
    return "cuda" if present else "cpu"


def torch_build() -> str:
    """The installed torch's version, such as `2.13.0+cpu`."""
    try:
        return version("torch")
    except PackageNotFoundError:
        raise InputError("PyTorch is not installed; run: pip install torch") from None
