"""Saving: every rank its own file, one commit by rename after all have said that theirs is on disk.

    begin          all ranks   what each will write; the disk has room for it; the folder is there
    write_rank     each rank   its file, from the engine (or, behind the loop, from its copy: background.py)
    commit         rank 0      the small files, the manifest, COMMIT; then older checkpoints go
    withdraw       rank 0      instead of commit, when any rank failed

A kill at any moment leaves either the checkpoint before or the new one, never a mix: until COMMIT has its
name the folder does not count, and nothing older is removed before.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import __version__
from llmtrain.checkpoint.agree import on_every_rank, on_rank_0, sentence
from llmtrain.checkpoint.facts import CheckpointFacts, config_text
from llmtrain.checkpoint.files import PRIVATE_FOLDER, FileEntry, sync_folder, write_file
from llmtrain.checkpoint.manifest import (
    COMMIT,
    CONFIG,
    GENERATION,
    MANIFEST,
    REPLACED,
    RUN,
    Manifest,
    SliceEntry,
    TensorEntry,
    Topology,
    commit_bytes,
    incomplete,
    is_committed,
    manifest_bytes,
    rank_file,
    step_folder,
)
from llmtrain.checkpoint.probe import Probe
from llmtrain.checkpoint.retention import remove_folder, retain
from llmtrain.checkpoint.tensorfile import DTYPE_NAMES, DTYPES, TensorFileWriter, TensorSpec
from llmtrain.data.tokenizer_files import name_in_checkpoint, tokenizer_files
from llmtrain.engine.seam import Comm, Engine, Slice
from llmtrain.errors import EngineError

if TYPE_CHECKING:
    import torch

_SPARE = 16 << 20  # bytes for manifest, config and tokenizer, and for what the file system adds
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A save that all ranks have agreed on. `plans`: per rank what it will write, the same on all ranks."""

    folder: Path
    facts: CheckpointFacts
    scalars: Mapping[str, float]
    plans: list[dict[str, Any]]

    @property
    def task(self) -> str:
        """What a sentence about its failure begins with."""
        return task_of(self.facts)


def task_of(facts: CheckpointFacts) -> str:
    """What a sentence about a failed save begins with."""
    return f"saving step {facts.step}"


def save(engine: Engine, run_folder: Path, facts: CheckpointFacts, keep: int = 2) -> Path:
    """Writes `checkpoints/step-N/`, commits it, and keeps the newest `keep` committed checkpoints.

    Every rank calls it. `engine.slices()` is walked several times and must not communicate; one piece of
    one slice at a time is copied to the CPU. Raises the same EngineError on all ranks when any rank failed
    or the disk is full; then the half-written folder is gone and the checkpoints before are untouched.
    """
    return complete(engine, begin(engine, run_folder, facts), keep)


def begin(
    engine: Engine, run_folder: Path, facts: CheckpointFacts, plans: list[dict[str, Any]] | None = None
) -> Begun:
    """Every rank calls it. Raises the same EngineError on all: the state is not whole, or has no room.

    `plans`: those of an earlier save of the same engine, which then need not be exchanged once more.
    """
    comm, task = engine.comm, task_of(facts)
    folder = Path(str(comm.broadcast(str(step_folder(Path(run_folder).absolute(), facts.step)))))
    known = plans is not None
    agreed = plans or on_every_rank(comm, task, lambda: _planned(engine))
    on_rank_0(comm, task, lambda: _make_room(folder, agreed, known))
    return Begun(folder, facts, engine.scalars(), agreed)


def complete(engine: Engine, begun: Begun, keep: int, first: Callable[[], object] = lambda: None) -> Path:
    """The rest of a save, before any rank goes on; `first` as in `commit`."""
    comm = engine.comm
    with withdrawn_on_failure(comm, begun):
        entries = on_every_rank(comm, begun.task, lambda: _write_rank(engine, begun).model_dump())
        on_rank_0(comm, begun.task, lambda: commit(begun, entries, keep, first))
    return begun.folder


@contextlib.contextmanager
def withdrawn_on_failure(comm: Comm, begun: Begun) -> Iterator[None]:
    """Every rank enters it; when all raise the same EngineError, nothing is left of the save."""
    try:
        yield
    except EngineError:
        with contextlib.suppress(EngineError):  # without COMMIT what is left is no checkpoint anyway
            on_rank_0(comm, begun.task, lambda: withdraw(begun.folder))
        raise


def _retain(folder: Path, keep: int) -> None:
    try:
        retain(folder, keep)
    except OSError as error:  # the save stands; that is no reason to end a run
        logger.warning("old checkpoints could not be removed: %s", sentence(error))


def _planned(engine: Engine) -> dict[str, Any]:
    """What this rank will write: bytes, shapes, per slice [name, kind, start, length, dtype], and where."""
    shapes: dict[str, list[int]] = {}
    slices = []
    size = 0
    for piece in engine.slices():
        if piece.tensor.numel() == 0:
            continue
        shapes[piece.name] = list(piece.shape)
        slices.append([piece.name, piece.kind, piece.start, piece.tensor.numel(), _dtype(piece)])
        size += piece.tensor.numel() * piece.tensor.element_size()
    return {"bytes": size, "shapes": shapes, "slices": slices, "host": socket.gethostname()}


def _dtype(piece: Slice) -> str:
    assert piece.tensor.dtype in DTYPE_NAMES, f"{piece.name} has a dtype without a name: {piece.tensor.dtype}"
    return DTYPE_NAMES[piece.tensor.dtype]


