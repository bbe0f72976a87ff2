"""A rank that makes no progress ends the run, and every rank says where it stood.

A thread in each rank compares the time since the last sign of progress with a limit. When it is passed, the
rank writes the stacks of all its threads to its log and one line of JSON to the run folder, where the others
see it and do the same, so that the message can name the rank that keeps the others waiting. Then they exit:
a collective that waits for a rank that is gone can't be ended in any other way. A rank in which not even that
thread runs (a library holds the interpreter lock) is ended by faulthandler, which needs no interpreter.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from llmtrain.config.world import World

POLL_S = 0.5
GATHER_S = 2.0  # how long the ranks of a machine wait for each other's reports
SHARED_GATHER_S = 8.0  # a file system that machines share shows the others' files late
HUNG = "no progress for"  # so the summary begins; the launcher knows it by that
LONG_PHASES = 3  # times the limit: start-up, the first step (which may compile), evaluation, saving
START_UP = "start-up"
Report = dict[str, object]  # step, doing, waited_s, ranks
_SAVING = "is in saving"
_COLLECTIVE = re.compile(
    r"all_reduce|reduce_scatter|all_gather|all_to_all|broadcast|barrier|^reduce$|^gather$|^send$|^recv$"
    r"|^isend$|^irecv$|batch_isend_irecv|^scatter"
)


class Watchdog:
    """Watches this rank from its own thread. `enter` is a sign of progress, and says what comes next.

    logs      the run's `logs/`, seen by all ranks; it is not touched before a rank makes no progress
    limit_s   the longest time that a step may take; 0 watches nothing
    """

    def __init__(self, world: World, logs: Path, limit_s: float, end: Callable[[int], None] = os._exit):
        self.rank, self.size, self.logs, self.limit_s = world.rank, world.size, logs, limit_s
        self._gather_s = GATHER_S if world.local_size == world.size else SHARED_GATHER_S
        self.folder = logs / "hang" / "unnamed"
        self._log: IO[str] = sys.stderr
        self.behind: Callable[[], str] = str  # what this rank's GPU waits in, where it has one
        self._end = end
        self._phase, self._step, self._since, self._more_s = START_UP, 0, time.monotonic(), 0.0
        self._warm = False  # the first step may compile
        self._begun, self._closed = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._speaks = False
        self._main = threading.main_thread().ident

    def begin(self, start: str) -> None:
        """From now on this rank is watched; the ranks' reports are found under the name of their start."""
        self.folder = self.logs / "hang" / start
        self._begun = self.limit_s > 0
        if self._begun:
            self.enter(START_UP, 0)
            self._thread.start()

    def log_to(self, path: Path) -> str:
        """The run folder is this start's now: stacks go to the end of `path`, no longer to stderr.

        Rank 0 gets what the ranks of an earlier start have told of a hang, if they have, and takes it away.
        """
        self._log = path.open("a", buffering=1, encoding="utf-8")
        self._arm()
        if self._begun:
            with suppress(OSError):  # already now: other machines see a new folder late
                self.folder.mkdir(parents=True, exist_ok=True)
        return self._last_hang() if self.rank == 0 else ""

    def _last_hang(self) -> str:
        told = ""
        with suppress(OSError, ValueError, KeyError):  # it is only told; 0.3.0 wrote other files there
            for folder in sorted(self.folder.parent.iterdir(), key=lambda each: each.stat().st_mtime):
                if folder == self.folder:
                    continue
                reports = _read(folder)
                told = summary(reports, int(str(next(iter(reports.values()))["ranks"]))) if reports else told
                shutil.rmtree(folder, ignore_errors=True)
        return told

    def enter(self, phase: str, step: int, more_s: float = 0.0) -> None:
        """This rank begins `phase` (training, evaluation, saving, …) of `step`, counted from 1.

        `more_s`: so much longer than other phases it may rightly take.
        """
        self._warm = self._warm or self._phase == "training"
        self._phase, self._step, self._since, self._more_s = phase, step, time.monotonic(), more_s
        self._arm()

    def close(self) -> None:
        """The run has ended; nothing is watched any more.

        When it fails because a peer that told of a hang is gone, this rank's own word of it comes first.
        """
        self._closed.set()
        if self._speaks:
            self._thread.join()
        if self._begun:
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):
                self.folder.rmdir()  # what was told of a hang stays
        if self._log is not sys.stderr:
            self._log.close()

    @property
    def _allowed(self) -> float:
        return self._more_s + self.limit_s * (1 if self._phase == "training" and self._warm else LONG_PHASES)

    def _arm(self) -> None:
        if self._begun:
            late = self._allowed + self._gather_s + 5 * POLL_S  # the thread, if it runs, is done by then
            faulthandler.dump_traceback_later(late, exit=True, file=self._log)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            waited = time.monotonic() - self._since
            if waited > self._allowed or _reported(self.folder):
                self._speaks = True
                self._report_and_end(waited)
                return

    def _report_and_end(self, waited: float) -> None:
        own: Report = {
            "step": self._step,
            "doing": self.doing(),
            "waited_s": round(waited, 1),
            "ranks": self.size,
        }
        reports, size, more = {self.rank: own}, self.size, ""
        try:
            self._dump_stacks()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                scratch = self.folder / f"{_report(self.rank)}.part"
                scratch.write_text(json.dumps(own), encoding="utf-8")
                scratch.replace(self.folder / _report(self.rank))
                reports = self._gathered()
            except OSError as error:  # a full disk, or one that is gone: nobody is accused of silence
                size, more = 0, f" (the others' reports can't be had: {error.strerror})"
            self._say(reports, size, more)
        finally:
            self._end(1)

    def _dump_stacks(self) -> None:
        try:
            print("no progress; the stacks of all threads:", file=self._log, flush=True)
        except OSError:  # faulthandler would not tell that they are lost
            self._log = sys.stderr
        faulthandler.dump_traceback(file=self._log, all_threads=True)

    def _gathered(self) -> dict[int, Report]:
        deadline = time.monotonic() + self._gather_s
        while len(_reported(self.folder)) < self.size and time.monotonic() < deadline:
            time.sleep(POLL_S / 2)
        return _read(self.folder)

    def _say(self, reports: Mapping[int, Report], size: int, more: str) -> None:
        """The summary goes to every rank's log, and to stderr from the lowest rank that can speak."""
        stacks = f"in {self.logs}/" if self._log is not sys.stderr else "on its stderr"
        text = f"error: {summary(reports, size)}{more}; every rank's stack is {stacks}"
        print(text, file=self._log, flush=True)
        if self._log is not sys.stderr and self.rank == min(reports, default=self.rank):
            print(text, file=sys.stderr, flush=True)

    def doing(self) -> str:
        """What this rank's threads are at, from their stacks."""
        frames = sys._current_frames()
        own = threading.get_ident()
        stacks = [frames.pop(self._main or 0, None), *(f for ident, f in frames.items() if ident != own)]
        for stack in stacks:
            if found := _where(stack):
                return "is in loading" if found == _SAVING and self._phase == START_UP else found
        with suppress(Exception):  # a GPU that is lost tells nothing
            if found := self.behind():
                return found
        return f"is in {self._phase}"


