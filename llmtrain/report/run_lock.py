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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.errors import InputError
from llmtrain.report.run_folder import PRIVATE_FOLDER

if TYPE_CHECKING:
    from llmtrain.engine.seam import Comm

LOCK = "in-use.lock"
WAIT_S = 120.0  # a start that was asked to stop takes up to 25 s; NFS keeps a lost machine's locks for 90 s
_POLL_S = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
log = logging.getLogger("llmtrain")


@contextmanager
def sole_start(folder: Path, comm: Comm, wait_s: float = WAIT_S) -> Iterator[None]:
    """Rank 0 holds the run folder, made if need be, while this lasts. Every rank calls it.

    Waits for another start to let go; raises InputError on all ranks when it does not, naming it, or when the
    folder can't be written. Where the file system has no locks, a warning in the log is all.
    """
    descriptor, failure = -1, ""
    if comm.rank == 0:
        try:
            folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            failure = _take(descriptor, folder, wait_s)
        except OSError as error:
            failure = f"output_dir = {folder}: can't be written ({error.strerror})"
    failure = str(comm.broadcast(failure))
    try:
        if failure:
            raise InputError(failure)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _take(descriptor: int, folder: Path, wait_s: float) -> str:
    """Empty once the lock is ours, or there is none; else who has it."""
    end = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s has no file locks: nothing keeps a second start out of it", folder)
                return ""
            if error.errno != errno.EAGAIN:
                raise
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.ftruncate(descriptor, 0)
            os.pwrite(
                descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0
            )
            return ""
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another start"
        if time.monotonic() > end:
            return (
                f"output_dir = {folder} is in use by {holder}: stop that run first, or give this one another "
                "output_dir"
            )
        if not told:
            print(f"waiting for {folder}, in use by {holder}", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_S)
