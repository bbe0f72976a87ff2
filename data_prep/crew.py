"""Who works off the queue of a pass: this process alone, several of this machine, or (`on_ray`) a cluster.

All take chunks from the same folder in the same way, and so do those who join from elsewhere.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from data_prep.leases import Heart, Queue, holder
from data_prep.worker import CorpusChangedError, Worker
from llmtrain.config.search_path import SafeChildren
from llmtrain.errors import DataError, LlmtrainError

POLL_SECONDS = 0.1
CHANGED = 66  # the exit status of one who joined and finds another corpus
CLAIMS = "claims"  # in the work folder, a line for each time that a chunk was taken


class Hands(Protocol):
    """Whoever does the work of a build."""

    def step(self, number: int, hear: Callable[[int], None]) -> None:
        """Does a bit of the work of a pass, or waits a moment for those who do.

        `hear` is told now and then how many bytes of the chunk in hand are read, or 0.
        Raises what keeps the work from going on.
        """

    def end(self) -> None:
        """Nothing more is to be done."""


class Laborer:
    """Takes chunk after chunk, in this process. One who `joined` can't end the build, only leave it."""

    def __init__(self, folder: Path, joined: bool = False):
        self.worker = Worker(folder)
        self.heart = Heart()
        self.joined = joined
        self.queues: dict[int, Queue] = {}
        self.read_bytes = 0
        self.hear: Callable[[int], None] = lambda _: None

    def take(self, number: int) -> bool:
        """Works on the next chunk of a pass; False when there is none to be had.

        What the work raises is noted in the queue, which gives out no chunk after that, and raised.
        """
        work = self.worker.work
        if number not in self.queues:  # kept, because it knows for how long others have been silent
            self.queues[number] = Queue(work.queue(number))
        queue = self.queues[number]
        ticket = queue.claim()
        if ticket is None:
            return False
        try:
            if not work.result(number, ticket.number).exists():  # else its holder died just after making it
                with open(work.folder / CLAIMS, "a", encoding="utf-8") as claims:
                    claims.write(f"{number} {ticket.number} {holder()}\n")
                self.read_bytes = self.heart.content = 0
                self.heart.sign = ticket.path
                self.worker.do(number, ticket.number, self._advance)
        except BaseException as error:
            if isinstance(error, Exception) and not (self.joined and isinstance(error, CorpusChangedError)):
                queue.fail(ticket, error)
            else:
                queue.put_back(ticket)
            raise
        finally:
            self.heart.sign = None
        ticket.release()
        return True

    def _advance(self, count: int) -> None:
        self.read_bytes += count
        self.heart.content = self.read_bytes
        self.hear(self.read_bytes)


class Alone:
    """The work is done by this process, on one thread."""

    def __init__(self, folder: Path):
        self.laborer = Laborer(folder)
        self.before = os.environ.get("TOKENIZERS_PARALLELISM")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def step(self, number: int, hear: Callable[[int], None]) -> None:
        """Does one chunk."""
        self.laborer.hear = hear
        if not self.laborer.take(number):
            time.sleep(POLL_SECONDS)  # another has joined and is at work

    def end(self) -> None:
        """Tokenizers may use threads again."""
        del os.environ["TOKENIZERS_PARALLELISM"]
        if self.before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = self.before


class Processes:
    """The work is done by so many processes of this machine."""

    def __init__(self, folder: Path, count: int, joined: bool = False):
        context = multiprocessing.get_context("spawn")
        # Chunks each has taken. Without a lock: its semaphore would outlive a build that is killed.
        self._taken = context.RawArray("q", count)
        self.processes: list[BaseProcess] = [
            context.Process(target=_work_off, args=(folder, joined, self._taken, place), daemon=True)
            for place in range(count)
        ]
        with SafeChildren():
            for process in self.processes:
                process.start()

    def step(self, number: int, hear: Callable[[int], None]) -> None:
        """Waits, and sees that all are alive."""
        time.sleep(POLL_SECONDS)
        hear(0)
        self.check()

    def check(self) -> None:
        """Raises when one has died, or could not go on."""
        for process in self.processes:
            if process.exitcode == errno.ENOSPC:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if process.exitcode == CHANGED:
                raise DataError(
                    "a file of the corpus is not here, or not what the build has seen: join from where all "
                    "files lie as they do for the build"
                )
            if process.exitcode:
                raise LlmtrainError(
                    "a worker of the build died, most likely for want of memory: set fewer workers and run "
                    "the command again, what is done is kept"
                )

    @property
    def taken(self) -> int:
        """How many chunks they have taken."""
        return sum(self._taken)

    @property
    def alive(self) -> bool:
        """Whether any has not ended."""
        return any(process.is_alive() for process in self.processes)

    def end(self) -> None:
        """Ends them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _work_off(folder: Path, joined: bool, counts: Any, place: int) -> None:
    """A worker process: one thread, no say in Ctrl-C, and gone when its parent is. Counts at its `place`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    threading.Thread(target=end_with_parent, daemon=True).start()
    laborer = Laborer(folder, joined)
    for number in range(laborer.worker.work.plan.passes):
        queue = Queue(laborer.worker.work.queue(number))
        while not queue.closed:
            try:
                taken = laborer.take(number)
                counts[place] += taken
            except Exception as error:
                if joined and isinstance(error, CorpusChangedError):
                    raise SystemExit(CHANGED) from None
                if queue.failures() or not folder.exists():  # the build tells what it was
                    return
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # no room for a note
                    raise SystemExit(errno.ENOSPC) from None
                raise
            if not taken:
                if queue.failures() or not folder.exists():
                    return
                time.sleep(POLL_SECONDS)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
