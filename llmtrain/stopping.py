"""What makes a run save and end early: a signal, the file STOP in its folder, or the scheduler's time limit.

Any rank may be asked; the loop gathers all ranks' answers once a step, so that they stop after the same one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmtrain.errors import StopRequested

if TYPE_CHECKING:
    from llmtrain.engine.seam import Comm

STOP_FILE = "STOP"
END_TIME = "SLURM_JOB_END_TIME"  # seconds since 1970; set by slurm 22.05 and later
MARGIN_S = 180.0  # so long before the time limit a run begins to save


class StopRequest:
    """Why this process should stop, or an empty string. A second signal ends it at once.

    So does the first one until the ranks have met: imports take seconds, on a busy machine many, a rank may
    wait for one that never comes, and there is nothing to agree on or to save yet. Launchers repeat the
    signal that the terminal has already sent, so what follows within `REPEAT_S` counts as the same request.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    REPEAT_S = 3.0

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._reason = ""
        self._asked_at = 0.0
        self._alone = True
        self._ending = threading.Lock()
        self._wake: socket.socket | None = None
        self._file: Path | None = None
        environ = os.environ if environ is None else environ
        self._launched = environ.get("WORLD_SIZE", environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1"
        end = environ.get(END_TIME, "")
        self._end = float(end) if end.isdigit() else None

    def listen(self) -> StopRequest:
        """Takes the signals over from now on."""
        for number in self.SIGNALS:
            signal.signal(number, self._asked)
        heard, told = socket.socketpair()
        told.setblocking(False)
        self._wake = told  # open as long as this object is
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(heard,), name="stop requests", daemon=True).start()
        return self

    def meet(self) -> None:
        """The other ranks wait for this one from now on, so that stopping takes an agreement."""
        self._alone = False
        if self._wake is not None:
            signal.set_wakeup_fd(-1)
            self._wake.close()

    def _hear(self, heard: socket.socket) -> None:
        """Ends this process, until the ranks have met, also while a library waits in its main thread.

        Python would carry out the handler only when the library is back.
        """
        while numbers := heard.recv(1):
            if numbers[0] in self.SIGNALS and signal.getsignal(numbers[0]) == self._asked and self._alone:
                self._end_alone(numbers[0])

    def watch(self, folder: Path) -> None:
        """Looks for `folder`/STOP from now on; one from before this process began asked another start."""
        self._file = folder / STOP_FILE
        with contextlib.suppress(FileNotFoundError):
            if self._file.stat().st_mtime < _process_began():
                self._file.unlink()

    def ask(self, why: str) -> None:
        """Asks for the stop; the first reason is the one that is told."""
        self._reason = self._reason or why

    @property
    def asked(self) -> str:
        """Why to stop, if somebody has asked for it; a time limit that is near at the start is no reason.

        The STOP file is taken away as soon as it is heeded.
        """
        if not self._reason and self._file is not None and self._file.exists():
            self._file.unlink(missing_ok=True)
            self.ask(f"the file {self._file}")
        return self._reason

    @property
    def reason(self) -> str:
        """Why to stop, be it asked for or the time limit."""
        if not self.asked and self._end is not None and time.time() > self._end - MARGIN_S:
            self.ask("the job's time limit is near")
        return self._reason

    def _asked(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._alone:
            self._end_alone(number)
            return
        if not self._reason:
            self._asked_at = now
            self.ask(signal.Signals(number).name)
        elif number != signal.SIGUSR1 and now - self._asked_at > self.REPEAT_S:
            os._exit(128 + number)

    def _end_alone(self, number: int) -> None:
        if not self._ending.acquire(blocking=False):  # the handler and the thread hear the same request
            return
        why = f"stopped on request ({signal.Signals(number).name}) before the ranks met"
        if self._launched:
            why += " (a launcher asks too, when another rank has failed: see whether one tells of an error)"
        os.write(2, f"{why}; the same command goes on\n".encode())
        os._exit(StopRequested.exit_status)


class StopWithinStep:
    """Whether all ranks leave a long step between the same two of its micro-batches, for a stop request.

    A step of few seconds asks nobody. Where a step takes longer, the ranks exchange their answers every
    `EVERY_S` seconds or so: they count the time in micro-batches, at a pace that all of them were told.
    """

    EVERY_S = 10.0

    def __init__(self, comm: Comm, stop: StopRequest) -> None:
        self._comm, self._stop = comm, stop
        self._pace = self._next = 1  # micro-batches from one exchange to the next, the same on every rank
        self._began = time.monotonic()

    def __call__(self, micro_batches: int) -> bool:
        """Asks when it is time to, after so many micro-batches of a step; every rank calls it with each."""
        if not micro_batches:
            self._began, self._next = time.monotonic(), self._pace
        if micro_batches < max(1, self._next):
            return False
        votes: list[Any] = self._comm.gather([self._stop.reason, time.monotonic() - self._began])
        slowest = max(seconds for _, seconds in votes) / micro_batches
        self._pace = max(1, int(self.EVERY_S / max(slowest, 1e-6)))
        self._next = micro_batches + self._pace
        return bool(agreed(reason for reason, _ in votes))


def agreed(reasons: Iterable[Any]) -> str:
    """The first rank's reason to stop that has one, or an empty string."""
    return next(filter(None, reasons), "")


def stopped_at(step: int, steps: int) -> str:
    """Where in a run it was stopped, in words."""
    return f"after step {step} of {steps}" if step else "before a step was made"


def stopped(why: str, when: str) -> StopRequested:
    """What ends a run whose ranks agreed to stop. A signal may be for one machine only."""
    whole = why not in {number.name for number in StopRequest.SIGNALS}
    return StopRequested(f"stopped on request ({why}) {when}; the same command goes on", whole)


def _process_began() -> float:
    """When this process was started, as time.time() has it."""
    ticks = int(
        Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    )  # since the machine's start
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
