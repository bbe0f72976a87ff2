"""Which files of a model's folder are its weights: what its index names, and no more.

Shards of another save, Mistral's `consolidated.safetensors`, an adapter: what lies beside is not the model's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmtrain.data.pointers import FETCH, POINTER, points
from llmtrain.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BESIDE = ("consolidated*.safetensors", "adapter_model*.safetensors")  # the same model once more, or none
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.safetensors")


def weight_files(folder: Path, source: str) -> list[Path]:
    """The safetensors files that hold the model's weights, by their names.

    Those of the index; without one `model.safetensors`; without that, all but what is known to be something
    else. CheckpointError when there are none, the index is no index, or files are missing.
    """
    if (folder / INDEX).is_file():
        return [folder / name for name in _indexed(folder)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    beside = {path for pattern in BESIDE for path in folder.glob(pattern)}
    found = sorted(set(folder.glob("*.safetensors")) - beside)
    if not found:
        raise CheckpointError(_nothing_to_read(folder, source))
    _refuse_gaps(folder, found)
    return found


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Why a weights file can't be read."""
    if points(path):
        return CheckpointError(f"{path} is a {POINTER}, not the weights: {FETCH}, or with `hf download`")
    return CheckpointError(f"{path} is not a readable safetensors file ({error}); fetch or save it again")


def _indexed(folder: Path) -> list[str]:
    path = folder / INDEX
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        strange = [name for name in names if not _NAME.fullmatch(name)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path} is no index of weights: it has no weight_map; fetch or save it again"
        ) from None
    if strange:
        raise CheckpointError(f"{path} names {strange[0]!r}, which is no file beside it: it is not followed")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weights files that {INDEX} names, the first is "
            f"{missing[0]}; fetch it again, or remove the index if it is another save's"
        )
    return names


def _refuse_gaps(folder: Path, found: list[Path]) -> None:
    """Shards say how many they are, so that a missing one is noticed without an index."""
    for path in found:
        match = _SHARD.fullmatch(path.name)
        if match and len(found) < int(match[1]):
            raise CheckpointError(
                f"{folder} has {len(found)} of {int(match[1])} weights files and no {INDEX}: fetch it again"
            )


def _nothing_to_read(folder: Path, source: str) -> str:
    pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
    if pickled:
        return (
            f"{source} has its weights only as pickle ({pickled[0]}), which can run any code when it is "
            "read; save it as safetensors first (from_pretrained and save_pretrained, where you trust it)"
        )
    return f"{source} has no .safetensors file"
