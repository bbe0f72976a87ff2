"""Which checkpoints stay: the newest `keep` that are committed, and never fewer than one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmtrain.checkpoint.files import sync_folder
from llmtrain.checkpoint.manifest import COMMIT, is_committed, step_folders


def retain(run_folder: Path, keep: int) -> list[Path]:
    """Removes what `keep` leaves out and leftovers of saves that never finished; returns what it removed.

    Only committed checkpoints count. A folder without COMMIT goes only when it is older than the newest
    committed one: a newer one may be a save that is going on. Links are left alone.
    """
    assert keep >= 1, "a run keeps at least its newest checkpoint"
    folders = [path for path in step_folders(run_folder) if not path.is_symlink()]
    committed = [path for path in folders if is_committed(path)]
    if not committed:
        return []
    newest = folders.index(committed[0])
    kept = {*folders[:newest], *committed[:keep]}
    gone = [path for path in folders if path not in kept]
    for path in gone:
        remove_folder(path)
    return gone


def remove_folder(folder: Path) -> None:
    """Removes a checkpoint; COMMIT goes first, so that a kill in between leaves none that looks whole."""
    if not folder.exists():
        return
    commit = folder / COMMIT
    if is_committed(folder):
        os.unlink(commit)
        sync_folder(folder)
    shutil.rmtree(folder)
