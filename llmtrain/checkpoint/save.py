"""Saving: every rank its own file, one commit by rename after all have said that theirs is on disk.

A kill at any moment leaves either the checkpoint before or the new one, never a mix: until COMMIT has its
name the folder does not count, and nothing older is removed before.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmtrain import __version__
from llmtrain.checkpoint.agree import on_every_rank, on_rank_0, sentence
from llmtrain.checkpoint.facts import CheckpointFacts, config_text, tokenizer_files
from llmtrain.checkpoint.files import PRIVATE_FOLDER, FileEntry, sync_folder, write_file
from llmtrain.checkpoint.manifest import (
    COMMIT,
    CONFIG,
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
from llmtrain.engine.seam import Engine, Slice
from llmtrain.errors import EngineError

_SPARE = 16 << 20  # bytes for manifest, config and tokenizer, and for what the file system adds
logger = logging.getLogger(__name__)


def save(engine: Engine, run_folder: Path, facts: CheckpointFacts, keep: int = 2) -> Path:
    """Writes `checkpoints/step-N/`, commits it, and keeps the newest `keep` committed checkpoints.

    Every rank calls it. `engine.slices()` is walked several times and must not communicate; one piece of
    one slice at a time is copied to the CPU. Raises the same EngineError on all ranks when any rank failed
    or the disk is full; then the half-written folder is gone and the checkpoints before are untouched.
    """
    comm = engine.comm
    task = f"saving step {facts.step}"
    folder = Path(str(comm.broadcast(str(step_folder(Path(run_folder).absolute(), facts.step)))))
    plans = on_every_rank(comm, task, lambda: _planned(engine))
    on_rank_0(comm, task, lambda: _make_room(folder, plans))
    try:
        entries = on_every_rank(comm, task, lambda: _write_rank(engine, folder).model_dump())
        scalars = engine.scalars()
        on_rank_0(comm, task, lambda: _commit(folder, facts, scalars, plans, entries))
    except EngineError:
        with contextlib.suppress(EngineError):  # without COMMIT what is left is no checkpoint anyway
            on_rank_0(comm, task, lambda: _withdraw(folder))
        raise
    if comm.rank == 0:
        _retain(folder, keep)
    return folder


def _retain(folder: Path, keep: int) -> None:
    try:
        retain(folder, keep)
    except OSError as error:  # the save stands; that is no reason to end a run
        logger.warning("old checkpoints could not be removed: %s", sentence(error))


def _planned(engine: Engine) -> dict[str, Any]:
    """What this rank will write: bytes, shapes, and per slice [name, kind, start, length, dtype]."""
    shapes: dict[str, list[int]] = {}
    slices = []
    size = 0
    for piece in engine.slices():
        if piece.tensor.numel() == 0:
            continue
        shapes[piece.name] = list(piece.shape)
        slices.append([piece.name, piece.kind, piece.start, piece.tensor.numel(), _dtype(piece)])
        size += piece.tensor.numel() * piece.tensor.element_size()
    return {"bytes": size, "shapes": shapes, "slices": slices}


def _dtype(piece: Slice) -> str:
    assert piece.tensor.dtype in DTYPE_NAMES, f"{piece.name} has a dtype without a name: {piece.tensor.dtype}"
    return DTYPE_NAMES[piece.tensor.dtype]


def _tensors(plans: list[dict[str, Any]]) -> dict[str, TensorEntry]:
    """All ranks' slices by tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    slices: dict[str, list[SliceEntry]] = {}
    for rank, plan in enumerate(plans):
        for name, shape in plan["shapes"].items():
            assert shapes.setdefault(name, tuple(shape)) == tuple(shape), f"ranks differ on {name}'s shape"
        for name, kind, start, length, dtype in plan["slices"]:
            slices.setdefault(name, []).append(SliceEntry(kind, start, length, rank_file(rank), dtype))
    return {name: TensorEntry(shape=shapes[name], slices=tuple(slices[name])) for name in sorted(slices)}


def _make_room(folder: Path, plans: list[dict[str, Any]]) -> None:
    """Rank 0: the state is whole, the disk has room for it, and the folder is there and empty."""
    problem = incomplete(_tensors(plans), [rank_file(rank) for rank in range(len(plans))])
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
    sync_folder(folder.parent)
    sync_folder(folder.parent.parent)


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


def _write_rank(engine: Engine, folder: Path) -> FileEntry:
    """This rank's file. Wide dtypes come first, so that every tensor is aligned."""
    path = folder / rank_file(engine.comm.rank)
    if not folder.is_dir():
        raise EngineError(f"{folder} is not there: all ranks must see one shared run folder")
    plan = sorted(_planned(engine)["slices"], key=lambda entry: -DTYPES[entry[4]].itemsize)
    specs = [
        TensorSpec(SliceEntry(kind, start, length, path.name, dtype).key(name), DTYPES[dtype], (length,))
        for name, kind, start, length, dtype in plan
    ]
    with _room_for(sum(spec.size for spec in specs), folder), TensorFileWriter(path, specs) as file:
        for width in sorted({spec.dtype.itemsize for spec in specs}, reverse=True):
            for piece in engine.slices():
                if piece.tensor.numel() and piece.tensor.element_size() == width:
                    file.write(f"{piece.name}|{piece.kind}|{piece.start}", piece.tensor)
        return file.finish()


def _commit(
    folder: Path,
    facts: CheckpointFacts,
    scalars: Mapping[str, float],
    plans: list[dict[str, Any]],
    entries: list[dict[str, Any]],
) -> None:
    """Rank 0: the small files, the manifest, and last the name COMMIT."""
    files = [FileEntry(**entry) for entry in entries]
    with _room_for(_SPARE, folder):
        files.append(write_file(folder / CONFIG, config_text(facts.config).encode()))
        files.append(write_file(folder / RUN, facts.run_yaml.encode()))
        for path in tokenizer_files(facts.tokenizer_folder):
            files.append(write_file(folder / path.name, path.read_bytes()))
        content = manifest_bytes(_manifest(facts, scalars, plans, files))
        write_file(folder / MANIFEST, content)
        pending = folder / (COMMIT + ".part")
        write_file(pending, commit_bytes(content))
        sync_folder(folder)
        pending.rename(folder / COMMIT)
        sync_folder(folder)


def _manifest(
    facts: CheckpointFacts,
    scalars: Mapping[str, float],
    plans: list[dict[str, Any]],
    files: list[FileEntry],
) -> Manifest:
    return Manifest(
        step=facts.step,
        tokens=facts.tokens,
        topology=Topology(**facts.topology),
        identity=facts.identity,
        scalars=dict(scalars),
        versions=_versions(),
        data=dict(facts.data),
        probe=None if facts.probe is None else Probe.model_validate(facts.probe),
        files=tuple(files),
        tensors=_tensors(plans),
    )


def _versions() -> dict[str, str]:
    found = {"llmtrain": __version__}
    for package in ("torch", "transformers", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _withdraw(folder: Path) -> None:
    """Rank 0, after a failure: the folder goes, and one that had stepped aside for it comes back."""
    remove_folder(folder)
    aside = folder.with_name(folder.name + REPLACED)
    if aside.exists():
        aside.rename(folder)
    sync_folder(folder.parent)
