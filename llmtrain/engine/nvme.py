"""Optimizer state on an NVMe disk: DeepSpeed's async_io op, and a folder of the run's own.

    python -m llmtrain.engine.nvme       builds the op, once; needs a C++ compiler, ninja and libaio's headers

A run loads what was built and never builds: DeepSpeed itself would compile it in every rank, minutes long,
when the first engine is opened. What it loads runs as its user, so nobody else may have been able to put it
there. And DeepSpeed names its files by rank alone, so that two runs on one disk would write into each other's
state; each run gets a folder there, closed to others, which it removes when it ends.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.engine.build_locks import extension_folder
from llmtrain.engine.seam import Comm
from llmtrain.errors import ConfigError, EngineError, Problem
from llmtrain.plan.plan import Plan

BUILD = "python -m llmtrain.engine.nvme"
_OPS = ("pin_memory", "async_io")  # in this order: the second uses symbols of the first
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
    import ctypes

    from deepspeed.ops.op_builder.builder import OpBuilder

    for name in _OPS:
        if name in OpBuilder._loaded_ops:
            continue
        library = _library(name)
        if not library.is_file():
            return f"needs DeepSpeed's async_io op, and {library} is not there; build it: {BUILD}"
        why = _distrust(library)
        if why:
            return f"needs DeepSpeed's async_io op, and {why}"
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            spec = importlib.util.spec_from_file_location(name, library)
            if spec is None or spec.loader is None:
                raise ImportError("it has no name that Python can import")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except (ImportError, OSError) as error:
            again = f"remove it, and build it again: {BUILD}"
            return f"needs DeepSpeed's async_io op, and {library} can't be loaded ({error}); {again}"
        OpBuilder._loaded_ops[name] = module
    return ""


def _library(name: str) -> Path:
    """Where torch puts an extension of this name."""
    import torch

    folder = extension_folder()
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
        cuda = torch.version.cuda
        folder /= f"{python}_{'cu' + cuda.replace('.', '') if cuda else 'cpu'}"
    return folder / name / f"{name}.so"


def _folders_down_to(library: Path) -> list[Path]:
    """torch's extension folder, and those below it that the library is in."""
    return [path for path in reversed(library.parents) if path.is_relative_to(extension_folder())]


def _distrust(library: Path) -> str:
    """Why somebody else could have put this library there, with the fix; or an empty string.

    In a folder with the sticky bit others can't replace what is not theirs.
    """
    for path in filter(Path.exists, [*_folders_down_to(library), library]):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()):
            whose = f"{path} is neither yours nor root's but user {found.st_uid}'s, so it is not loaded"
            return f"{whose}: set TORCH_EXTENSIONS_DIR to a folder of your own, and build it there: {BUILD}"
        if _open_to_others(found):
            return f"others may write to {path}, so it is not loaded: build it again, closed to them: {BUILD}"
    return ""


def _open_to_others(found: os.stat_result) -> bool:
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not sticky


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


def build() -> None:
    """Compiles the op for the device of this machine, into torch's extension folder, for this user alone."""
    from llmtrain.engine.environment import detect_device

    os.environ.setdefault("DS_ACCELERATOR", detect_device())
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if not builder.is_compatible(verbose=False):
        raise EngineError(
            "async_io can't be built: install a C++ compiler and libaio's headers (Debian and Ubuntu: "
            "apt-get install g++ libaio-dev; Fedora: dnf install gcc-c++ libaio-devel)"
        )
    os.umask(0o077)
    _close_to_others()
    print(
        f"building {' and '.join(_OPS)} into {_library(_OPS[-1]).parents[1]}: this takes minutes", flush=True
    )
    builder.load(verbose=False)
    print(f"built: {_library('async_io')}")


def _close_to_others() -> None:
    """Makes the folders that the op will be in; what somebody else could have put there is removed.

    Raises EngineError where that can't be.
    """
    libraries = [_library(name) for name in _OPS]
    try:
        for library in [library for library in libraries if _distrust(library)]:
            if library.parent.exists():
                shutil.rmtree(library.parent)
        extension_folder().mkdir(0o700, parents=True, exist_ok=True)
        for library in libraries:
            for folder in _folders_down_to(library):
                folder.mkdir(0o700, exist_ok=True)
                found = folder.stat()
                if _open_to_others(found):
                    folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
            library.parent.chmod(0o700)
        why = next(filter(None, map(_distrust, libraries)), "")
    except OSError as error:
        fix = "set TORCH_EXTENSIONS_DIR to a folder of your own"
        why = f"{extension_folder()} can't be closed to others ({error}): {fix}"
    if why:
        raise EngineError(why)


if __name__ == "__main__":
    try:
        build()
    except EngineError as error:
        sys.exit(f"error: {error}")
