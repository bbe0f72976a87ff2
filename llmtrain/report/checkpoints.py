"""`llmtrain checkpoint ls | show | verify | prune`: a run's checkpoints, looked at and put in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtrain.checkpoint import Checkpoint
from llmtrain.checkpoint.load import nothing_at
from llmtrain.checkpoint.manifest import CHECKPOINTS, REPLACED, is_committed, step_folders
from llmtrain.checkpoint.retention import retain
from llmtrain.errors import CheckpointError


@dataclass(frozen=True)
class Standing:
    """One checkpoint folder: good, complete (its hashes were not compared), damaged or unfinished."""

    path: Path
    state: str
    reason: str
    checkpoint: Checkpoint | None

    @property
    def size(self) -> int:
        """Bytes of its files, as its manifest has them."""
        return sum(entry.size for entry in self.checkpoint.manifest.files) if self.checkpoint else 0


def standings(run: Path, verify: bool) -> Iterator[Standing]:
    """Every checkpoint folder of a run, newest first. Without `verify`, no hash is computed."""
    if not run.exists():
        raise nothing_at(str(run))
    if not (run / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run} is no run folder: it has no {CHECKPOINTS}/")
    for path in step_folders(run):
        yield standing(path, verify)


def standing(path: Path, verify: bool) -> Standing:
    """What is known of one checkpoint folder."""
    checkpoint = None
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link, so it is not followed")
        if not is_committed(path):
            return Standing(path, "unfinished", "", None)
        checkpoint = Checkpoint(path)
        if verify:
            checkpoint.verify()
    except (CheckpointError, OSError) as error:
        return Standing(path, "damaged", str(error), checkpoint)
    return Standing(path, "good" if verify else "complete", "", checkpoint)


def listed(run: Path, verify: bool) -> str:
    """A line per checkpoint, newest first."""
    rows = [("STEP", "TOKENS", "SIZE", "STATE", "FOLDER")]
    for found in standings(run, verify):
        manifest = found.checkpoint.manifest if found.checkpoint else None
        state = f"{found.state}: {found.reason}" if found.reason else found.state
        numbers = (f"{manifest.step:,}", f"{manifest.tokens:,}", _size(found.size)) if manifest else ("",) * 3
        rows.append((*numbers, state, found.path.name))
    if len(rows) == 1:
        return f"{run} has no checkpoint yet"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(f"{row[column]:>{widths[column]}}" for column in range(3)), f"{row[4]:<13}", row[3]])
        for row in rows
    ) + ("" if verify else "\n(complete: saved to the end; to compare every hash: --verify)")


def verified(what: Path) -> tuple[str, bool]:
    """A line per checkpoint of a run folder, or for one checkpoint; and whether all of them are good."""
    if not what.exists():
        raise nothing_at(str(what))
    found = list(standings(what, True)) if (what / CHECKPOINTS).is_dir() else [standing(what, True)]
    lines = [f"{one.path}: {one.state}" + (f": {one.reason}" if one.reason else "") for one in found]
    counted = [one for one in found if one.state != "unfinished"]
    if not counted:
        raise CheckpointError(f"{what} has no finished checkpoint")
    return "\n".join(lines), all(one.state == "good" for one in counted)


def pruned(run: Path, keep: int) -> str:
    """Removes what is older than the newest `keep` good checkpoints; what was removed, and what was not."""
    good: list[Standing] = []
    kept = []
    for found in standings(run, True):
        if found.state == "good":
            if found.path.suffix != REPLACED or not good or good[-1].path.stem != found.path.stem:
                good.append(found)
        elif good or found.state == "unfinished":
            continue  # older than a good one: it goes; an unfinished newest one may be a save under way
        else:
            kept.append(f"{found.path.name} stays, though it is damaged: {found.reason}")
        if len(good) == keep:
            break
    if not good:
        raise CheckpointError(f"{run} has no good checkpoint, so none is removed")
    removed = retain(good[0].path, keep, [one.path for one in good])
    lines = [f"{path.name} removed" for path in removed] or ["nothing to remove"]
    return "\n".join([*kept, *(f"{one.path.name} stays" for one in good), *lines])


def shown(what: Path) -> str:
    """What a checkpoint is: its step, where it came from, what made it, its files and its probe."""
    path = what
    if not what.exists():
        raise nothing_at(str(what))
    if (what / CHECKPOINTS).is_dir():
        finished = [folder for folder in step_folders(what) if is_committed(folder)]
        if not finished:
            raise CheckpointError(f"{what} has no finished checkpoint")
        path = finished[0]
    manifest = Checkpoint(path).manifest
    topology, identity, probe = manifest.topology, manifest.identity, manifest.probe
    parameters = sum(math.prod(one.shape) for one in manifest.tensors.values() if "fp32" in one.kinds())
    width = max(len(entry.name) for entry in manifest.files)
    rows = [
        ("checkpoint", f"{path}, format {manifest.version} (hashes: llmtrain checkpoint verify)"),
        ("step", f"{manifest.step:,} ({manifest.tokens:,} tokens)"),
        (
            "from",
            f"{topology.world} ranks, ZeRO-{topology.zero_stage}, {topology.pipeline} stages, "
            f"{topology.precision}",
        ),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        (
            "state",
            f"{parameters:,} trained parameters in {len(manifest.tensors)} tensors; "
            + ", ".join(f"{name} {value:g}" for name, value in manifest.scalars.items()),
        ),
        ("identity", "\n".join(f"{name} {value}" for name, value in identity.model_dump().items())),
        ("data", json.dumps(manifest.data)),
        ("probe", f"loss {probe.loss:.6f} on {len(probe.tokens)} rows" if probe else "none"),
        (
            "files",
            "\n".join(
                f"{entry.name:<{width}}  {_size(entry.size):>9}  {entry.digest}" for entry in manifest.files
            ),
        ),
    ]
    lines = []
    for name, text in rows:
        for index, line in enumerate(text.splitlines()):
            lines.append(f"{name if index == 0 else '':<11}{line}")
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