def _tensors(plans: list[dict[str, Any]]) -> dict[str, TensorEntry]:
    """All ranks' slices by tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    slices: dict[str, list[SliceEntry]] = {}
    for rank, plan in enumerate(plans):
        for name, shape in plan["shapes"].items():
            known = shapes.setdefault(name, tuple(shape))
            assert known == tuple(shape), f"ranks differ on {name}'s shape"
        for name, kind, start, length, dtype in plan["slices"]:
            slices.setdefault(name, []).append(SliceEntry(kind, start, length, rank_file(rank), dtype))
    return {name: TensorEntry(shape=shapes[name], slices=tuple(slices[name])) for name in sorted(slices)}


def _make_room(folder: Path, plans: list[dict[str, Any]], known: bool) -> None:
    """Rank 0: the state is whole (or `known` to be), the disk has room for it, an empty folder is there."""
    problem = not known and incomplete(_tensors(plans), [rank_file(rank) for rank in range(len(plans))])
    if problem:
        raise EngineError(f"the engine's state is not whole: {problem}")
    folder.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    if not is_committed(folder) and folder.exists():
        remove_folder(folder)
    values = sum(plan["bytes"] for plan in plans)
    needed = values + values // 50 + _SPARE
    free = _free(folder.parent)
    if free < needed:
        raise EngineError(_no_space(folder.parent, needed, free))
    aside = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        remove_folder(aside)
        folder.rename(aside)
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise


def _free(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def _no_space(folder: Path, needed: int, free: int, quota: bool = False) -> str:
    return (
        f"{'the disk quota is used up' if quota else 'no space'} in {folder}: need {_size(needed)}, have "
        f"{_size(free)}; free some, or lower checkpoint.keep (the checkpoints before this one are untouched)"
    )


@contextlib.contextmanager
def _room_for(needed: int, folder: Path) -> Iterator[None]:
    """Turns a full disk into the sentence that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        quota = error.errno == errno.EDQUOT
        raise EngineError(_no_space(folder, needed, _free(folder), quota)) from error


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def file_specs(plan: Mapping[str, Any], rank: int) -> list[TensorSpec]:
    """The tensors of a rank's file in their order: wide dtypes first, so that every one is aligned."""
    slices = sorted(plan["slices"], key=lambda entry: -DTYPES[entry[4]].itemsize)
    return [
        TensorSpec(
            SliceEntry(kind, start, length, rank_file(rank), dtype).key(name), DTYPES[dtype], (length,)
        )
        for name, kind, start, length, dtype in slices
    ]


def in_file_order(engine: Engine, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """Key and tensor of each of this rank's slices, as `file_specs` has them."""
    for width in sorted({spec.dtype.itemsize for spec in specs}, reverse=True):
        for piece in engine.slices():
            if piece.tensor.numel() and piece.tensor.element_size() == width:
                yield f"{piece.name}|{piece.kind}|{piece.start}", piece.values()


@contextlib.contextmanager
def place_for(begun: Begun, rank: int, size: int) -> Iterator[Path]:
    """Where a rank's file of `size` bytes goes; a full disk or a folder of another disk gets its sentence."""
    if not begun.folder.is_dir():
        raise EngineError(f"{begun.folder} is not there: all ranks must see one shared run folder")
    with _room_for(size, begun.folder):
        yield begun.folder / rank_file(rank)


def _write_rank(engine: Engine, begun: Begun) -> FileEntry:
    """This rank's file, straight from the engine."""
    rank = engine.comm.rank
    specs = file_specs(begun.plans[rank], rank)
    with place_for(begun, rank, begun.plans[rank]["bytes"]) as path, TensorFileWriter(path, specs) as file:
        for key, tensor in in_file_order(engine, specs):
            file.write(key, tensor)
        return file.finish()


def commit(
    begun: Begun, entries: list[dict[str, Any]], keep: int, first: Callable[[], object] = lambda: None
) -> None:
    """Rank 0, when every rank's file is on disk: the small files, the manifest, and last the name COMMIT.

    `first` is done before; when it raises, nothing is committed.
    """
    first()
    folder, facts = begun.folder, begun.facts
    files = [FileEntry(**entry) for entry in entries]
    with _room_for(_SPARE, folder):
        files.append(write_file(folder / CONFIG, config_text(facts.config).encode()))
        if facts.generation:
            files.append(write_file(folder / GENERATION, config_text(facts.generation).encode()))
        files.append(write_file(folder / RUN, facts.run_yaml.encode()))
        for path in tokenizer_files(facts.tokenizer_folder):
            files.append(write_file(folder / name_in_checkpoint(path), path.read_bytes()))
        content = manifest_bytes(_manifest(begun, files))
        write_file(folder / MANIFEST, content)
        pending = folder / (COMMIT + ".part")
        write_file(pending, commit_bytes(content))
        sync_folder(folder)
        pending.rename(folder / COMMIT)
        for place in (folder, folder.parent, folder.parent.parent):
            sync_folder(place)  # all three names may be new
    _retain(folder, keep)


def _manifest(begun: Begun, files: list[FileEntry]) -> Manifest:
    facts = begun.facts
    return Manifest(
        step=facts.step,
        tokens=facts.tokens,
        topology=Topology(**facts.topology),
        identity=facts.identity,
        scalars=dict(begun.scalars),
        versions=_versions(),
        data=dict(facts.data),
        probe=None if facts.probe is None else Probe.model_validate(facts.probe),
        files=tuple(files),
        tensors=_tensors(begun.plans),
    )


def _versions() -> dict[str, str]:
    found = {"llmtrain": __version__}
    for package in ("torch", "transformers", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def withdraw(folder: Path) -> None:
    """Rank 0, after a failure: the folder goes, and one that had stepped aside for it comes back."""
    remove_folder(folder)
    aside = folder.with_name(folder.name + REPLACED)
    if aside.exists():
        aside.rename(folder)
    sync_folder(folder.parent)
