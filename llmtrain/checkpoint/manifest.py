"""What a checkpoint says of itself, and where its files are.

    RUN/checkpoints/step-00000200/
        rank-00000.safetensors …   one file per rank that saved: its slices of the canonical tensors
        config.json                the transformers model
        generation_config.json     where generation by it stops, and how it samples
        tokenizer.json …           the tokenizer's files
        run.yaml                   the run as it was given
        manifest.json              this file's `Manifest`
        COMMIT                     the manifest's sha256, written last: without it the folder is no checkpoint

`sha256sum -c COMMIT` checks the manifest by hand. Names say nothing of the topology: the manifest lists for
every tensor which elements of it lie in which file, so any other topology reads the ranges it needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from llmtrain.checkpoint.files import FileEntry, read_plain
from llmtrain.checkpoint.probe import Probe
from llmtrain.config.schema import Section
from llmtrain.engine.seam import BUFFER, KINDS
from llmtrain.errors import CheckpointError

FORMAT: Literal["llmtrain-checkpoint"] = "llmtrain-checkpoint"
VERSION = 2  # 1 had sha256 for every file; it is read, no longer written
CHECKPOINTS = "checkpoints"
COMMIT = "COMMIT"
MANIFEST = "manifest.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
RUN = "run.yaml"
REPLACED = ".old"  # a committed step that is being saved once more steps aside under this suffix
_STEP = re.compile(r"step-(\d{8,12})(\.old)?")
_COMMIT = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")


def step_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is."""
    return run_folder / CHECKPOINTS / f"step-{step:08d}"


def step_folders(run_folder: Path) -> list[Path]:
    """Every checkpoint folder of a run, finished or not, newest first."""
    folder = run_folder / CHECKPOINTS
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and (path.is_symlink() or path.is_dir()):
            found.append(((int(match[1]), match[2] is None), path))
    return [path for _, path in sorted(found, reverse=True)]


def is_committed(folder: Path) -> bool:
    """Whether a save into this folder was finished, whatever became of it since."""
    path = folder / COMMIT
    return path.is_symlink() or path.exists()


def rank_file(rank: int) -> str:
    """The file that rank `rank` writes."""
    return f"rank-{rank:05d}.safetensors"


class SliceEntry(NamedTuple):
    """Elements `start … start + length` of a flattened tensor and the file that holds them."""

    kind: str
    start: int
    length: int
    file: str
    dtype: str  # as safetensors spells it

    def key(self, name: str) -> str:
        """The slice's key in its file."""
        return f"{name}|{self.kind}|{self.start}"


class TensorEntry(Section):
    """One canonical tensor: its whole shape and all its slices."""

    shape: tuple[int, ...]
    slices: tuple[SliceEntry, ...]

    def kinds(self) -> list[str]:
        """What is kept of it, in a fixed order."""
        found = {piece.kind for piece in self.slices}
        return [kind for kind in (*KINDS, BUFFER) if kind in found] + sorted(found - {*KINDS, BUFFER})


class Topology(Section):
    """Where the checkpoint came from. Any other topology may load it."""

    world: int = 1
    pipeline: int = 1
    zero_stage: int = 0
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"


class Identity(Section):
    """What makes a run the run it is: resuming with another value is refused."""

    dataset: str
    model: str  # sha256 of the model's config, without what is not the model
    tokenizer: str  # sha256 of its files
    vocab_size: int
    seq_len: int
    rows: int
    seed: int
    optimizer: str
    precision: str


class Manifest(Section):
    """Everything about a checkpoint but its values."""

    format: Literal["llmtrain-checkpoint"] = FORMAT
    version: int = VERSION
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    topology: Topology
    identity: Identity
    scalars: dict[str, float]
    versions: dict[str, str]
    data: dict[str, Any]
    probe: Probe | None
    files: tuple[FileEntry, ...]
    tensors: dict[str, TensorEntry]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        names = [entry.name for entry in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        if {COMMIT, MANIFEST} & set(names):
            raise ValueError("the manifest lists itself")
        problem = incomplete(self.tensors, set(names))
        if problem:
            raise ValueError(problem)
        return self


def incomplete(tensors: dict[str, TensorEntry], files: Iterable[str]) -> str:
    """Why these slices are no complete state, or an empty string.

    Every element of every tensor is there exactly once per kind; a trained tensor has its weights, and
    either all moments that the others have or (frozen) none.
    """
    known = set(files)
    moments = {kind for tensor in tensors.values() for kind in tensor.kinds()} - {KINDS[0], BUFFER}
    for name, tensor in tensors.items():
        kinds = set(tensor.kinds())
        if not kinds & {KINDS[0], BUFFER}:
            return f"{name} has no values, only {sorted(kinds)}"
        if kinds & moments and not moments <= kinds:
            return f"{name} lacks {sorted(moments - kinds)}"
        for kind in sorted(kinds):
            problem = _gap(tensor, kind)
            if problem:
                return f"{name} ({kind}): {problem}"
        for piece in tensor.slices:
            if piece.file not in known:
                return f"{name} lies in {piece.file}, which is not listed"
    return ""


def _gap(tensor: TensorEntry, kind: str) -> str:
    total = 1
    for extent in tensor.shape:
        total *= extent
    reached = 0
    pieces = sorted((piece for piece in tensor.slices if piece.kind == kind), key=lambda piece: piece.start)
    if len({piece.dtype for piece in pieces}) > 1:
        return "its slices differ in dtype"
    for piece in pieces:
        if piece.start != reached or piece.length < 0:
            what = "missing" if piece.start > reached else "there twice"
            return f"elements from {min(reached, piece.start)} on are {what}"
        reached += piece.length
    return "" if reached == total else f"{reached} elements for a shape of {total}"


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    return (json.dumps(manifest.model_dump(), separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def commit_bytes(manifest: bytes) -> bytes:
    """The content of COMMIT, for the content of manifest.json."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest that COMMIT vouches for.

    Raises CheckpointError, naming the file, when the folder is no finished checkpoint, one of the two
    files is damaged, the format is another version's, or the folder's name is that of another step (a
    checkpoint may be copied, but under a step's name it counts as that step).
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist or is no folder")
    if not is_committed(folder):
        raise CheckpointError(f"{folder} is no finished checkpoint: it has no {COMMIT}")
    commit = _COMMIT.fullmatch(read_plain(folder, COMMIT, limit=4096))
    if not commit:
        raise CheckpointError(f"{folder / COMMIT} is damaged: it is not the line that a save writes")
    path = folder / MANIFEST
    text = read_plain(folder, MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != commit[1]:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {COMMIT}")
    manifest, named = _parsed(path, text), _STEP.fullmatch(folder.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointError(
            f"{path} is of step {manifest.step}, its folder's name says step {int(named[1])}: one of them is "
            "another checkpoint's"
        )
    return manifest


def _parsed(path: Path, text: bytes) -> Manifest:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a {FORMAT}")
    if content.get("version") not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path} has format version {content.get('version')!r}, this llmtrain reads 1 to {VERSION}: "
            "use the llmtrain that wrote it"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(f"{path} is not valid at {where}: {first['msg']}") from None
