"""One start at a time in a run folder: two that write the same checkpoints and metrics ruin both.

It happens: a job is submitted twice, or torchrun's agents lose sight of each other and each goes on alone.
The lock is the kernel's (flock), so it is gone with the process that held it, however that ended.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.errors import InputError
from llmtrain.report.run_folder import PRIVATE_FOLDER
from llmtrain.stopping import agreed, stopped, stopped_at

if TYPE_CHECKING:
    from llmtrain.engine.seam import Comm

LOCK = "in-use.lock"
WAIT_S = 120.0  # a start that was asked to stop takes up to 25 s; NFS keeps a lost machine's locks for 90 s
_POLL_S = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
log = logging.getLogger("llmtrain")


@contextmanager
def sole_start(
    folder: Path,
    comm: Comm,
    asked: Callable[[], str] = str,
    wait_s: float = WAIT_S,
    another: str = "output_dir=other",
) -> Iterator[None]:
    """Rank 0 holds the run folder, made if need be, while this lasts. Every rank calls it.

    `another` is what starts a run beside this one. Waits for another start to let go; raises InputError on
    all ranks when it does not, naming it, or when the folder can't be written, StopRequested when one of them
    is `asked` to stop meanwhile. Where the file system has no locks, a warning in the log is all.
    """
    lock = _Lock(folder, wait_s, another) if comm.rank == 0 else None
    try:
        while True:
            votes: list[Any] = comm.gather([lock.take() if lock else None, asked()])
            waits, failure = votes[0][0]
            if failure:
                raise InputError(failure)
            if why := agreed(vote for _, vote in votes):
                raise stopped(why, stopped_at(0, 0))
            if not waits:
                break
            time.sleep(_POLL_S)
        yield
    finally:
        if lock:
            lock.close()


class _Lock:
    """The lock of one run folder, for the one rank that takes it."""

    def __init__(self, folder: Path, wait_s: float, another: str):
        self._folder, self._end = folder, time.monotonic() + wait_s
        self._wait_s, self._another = wait_s, another
        self._descriptor, self._told, self._ours, self._made = -1, False, False, not folder.exists()

    def take(self) -> tuple[bool, str]:
        """Whether to wait and come again, and why that would not help; ours, or there is none: neither."""
        try:
            holder = self._holder()
        except OSError as error:
            return False, f"output_dir = {self._folder}: can't be written ({error.strerror})"
        if holder and time.monotonic() > self._end:
            fix = f"stop that run first, or start another one beside it: {self._another}"
            return False, f"output_dir = {self._folder} is in use by {holder}: {fix}"
        if holder and not self._told:
            told = f"waiting up to {self._wait_s:.0f} s for {self._folder}, in use by {holder}"
            told += f" (to start another run beside it: {self._another})"
            print(told, file=sys.stderr, flush=True)
            self._told = True
        return bool(holder), ""

    def _holder(self) -> str:
        """Empty once the lock is ours, or there is none; else who has it."""
        if self._descriptor < 0:
            self._folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._folder / LOCK, flags, 0o640)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s has no file locks: nothing keeps a second start out of it", self._folder)
                return ""
            if error.errno != errno.EAGAIN:
                raise
            return os.pread(self._descriptor, 200, 0).decode(errors="replace") or "another start"
        if not self._is_there():  # the start that we waited for took its folder away
            self.close()
            return self._holder()
        self._ours = True
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self._descriptor, 0)
        ours = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        os.pwrite(self._descriptor, ours.encode(), 0)
        return ""

    def _is_there(self) -> bool:
        """Whether others find the file that is locked."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._folder / LOCK))
        return False

    def close(self) -> None:
        """Lets go. A folder in which the run left nothing goes too, if it was made for it."""
        if self._descriptor < 0:
            return
        with suppress(OSError):
            if self._ours and self._is_there() and os.listdir(self._folder) == [LOCK]:
                os.unlink(self._folder / LOCK)
                if self._made:
                    os.rmdir(self._folder)
        os.close(self._descriptor)
        self._descriptor = -1