@contextmanager
def watching(world: World, logs: Path, limit_s: float) -> Iterator[Watchdog]:
    """A watchdog that is closed in the end, however that comes."""
    watch = Watchdog(world, logs, limit_s)
    try:
        yield watch
    finally:
        watch.close()


def _report(rank: int) -> str:
    return f"rank-{rank}.json"


def _reported(folder: Path) -> list[int]:
    """Ranks that have reported there."""
    found = []
    with suppress(OSError):  # a folder that is away for a moment is not a reason to end a run
        for entry in os.scandir(folder):
            if match := re.fullmatch(r"rank-(\d+)\.json", entry.name):
                found.append(int(match[1]))
    return sorted(found)


def _read(folder: Path) -> dict[int, Report]:
    return {
        rank: json.loads((folder / _report(rank)).read_text(encoding="utf-8")) for rank in _reported(folder)
    }


def _where(frame: FrameType | None) -> str:
    """`waits in reduce-scatter`, `is in data loading`, or nothing that can be told."""
    while frame is not None:
        path, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if ("torch/distributed/" in path or "deepspeed/comm/" in path) and _COLLECTIVE.search(name):
            kind = name.removesuffix("_tensor").removesuffix("_into").removesuffix("_fn").strip("_")
            return f"waits in {kind.replace('_', '-')}"
        if "/llmtrain/data/" in path:
            return "is in data loading"
        if "/llmtrain/checkpoint/" in path:
            return _SAVING
        frame = frame.f_back
    return ""


def summary(reports: Mapping[int, Report], size: int) -> str:
    """Which rank stopped where, the odd ones first: those are the cause, and the many wait for them."""
    places: dict[str, list[int]] = {}
    for rank, report in sorted(reports.items()):
        when = f"of step {report['step']}" if report["step"] else "before the first step"
        places.setdefault(f"{report['doing']} {when}", []).append(rank)
    parts = []
    silent = [rank for rank in range(size) if rank not in reports]
    if silent:
        verb = "gives" if len(silent) == 1 else "give"
        parts.append(f"{_ranks(silent)} {verb} no sign (stopped, or its machine is gone)")
    for place, ranks in sorted(places.items(), key=lambda each: ("waits in" in each[0], len(each[1]))):
        many = len(ranks) > 1
        said = place.replace("is in", "are in").replace("waits in", "wait in") if many else place
        parts.append(f"{_ranks(ranks) if len(ranks) <= 4 else f'{len(ranks)} ranks'} {said}")
    longest = max((float(str(report["waited_s"])) for report in reports.values()), default=0.0)
    return f"{HUNG} {longest:.0f} s: " + ", ".join(parts)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
