"""A rank whose launcher was killed ends too: nobody would watch it, stop it or tell how it ended.

torchrun, deepspeed and accelerate leave their ranks running when they are killed with SIGKILL. `deepspeed`
has two layers above a rank, so the kernel's death signal, which knows only the parent, is not enough. It
also dies of SIGTERM without a word to its ranks, so they are given seconds to save.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.config.world import may_restart

if TYPE_CHECKING:
    from llmtrain.engine.seam import Comm

POLL_S = 1.0
GRACE_S = 7.0  # to save in: together with the poll less than the 10 s in which no orphan may be left
_SCRIPTS = {"torchrun", "deepspeed", "deepspeed.pt", "accelerate", "accelerate-launch"}
_MODULES = {
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
}


def follow_launchers() -> list[int]:
    """Ends this process within seconds of any launcher above it; returns the launchers' process ids."""
    above = launchers_above(os.getpid())
    if above:
        threading.Thread(target=_follow, args=(above,), name="supervisors", daemon=True).start()
    return [pid for pid, _ in above]


def launchers_above(pid: int) -> list[tuple[int, str]]:
    """The unbroken line of launchers above a process: their ids, with the time each began."""
    found = []
    while (facts := _facts(pid)) is not None:
        pid = facts[0]
        above = _facts(pid)
        if above is None or not _is_launcher(pid):
            break
        found.append((pid, above[1]))
    return found


def end_restarts(comm: Comm, local_rank: int) -> None:
    """Asks torchrun to end too when it would start the ranks again: any status but 0 is a failure to it.

    Called on every rank before one ends. The agent passes the request on, and waits for the ranks it has.
    """
    if not may_restart(os.environ):
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the agent passes on is no second request
    comm.barrier()
    above = launchers_above(os.getpid())
    if above and local_rank == 0:
        os.kill(above[0][0], signal.SIGTERM)


def _follow(above: list[tuple[int, str]]) -> None:
    wait = threading.Event()
    while all((facts := _facts(pid)) is not None and facts[1] == began for pid, began in above):
        wait.wait(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)  # a request to save and stop, as `deepspeed` never passes one on
    wait.wait(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)  # no half-hearted ending that could hang


def _facts(pid: int) -> tuple[int, str] | None:
    """Parent and start time of a process; None when it is gone, or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), fields[19])


def _is_launcher(pid: int) -> bool:
    """Whether a process is a Python that runs one of the launchers; a shell that started one is not."""
    try:
        program, *words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    if not Path(program).name.startswith("python"):
        return False
    for word in words:
        if word == "-m":
            continue
        if not word.startswith("-"):
            return word in _MODULES or Path(word).name in _SCRIPTS
    return False
