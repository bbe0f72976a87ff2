"""A checkpoint's weights as the files that `from_pretrained` reads, streamed tensor by tensor.

transformers keeps some families' weights in another form than the Hub does (Mixtral's experts are one
tensor in memory and a matrix each on disk). `revert_weight_conversion`, which `save_pretrained` uses,
turns them back. It is run first on tensors without values, which gives the name, shape and dtype of
everything that will be written, and shows that turning back a part at a time gives the same as at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint.files import write_file
from llmtrain.checkpoint.reader import CheckpointReader
from llmtrain.checkpoint.tensorfile import TensorFileWriter, TensorSpec
from llmtrain.engine.seam import BUFFER, KINDS
from llmtrain.errors import CheckpointError, LlmtrainError

SHARD_BYTES = 5 * 10**9  # transformers' own default
PUBLIC_FILE = 0o644
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"^(.*?\.\d+\.)")

Group = list[str]  # canonical names that are turned back together


@dataclass(frozen=True)
class Layout:
    """What will be written: groups of canonical names, and the specs that come of each."""

    dtypes: dict[str, torch.dtype]
    groups: list[tuple[Group, list[TensorSpec]]]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.size for _, specs in self.groups for spec in specs)


def model_names(model: Any, reader: CheckpointReader) -> list[str]:
    """The checkpoint's tensors that the model writes: each shared tensor once.

    Raises CheckpointError when the model has tensors that the checkpoint lacks, or the other way round,
    or a shape differs.
    """
    state = model.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(id(tensor), []).append(name)
    saved = set(reader.names)
    chosen, missing = [], []
    for names in shared.values():
        present = [name for name in names if name in saved]
        if present:
            chosen.append(present[0])
        else:
            missing.append(names[0])
    unknown = sorted(saved - state.keys())
    if missing or unknown:
        raise CheckpointError(
            f"the checkpoint does not fit its own config.json: it lacks {missing[:5] or 'nothing'} and has "
            f"{unknown[:5] or 'nothing'} beyond the model"
        )
    for name in chosen:
        if reader.shape(name) != tuple(state[name].shape):
            raise CheckpointError(
                f"{name} has shape {reader.shape(name)} in the checkpoint, {tuple(state[name].shape)} in the "
                "model that config.json describes"
            )
    return chosen


def lay_out(model: Any, reader: CheckpointReader, dtype: torch.dtype) -> Layout:
    """How the checkpoint's tensors become those of the files; nothing is read yet."""
    names = model_names(model, reader)
    dtypes = {name: dtype if _kind(reader, name) == KINDS[0] else _own_dtype(reader, name) for name in names}
    names.sort(key=lambda name: -dtypes[name].itemsize)  # wide ones first, so that all are aligned
    whole = _specs(_turned_back(model, _hollow(names, reader, dtypes)))
    for groups in ([[name] for name in names], _by_layer(names)):
        parts = [_attempt(model, _hollow(group, reader, dtypes)) for group in groups]
        if sorted(spec for part in parts for spec in part or ()) == sorted(whole):
            return Layout(dtypes, [(group, part or []) for group, part in zip(groups, parts, strict=True)])
    return Layout(dtypes, [(names, whole)])


def _kind(reader: CheckpointReader, name: str) -> str:
    return KINDS[0] if KINDS[0] in reader.kinds(name) else BUFFER


def _own_dtype(reader: CheckpointReader, name: str) -> torch.dtype:
    return reader.read(name, BUFFER, 0, 0).dtype


def _hollow(
    names: Group, reader: CheckpointReader, dtypes: dict[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """Tensors with shape and dtype and without values."""
    return {name: torch.empty(reader.shape(name), dtype=dtypes[name], device="meta") for name in names}


def _by_layer(names: Group) -> list[Group]:
    groups: dict[str, Group] = {}
    for name in names:
        match = _LAYER.match(name)
        groups.setdefault(match[1] if match else name, []).append(name)
    return list(groups.values())


def _turned_back(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    result: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return result


def _attempt(model: Any, state: dict[str, torch.Tensor]) -> list[TensorSpec] | None:
    """The specs, or None when these tensors can't be turned back without others."""
    try:
        return _specs(_turned_back(model, state))
    except Exception:  # noqa: BLE001 - whatever the operation misses, a larger group is tried next
        return None


def _specs(state: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]


def write_weights(
    model: Any, reader: CheckpointReader, layout: Layout, folder: Path, shard_bytes: int
) -> list[Path]:
    """Writes the shards and, when there are several, their index. Holds one group in memory at a time."""
    space = os.statvfs(folder)
    needed, free = layout.size + (16 << 20), space.f_bavail * space.f_frsize
    if free < needed:
        raise LlmtrainError(
            f"no space for the export in {folder.parent}: need {needed / 1e9:.2f} GB, "
            f"have {free / 1e9:.2f} GB"
        )
    shards = _shards([spec for _, specs in layout.groups for spec in specs], shard_bytes)
    if len(shards) == 1:
        names = [_SINGLE]
    else:
        names = [f"model-{at + 1:05d}-of-{len(shards):05d}.safetensors" for at in range(len(shards))]
    tensors = _tensors(model, reader, layout)
    for name, specs in zip(names, shards, strict=True):
        with TensorFileWriter(folder / name, specs, {"format": "pt"}, mode=PUBLIC_FILE) as file:
            for spec in specs:
                file.write(spec.key, next(tensors))
            file.finish()
    if len(shards) > 1:
        places = {spec.key: name for name, specs in zip(names, shards, strict=True) for spec in specs}
        index = {"metadata": {"total_size": layout.size}, "weight_map": places}
        write_file(
            folder / _INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode(), PUBLIC_FILE
        )
    return [folder / name for name in names]


def _shards(specs: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    """In order, at most `limit` bytes each (a larger tensor is alone), every tensor aligned."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and (size + spec.size > limit or size % spec.dtype.itemsize):
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.size
    return shards


def _tensors(model: Any, reader: CheckpointReader, layout: Layout) -> Iterator[torch.Tensor]:
    """The values, in the layout's order."""
    for group, specs in layout.groups:
        state = {name: reader.tensor(name, _kind(reader, name)).to(layout.dtypes[name]) for name in group}
        turned = _turned_back(model, state)
        del state
        for spec in specs:
            yield turned.pop(spec.key)
