"""Optimizer state on an NVMe disk: DeepSpeed's async_io op, and a folder of the run's own.

    python -m llmtrain.engine.nvme       builds the op, once; needs a C++ compiler, ninja and libaio's headers

DeepSpeed names its files by rank alone, so that two runs on one disk would write into each other's state;
each run gets a folder there, closed to others, which it removes when it ends.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
import stat
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.engine.built_ops import BuiltOp
from llmtrain.engine.seam import Comm
from llmtrain.errors import ConfigError, Problem
from llmtrain.plan.plan import Plan

BUILD = "python -m llmtrain.engine.nvme"
ASYNC_IO = BuiltOp(
    ("pin_memory", "async_io"),
    "AsyncIOBuilder",
    BUILD,
    "install a C++ compiler and libaio's headers (Debian and Ubuntu: apt-get install g++ libaio-dev; "
    "Fedora: dnf install gcc-c++ libaio-devel)",
)
_PARTS = ("offload_optimizer", "offload_param")


def deepspeed_config(plan: Plan, comm: Comm) -> dict[str, Any]:
    """The dict for DeepSpeed, the run's own folder in it for what goes to NVMe.

    Raises the same ConfigError on every rank when a rank lacks the op or can't write where it should.
    """
    config = copy.deepcopy(dict(plan.deepspeed))
    for part, folder in _folders(plan).items():
        disk = config["zero_optimization"][part]["nvme_path"]
        checks = (
            ("nvme_path", disk, partial(_unwritable, disk)),
            ("device", "nvme", load_op),
            ("nvme_path", disk, partial(_claim, folder)),
        )
        for name, value, check in checks:
            field = f"zero_optimization.{part}.{name}"
            told = [str(why) for why in comm.gather(check()) if why]
            if told:
                raise ConfigError(Problem(field, value, plan.origins[f"ds.{field}"], told[0]))
        config["zero_optimization"][part]["nvme_path"] = str(folder)
    return config


def _folders(plan: Plan) -> dict[str, Path]:
    """The run's own folder for each part that goes to NVMe; the same when the run is started again."""
    run = Path(plan.run.folder).absolute()
    own = f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:12]}"
    offloads = {part: plan.deepspeed["zero_optimization"].get(part) or {} for part in _PARTS}
    return {
        part: Path(offload["nvme_path"], own)
        for part, offload in offloads.items()
        if offload.get("device") == "nvme"
    }


def load_op() -> str:
    """Hands DeepSpeed the op that was built; why that can't be, or an empty string."""
    return ASYNC_IO.load()


def _claim(folder: Path) -> str:
    """Makes the run's own folder, closed to others: DeepSpeed leaves what it makes below it to the umask.

    Why that can't be, or an empty string.
    """
    try:
        folder.mkdir(0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return f"{folder} is a link or another user's, so no weights are written there; remove it"
        folder.chmod(0o700)
    except OSError as error:
        return f"{folder} can't be made a folder of this user alone ({error.strerror}); remove it"
    return ""


def _unwritable(disk: str) -> str:
    if not Path(disk).is_dir():
        return "there is no such folder; name one on an NVMe disk of every machine"
    return "" if os.access(disk, os.W_OK | os.X_OK) else "can't be written to; name a folder that can"


def remove(plan: Plan, rank: int) -> None:
    """Takes away what this rank has on NVMe, and each folder of the run with its last file."""
    for folder in set(_folders(plan).values()):
        for mine in folder.glob(f"zero_stage_3/*/rank{rank}"):
            shutil.rmtree(mine, ignore_errors=True)
            for parent in list(mine.parents)[:2]:
                with contextlib.suppress(OSError):  # another rank's files are still there
                    parent.rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()


if __name__ == "__main__":
    ASYNC_IO.main()
