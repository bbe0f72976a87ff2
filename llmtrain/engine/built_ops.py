"""DeepSpeed's ops that a run loads and never builds: each is built once, on purpose, by its own command.

DeepSpeed itself would compile one in every rank, minutes long, when the first engine is opened; a killed
build leaves a lock on which the next one waits for ever. What is loaded runs as its user, so nobody else may
have been able to put it there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from llmtrain.engine.build_locks import extension_folder
from llmtrain.errors import EngineError


@dataclass(frozen=True)
class BuiltOp:
    """One op: the libraries it is made of, the later using symbols of the earlier; who builds it, and how."""

    libraries: tuple[str, ...]
    builder: str  # DeepSpeed's class
    build_command: str
    needs: str  # what to install when it can't be built

    @property
    def name(self) -> str:
        """As DeepSpeed calls it."""
        return self.libraries[-1]

    def load(self) -> str:
        """Hands DeepSpeed the op that was built; why that can't be, or an empty string."""
        import ctypes

        from deepspeed.accelerator import get_accelerator
        from deepspeed.git_version_info import accelerator_name, installed_ops
        from deepspeed.ops.op_builder.builder import OpBuilder

        came_along = accelerator_name == get_accelerator()._name  # built with DeepSpeed, by DS_BUILD_…
        for name in self.libraries:
            if name in OpBuilder._loaded_ops or (came_along and installed_ops.get(name)):
                continue
            library = library_of(name)
            missing = f"needs DeepSpeed's {self.name} op, and"
            if not library.is_file():
                return f"{missing} {library} is not there; build it: {self.build_command}"
            why = self._distrust(library)
            if why:
                return f"{missing} {why}"
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
                spec = importlib.util.spec_from_file_location(name, library)
                assert spec and spec.loader, f"{library} has no name that Python can import"
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            except (ImportError, OSError) as error:
                again = f"remove it, and build it again: {self.build_command}"
                return f"{missing} {library} can't be loaded ({error}); {again}"
            OpBuilder._loaded_ops[name] = module
        return ""

    def _distrust(self, library: Path) -> str:
        """Why somebody else could have put this library there, with the fix; or an empty string.

        In a folder with the sticky bit others can't replace what is not theirs.
        """
        for path in filter(Path.exists, [*_folders_down_to(library), library]):
            found = path.stat()
            if found.st_uid not in (0, os.geteuid()):
                whose = f"{path} is neither yours nor root's but user {found.st_uid}'s, so it is not loaded"
                fix = "set TORCH_EXTENSIONS_DIR to a folder of your own, and build it there"
                return f"{whose}: {fix}: {self.build_command}"
            if _open_to_others(found):
                again = f"build it again, closed to them: {self.build_command}"
                return f"others may write to {path}, so it is not loaded: {again}"
        return ""

    def build(self) -> None:
        """Compiles the op for this machine's device, into torch's extension folder, for this user alone."""
        from llmtrain.engine.environment import detect_device

        os.environ.setdefault("DS_ACCELERATOR", detect_device())
        from deepspeed.accelerator import get_accelerator

        builder = get_accelerator().create_op_builder(self.builder)
        absent = type(builder).__name__ == "NotImplementedBuilder"  # on a CPU, for what is CUDA code
        if absent or not builder.is_compatible(verbose=False):
            raise EngineError(f"{self.name} can't be built: {self.needs}")
        os.umask(0o077)
        self._close_to_others()
        where = library_of(self.name).parents[1]
        print(f"building {' and '.join(self.libraries)} into {where}: this takes minutes", flush=True)
        builder.load(verbose=False)
        print(f"built: {library_of(self.name)}")

    def _close_to_others(self) -> None:
        """Makes the folders that the op will be in; what somebody else could have put there is removed.

        Raises EngineError where that can't be.
        """
        libraries = [library_of(name) for name in self.libraries]
        try:
            for library in [library for library in libraries if self._distrust(library)]:
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
            why = next(filter(None, map(self._distrust, libraries)), "")
        except OSError as error:
            fix = "set TORCH_EXTENSIONS_DIR to a folder of your own"
            why = f"{extension_folder()} can't be closed to others ({error}): {fix}"
        if why:
            raise EngineError(why)

    def main(self) -> None:
        """The command: builds, or says why not."""
        try:
            self.build()
        except EngineError as error:
            sys.exit(f"error: {error}")


def library_of(name: str) -> Path:
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


def _open_to_others(found: os.stat_result) -> bool:
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not sticky
