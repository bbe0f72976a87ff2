"""Loading: the newest checkpoint that is whole, verified before a value of it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from llmtrain.checkpoint.agree import Alone, failure_of, on_rank_0
from llmtrain.checkpoint.facts import CheckpointFacts, check_matches
from llmtrain.checkpoint.files import check_file, read_plain
from llmtrain.checkpoint.manifest import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    RUN,
    Manifest,
    is_committed,
    read_manifest,
    step_folders,
)
from llmtrain.checkpoint.reader import CheckpointReader
from llmtrain.config.hub_names import SHOWN, no_such_path
from llmtrain.engine.seam import Comm
from llmtrain.errors import CheckpointError

_HASHERS = 4  # threads; the hashes release the interpreter lock


class Checkpoint:
    """One committed checkpoint. Opening it reads COMMIT and the manifest, and nothing else."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)

    @property
    def step(self) -> int:
        """Optimizer steps behind it."""
        return self.manifest.step

    @property
    def scalars(self) -> dict[str, float]:
        """What `Engine.load` takes beside the reader."""
        return dict(self.manifest.scalars)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformers model's config."""
        content: dict[str, Any] = json.loads(read_plain(self.path, CONFIG))
        return content

    @property
    def run_yaml(self) -> str:
        """The run file as it was given."""
        return read_plain(self.path, RUN).decode()

    def verify(self, comm: Comm | None = None) -> None:
        """Raises CheckpointError, naming the file, unless every file has its size and hash.

        With `comm` each rank hashes its share and all ranks raise alike.
        """
        comm = comm or Alone()
        answers = comm.gather(failure_of(lambda: self._verify_share(comm)))
        for answer in answers:
            if answer:
                raise CheckpointError(str(answer))

    def _verify_share(self, comm: Comm) -> None:
        entries = self.manifest.files
        listed = {entry.name for entry in entries}
        for path in self.path.glob("rank-*.safetensors"):
            if path.name not in listed:
                raise CheckpointError(f"{path} is not in the manifest: it is of another checkpoint")
        for entry in entries:
            check_file(self.path, entry, hashed=False)
        share = entries[comm.rank :: comm.size]  # its own file first: what it hashes now it will read next
        with ThreadPoolExecutor(_HASHERS, thread_name_prefix="verify") as pool:
            for done in [pool.submit(check_file, self.path, entry) for entry in share]:
                done.result()

    def check_matches(self, facts: CheckpointFacts) -> None:
        """Raises a CheckpointError that names every field in which `facts` is another run."""
        check_matches(self.path, self.manifest.identity, self.config, facts)

    def reader(self) -> CheckpointReader:
        """Where an engine of any topology gets its state from."""
        return CheckpointReader(self.path, self.manifest)


def newest(
    run_folder: Path,
    on_reject: Callable[[Path, str], None] | None = None,
    comm: Comm | None = None,
) -> Checkpoint | None:
    """The newest committed checkpoint of a run that verifies, or None when none was ever committed.

    Each folder passed over is reported to `on_reject(path, reason)`. Given `comm`, every rank calls it,
    the ranks share the hashing, and all return the same. Raises CheckpointError when checkpoints are
    there and every one is damaged: a run never starts over in silence.
    """
    comm = comm or Alone()
    names = on_rank_0(
        comm,
        "looking for checkpoints",
        lambda: [str(path) for path in step_folders(Path(run_folder).absolute())],
    )
    refused = []
    for path in map(Path, names):
        reason, checkpoint = _verified(path, comm)
        if checkpoint is not None:
            return checkpoint
        if on_reject:
            on_reject(path, reason)
        if is_committed(path):
            refused.append(f"{path.name}: {reason}")
    if refused:
        raise CheckpointError(
            f"no checkpoint in {Path(run_folder)} can be used, and a run does not silently start over:\n  "
            + "\n  ".join(refused)
            + "\nRestore one from a copy, or give the run a new output_dir to start at step 0"
        )
    return None


def passed_over(path: Path, reason: str, found: Checkpoint | None) -> str:
    """What to tell of a folder that `newest` passed over, and what was taken instead."""
    instead = f"step {found.step} ({found.path.name})" if found else "no other"
    if is_committed(path):
        return f"{path.name} is damaged and not used: {reason}; {instead} is used instead"
    return f"{path.name} is left over from a save that never finished, and not used"


def open_checkpoint(what: Path, on_reject: Callable[[Path, str], None] | None = None) -> Checkpoint:
    """The verified checkpoint that WHAT means: a run folder's newest, or this checkpoint folder.

    Raises CheckpointError when there is none, or it is damaged.
    """
    what = Path(what).expanduser()
    if not what.exists():
        raise nothing_at(str(what))
    if (what / CHECKPOINTS).is_dir():
        found = newest(what, on_reject)
        if found is None:
            raise CheckpointError(f"{what} has no finished checkpoint yet: train it further first")
        return found
    if not is_committed(what) and what.is_dir() and not (what / MANIFEST).exists():
        raise CheckpointError(f"{what} is neither a run folder nor a checkpoint: it has no checkpoints/")
    checkpoint = Checkpoint(what)
    checkpoint.verify()
    return checkpoint


def nothing_at(what: str) -> CheckpointError:
    """The answer to a path where nothing lies: what lies near it, and the runs that are there."""
    runs = sorted({path.parent.as_posix() for path in Path().glob(f"*/*/{CHECKPOINTS}")})
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    here = f"; runs here: {', '.join(runs[:SHOWN])}{more}" if runs else ""
    return CheckpointError(f"{what} does not exist: {no_such_path(what)}{here}")


def _verified(path: Path, comm: Comm) -> tuple[str, Checkpoint | None]:
    """The same answer on all ranks: the checkpoint, or why it is passed over."""
    found: list[Checkpoint] = []

    def opened() -> None:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link, so it is not followed")
        found.append(Checkpoint(path))

    for answer in comm.gather(failure_of(opened)):
        if answer:
            return str(answer), None
    try:
        found[0].verify(comm)
    except CheckpointError as error:
        return str(error), None
    return "", found[0]
