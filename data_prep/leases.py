"""The work queue of a build: a folder of tickets, one per chunk, that any process which sees it can take.

    queue/todo/000012             a chunk that waits
    queue/taken/000012@HOLDER     a chunk that HOLDER works on; its time and content change as it goes on
    queue/failed/000012           what went wrong with a chunk: the build ends

A ticket is taken by renaming it, which only one can do. It is taken back the same way: at once from a
process of this machine that has ended, and after SILENT_SECONDS without a sign of life from any other.
Who was only slow does no harm: the result of a chunk is the same whoever made it, and the first one stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

BEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
DIGITS = 6
CLOSED = "closed"
GONE = ".gone-"  # in the name of a folder that is being removed


@cache
def here() -> str:
    """This machine since it started, and within it the space in which process numbers are unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()
    return re.sub(r"[^A-Za-z0-9-]", "-", parts[0])[:40] + "-" + digest


def holder() -> str:
    """This process, named so that another one with its number is not taken for it."""
    return f"{here()}.{os.getpid()}.{_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """When a process of this machine started; None when there is none, or only what is left of one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Watch:
    """Tells who is gone: a process of this machine at once, another after a time without a sign of life.

    Only changes of a file's time are seen, so clocks of machines may differ.
    """

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, float]] = {}

    def gone(self, who: str, sign: Path) -> bool:
        """Whether `who`, who touches the file `sign`, has ended."""
        host, pid, started = who.rsplit(".", 2)
        if host == here():
            return _started(int(pid)) != started
        try:
            stamp = sign.stat().st_mtime_ns
        except OSError:
            return False  # it has just moved on
        now = time.monotonic()
        before, since = self.seen.get(who, (0, now))
        if stamp != before:
            self.seen[who] = (stamp, now)
            return False
        return now - since > SILENT_SECONDS


class Heart(threading.Thread):
    """Rewrites a file every BEAT_SECONDS for as long as this process lives: that is the sign of life."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.sign: Path | None = None
        self.content: Any = 0
        self.start()

    def run(self) -> None:
        """Beats."""
        while True:
            self.beat()
            time.sleep(BEAT_SECONDS)

    def beat(self) -> None:
        """One sign of life, if there is something to give it for."""
        sign = self.sign
        if sign is not None:
            with (
                contextlib.suppress(OSError),
                open(sign, "r+", encoding="utf-8") as file,
            ):  # never made anew: it may be done
                file.write(json.dumps(self.content))
                file.truncate()
            with contextlib.suppress(OSError):
                os.utime(sign)


class Queue:
    """The tickets of one pass."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.todo, self.taken, self.failed = (folder / name for name in ("todo", "taken", "failed"))
        self.watch = Watch()

    @classmethod
    def create(cls, folder: Path, numbers: Iterable[int]) -> Queue:
        """A queue of these chunks, which appears whole and replaces one that was there."""
        new = cls(folder.with_name(folder.name + ".new"))
        for leftover in (folder, new.folder):
            remove(leftover)
        for part in (new.todo, new.taken, new.failed):
            part.mkdir(parents=True)
        for number in numbers:
            (new.todo / f"{number:0{DIGITS}d}").touch()
        new.folder.rename(folder)
        return cls(folder)

    def claim(self) -> Ticket | None:
        """The first chunk that waits, or whose holder is gone. None when there is none, or one has failed."""
        if self.failures():
            return None
        for name in _names(self.todo):
            ticket = self._take(self.todo / name, name)
            if ticket is not None:
                return ticket
        for name in _names(self.taken):
            number, who = name.split("@")
            if self.watch.gone(who, self.taken / name):
                ticket = self._take(self.taken / name, number)
                if ticket is not None:
                    return ticket
        return None

    def _take(self, path: Path, name: str) -> Ticket | None:
        mine = self.taken / f"{name}@{holder()}"
        try:
            path.rename(mine)
        except OSError:  # someone else was first
            return None
        return Ticket(int(name), mine)

    def withdraw(self, number: int) -> None:
        """A chunk that still waits is not wanted any more."""
        (self.todo / f"{number:0{DIGITS}d}").unlink(missing_ok=True)

    def put_back(self, ticket: Ticket) -> None:
        """A chunk that its holder can't do, and another may."""
        with contextlib.suppress(OSError):
            ticket.path.rename(self.todo / f"{ticket.number:0{DIGITS}d}")

    def fail(self, ticket: Ticket, error: BaseException) -> None:
        """Notes what went wrong, for all who work here."""
        content: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
        if isinstance(error, OSError):
            content |= {"errno": error.errno, "message": error.strerror, "filename": error.filename}
        content["trace"] = "".join(traceback.format_exception(error))
        part = self.failed / f".{ticket.number}@{holder()}"
        with contextlib.suppress(OSError):  # the disk may be full, or the build given up
            part.write_text(json.dumps(content), encoding="utf-8")
            part.rename(self.failed / f"{ticket.number:0{DIGITS}d}")
        ticket.release()

    def close(self) -> None:
        """The pass is done."""
        (self.folder / CLOSED).touch()

    @property
    def closed(self) -> bool:
        """Whether the pass is done."""
        return (self.folder / CLOSED).exists()

    def failures(self) -> list[int]:
        """The chunks that have failed."""
        return [int(name) for name in _names(self.failed)]

    def failure(self, number: int) -> dict[str, Any]:
        """What went wrong with a chunk."""
        content: dict[str, Any] = json.loads(
            (self.failed / f"{number:0{DIGITS}d}").read_text(encoding="utf-8")
        )
        return content

    def at_work(self) -> dict[int, int]:
        """The chunks that someone works on, who isn't known to be gone, and the bytes each has read."""
        found = {}
        for name in _names(self.taken):
            number, who = name.split("@")
            if not self.watch.gone(who, self.taken / name):
                with contextlib.suppress(OSError, ValueError):
                    found[int(number)] = int((self.taken / name).read_text(encoding="utf-8") or 0)
        return found


class Ticket:
    """A chunk that this process works on."""

    def __init__(self, number: int, path: Path):
        self.number = number
        self.path = path

    def release(self) -> None:
        """The chunk is done, or nobody needs to do it any more."""
        self.path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    """What is in a folder, in order; nothing when the folder is gone."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []


def remove(folder: Path) -> None:
    """Takes a folder away at once, even while others write into it."""
    if folder.exists():
        away = folder.with_name(f"{folder.name}{GONE}{os.getpid()}-{time.monotonic_ns()}")
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)
