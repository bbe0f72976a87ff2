"""Locks of DeepSpeed ops that were being compiled: a killed build leaves one, and the next waits for ever.

llmtrain builds nothing on its default path; a run that uses an op built by hand may hang on such a lock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def extension_folder() -> Path:
    """Where torch keeps the extensions that it has compiled; a user need not have a home."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", os.path.join(cache, "torch_extensions")))


def build_locks() -> list[tuple[Path, float]]:
    """Each lock and its age in seconds."""
    folder = extension_folder()
    found = []
    for lock in [*folder.glob("*/lock"), *folder.glob("*/*/lock")]:
        try:
            found.append((lock, time.time() - lock.stat().st_mtime))
        except OSError:
            continue  # the build has just ended
    return found


def lock_warnings() -> list[str]:
    """A sentence for each lock."""
    return [
        f"{lock} is {age / 60:.0f} min old; what builds or loads this op waits for it. "
        f"If no build is running, remove it: rm {lock}"
        for lock, age in build_locks()
    ]
