"""Which checkpoints stay: the newest `keep` that are committed, and never fewer than one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from llmtrain.checkpoint.files import sync_folder
from llmtrain.checkpoint.manifest import COMMIT, REPLACED, is_committed, step_folders


def retain(saved: Path, keep: int, good: Sequence[Path] | None = None) -> list[Path]:
    """Removes what is older than the newest `keep` committed checkpoints; returns what it removed.

    `saved` was committed just now (or verified) and is the first that stays. Only committed folders count,
    or only those of `good` when given; older leftovers of saves that never finished go. What is newer stays
    untouched and does not count: it was passed over as damaged when the run resumed, and is replaced when
    the run comes there again.
    """
    assert keep >= 1, "a run keeps at least its newest checkpoint"
    folders = step_folders(saved.parent.parent)
    older = [path for path in folders[folders.index(saved) + 1 :] if not path.is_symlink()]
    committed = [path for path in older if is_committed(path) and path.suffix != REPLACED]
    if good is not None:
        committed = [path for path in older if path in good]
    gone = [path for path in older if path not in committed[: keep - 1]]
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
