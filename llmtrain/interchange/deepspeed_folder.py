"""What is in a folder that DeepSpeed saved: which elements of which parameter lie where, and a few numbers.

    FOLDER/latest                                       names the folder of the newest save
    FOLDER/TAG/mp_rank_SS_model_states.pt               per pipeline stage: names, shapes, steps, buffers
               [bf16_]zero_pp_rank_D_mp_rank_SS_optim_states.pt    per rank: fp32 weights and moments
               zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt         instead of those when it is universal

ZeRO-1/2 and BF16_Optimizer flatten each parameter group and cut it; `param_slice_mappings` says what lies on
a rank, and a parameter's fragments follow each other in the order of the ranks. ZeRO-3 cuts each parameter
into equal parts, the last one padded, in the order of `param_shapes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.checkpoint.files import read_plain
from llmtrain.checkpoint.tensorfile import elements
from llmtrain.engine.seam import KINDS
from llmtrain.errors import CheckpointError
from llmtrain.interchange.torchfile import Foreign, Stored, read_torch_file, read_torch_files

MOMENTS = KINDS[1:]
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OPTIMIZER = re.compile(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_0_)?mp_rank_(\d+)_model_states\.pt")
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,400}")


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + length` of a parameter are elements `first …` of a stored tensor."""

    kind: str
    start: int
    length: int
    stored: Stored
    first: int


@dataclass
class Found:
    """A DeepSpeed checkpoint, under DeepSpeed's names."""

    folder: Path
    step: int
    updates: int = 0  # AdamW's count: steps that were not skipped
    world: int = 1
    pipeline: int = 1
    zero_stage: int = 1
    scaler: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fragments: dict[str, list[Fragment]] = field(default_factory=dict)
    buffers: dict[str, Stored] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # what it was trained with, as a run file names it


def read_folder(where: Path) -> Found:
    """The checkpoint that `where` means: a folder with `latest`, or a save's own folder.

    Raises CheckpointError when it is none, or holds what llmtrain has no place for.
    """
    folder = _save_folder(Path(where))
    try:
        return _read_save(folder)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{folder} is not laid out as DeepSpeed 0.19 does it ({reason})") from None


def _read_save(folder: Path) -> Found:
    names = sorted(path.name for path in folder.iterdir())
    if any("expert" in name for name in names):
        raise CheckpointError(f"{folder} has experts split over ranks, which can't be imported")
    models = sorted((int(match[1]), folder / match[0]) for match in map(_MODEL.fullmatch, names) if match)
    if not models:
        raise CheckpointError(f"{folder} has no mp_rank_00_model_states.pt: it is no save of DeepSpeed")
    stages = [
        (stage, _expect(content, dict, path, "a dictionary"))
        for (stage, path), content in zip(models, read_torch_files([path for _, path in models]), strict=True)
    ]
    found = _described(folder, [content for _, content in stages])
    if (folder / "zero").is_dir():
        _read_universal(found)
    else:
        _read_ranks(found, names)
    return found


def _save_folder(where: Path) -> Path:
    if not where.is_dir():
        raise CheckpointError(f"{where} does not exist or is no folder")
    if (where / "zero").is_dir() or any(_MODEL.fullmatch(path.name) for path in where.iterdir()):
        return where
    for pointer in ("latest", "latest_universal"):
        if (where / pointer).exists():
            tag = read_plain(where, pointer, limit=4096).decode(errors="replace").strip()
            if not _TAG.fullmatch(tag) or (where / tag).is_symlink() or not (where / tag).is_dir():
                raise CheckpointError(
                    f"{where / pointer} names {tag[:80]!r}, which is no folder in {where}: it is not followed"
                )
            return where / tag
    raise CheckpointError(f"{where} has neither `latest` nor model states: it is no folder of DeepSpeed's")


def _described(folder: Path, stages: list[dict[str, Any]]) -> Found:
    """Steps, topology, shapes and buffers, from the model states."""
    first = stages[0]
    degrees = first.get("checkpoint_parallel_dimensions") or {}
    split = degrees.get("tp_degree", 1) if degrees else 1 if first.get("module") is None else len(stages)
    if split != 1:
        raise CheckpointError(
            f"{folder} was saved with tensor parallelism ({split}), which can't be imported"
        )
    if any(stage.get("frozen_param_fragments") for stage in stages):
        raise CheckpointError(
            f"{folder} has frozen parameters; llmtrain trains all of them, so it has no place"
        )
    if not isinstance(first.get("global_steps"), int) or first["global_steps"] < 0:
        raise CheckpointError(f"{folder} does not say its step (global_steps)")
    found = Found(folder, first["global_steps"], world=int(first.get("dp_world_size") or 1) * len(stages))
    found.pipeline = len(stages)
    for stage in stages:
        for group in stage.get("param_shapes") or []:
            found.shapes.update({name: tuple(shape) for name, shape in group.items()})
        module = stage.get("module") or {}
        _note_config(found, stage.get("ds_config") or {})
        found.buffers.update(
            {name: module[name] for name in stage.get("buffer_names") or [] if name in module}
        )
    return found


def _read_ranks(found: Found, names: list[str]) -> None:
    """From the optimizer states of all ranks."""
    ranks: dict[int, dict[int, Path]] = {}
    for match in filter(None, map(_OPTIMIZER.fullmatch, names)):
        ranks.setdefault(int(match[3]), {})[int(match[2])] = found.folder / match[0]
    expected = found.world // found.pipeline
    if not ranks:
        raise CheckpointError(
            f"{found.folder} was saved without ZeRO, or without the optimizer: no *_optim_states.pt"
        )
    if sorted(ranks) != list(range(found.pipeline)) or any(
        sorted(column) != list(range(expected)) for column in ranks.values()
    ):
        raise CheckpointError(
            f"{found.folder} is not whole: {found.pipeline} stages of {expected} ranks saved it, and the "
            f"optimizer states of {sum(map(len, ranks.values()))} are there"
        )
    owner: dict[str, int] = {}
    for stage in sorted(ranks):
        reached: dict[str, int] = {}
        for rank in range(expected):
            path = ranks[stage][rank]
            content = read_torch_file(path)
            state = _expect(content.get("optimizer_state_dict"), dict, path, "an optimizer_state_dict")
            _note_scalars(found, state, path)
            pieces = (
                _zero3(found, state, path, rank, expected) if found.zero_stage == 3 else _flat(state, path)
            )
            for name, flat, first, length in pieces:
                if owner.setdefault(name, stage) != stage:
                    continue  # a tied weight: the copy of an earlier stage counts
                start = reached.get(name, 0)
                reached[name] = start + length
                _add(found, name, flat, start, first, length, path)


def _add(
    found: Found, name: str, flat: dict[str, Stored], start: int, first: int, length: int, path: Path
) -> None:
    for kind, stored in flat.items():
        if not 0 <= first <= first + length <= stored.count:
            raise CheckpointError(f"{path}: {kind} of {name} lies outside its tensor")
        if length:
            found.fragments.setdefault(name, []).append(Fragment(kind, start, length, stored, first))


def _note_scalars(found: Found, state: dict[str, Any], path: Path) -> None:
    _note_stage(found, state)
    base = state.get("optimizer_state_dict" if found.zero_stage == 3 else "base_optimizer_state")
    if not isinstance(base, dict):
        raise CheckpointError(f"{path} was saved as an elastic checkpoint, which can't be imported")
    _note_groups(found, base.get("param_groups") or [])
    counts = {_number(group["step"]) for group in base.get("state", {}).values() if "step" in group}
    if len(counts) > 1:
        raise CheckpointError(
            f"{path}: its parameter groups took different numbers of steps: {sorted(counts)}"
        )
    found.updates = int(counts.pop()) if counts else found.step


def _note_stage(found: Found, state: dict[str, Any]) -> None:
    stage, scaler = state.get("zero_stage", 1), state.get("loss_scaler")
    found.zero_stage = int(stage.args[0] if isinstance(stage, Foreign) else stage)
    if isinstance(scaler, Foreign) and isinstance(scaler.state, dict):
        numbers = {key: value for key, value in scaler.state.items() if isinstance(value, (int, float))}
        found.scaler = {key: float(value) for key, value in numbers.items()}


def _note_config(found: Found, config: dict[str, Any]) -> None:
    """Of DeepSpeed's configuration, which may hold secrets too, three facts."""
    enabled = [name for name in ("bf16", "fp16") if (config.get(name) or {}).get("enabled")]
    given = {
        "batch.rows": config.get("train_batch_size"),
        "optimizer.clip": config.get("gradient_clipping"),
        "precision": (enabled or ["fp32"])[0] if config else None,
    }
    found.settings.update({name: value for name, value in given.items() if value is not None})


def _note_groups(found: Found, groups: list[dict[str, Any]]) -> None:
    """Of the optimizer's parameter groups the hyper-parameters; weight decay is off for some of them."""
    for name in ("betas", "eps", "weight_decay"):
        values = [group[name] for group in groups if name in group]
        if values:
            found.settings[f"optimizer.{name}"] = max(values)


def _number(value: Any) -> float:
    return value.value() if isinstance(value, Stored) else float(value)


def _groups(states: Any, weights: Any, path: Path) -> Iterator[tuple[int, dict[str, Stored]]]:
    """Per parameter group its flat tensors: weights and moments."""
    weights = _expect(weights, list, path, "the fp32 weights")
    for index, flat in enumerate(weights):
        moments = states.get(index, {})
        missing = [kind for kind in MOMENTS if not isinstance(moments.get(kind), Stored)]
        if missing:
            raise CheckpointError(
                f"{path} has no {' and '.join(missing)} for parameter group {index}: it was saved before the "
                "first step, or by another optimizer than Adam"
            )
        yield index, {"fp32": flat, **{kind: moments[kind] for kind in MOMENTS}}


def _flat(state: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Stored], int, int]]:
    """ZeRO-1/2 and BF16_Optimizer: (name, flat tensors, first element, length) of what lies on a rank."""
    mappings = _expect(state.get("param_slice_mappings"), list, path, "param_slice_mappings")
    states = state["base_optimizer_state"]["state"]
    for index, flat in _groups(states, state.get("single_partition_of_fp32_groups"), path):
        for name, address in mappings[index].items():
            yield name, flat, int(address.state["start"]), int(address.state["numel"])


def _zero3(
    found: Found, state: dict[str, Any], path: Path, rank: int, dp: int
) -> Iterator[tuple[str, dict[str, Stored], int, int]]:
    """The same of ZeRO-3."""
    shapes = read_torch_file(path.with_name(path.name.replace("optim", "model")))["param_shapes"]
    weights = state.get("fp32_flat_groups")
    if len(shapes) != len(weights or []):
        raise CheckpointError(
            f"{path} lacks parameter groups: {len(weights or [])} of {len(shapes)} are there"
        )
    for index, flat in _groups(state["optimizer_state_dict"]["state"], weights, path):
        first = 0
        for name, shape in shapes[index].items():
            count = elements(shape)
            part = -(-count // dp)
            yield name, flat, first, max(0, min(part, count - rank * part))
            first += part


def _read_universal(found: Found) -> None:
    """From the folder of each parameter."""
    zero = found.folder / "zero"
    folders = sorted(path for path in zero.iterdir() if path.is_dir())
    paths = [
        folder / f"{kind}.pt" for folder in folders for kind in KINDS if (folder / f"{kind}.pt").exists()
    ]
    steps = [folder / "step.pt" for folder in folders if (folder / "step.pt").exists()][:1]
    for path, content in zip(paths, read_torch_files(paths), strict=True):
        stored = content.get("param") if isinstance(content, dict) else content
        name = path.parent.name
        count = elements(found.shapes.get(name, ()))
        if not isinstance(stored, Stored) or not _PARAMETER.fullmatch(name):
            raise CheckpointError(f"{path} does not hold one parameter")
        if name in found.shapes:  # the others are second names of tied weights
            _add(found, name, {path.stem: stored}, 0, 0, count, path)
    state = read_torch_file(zero / "optimizer_state.pt")
    if steps:
        found.updates = int(_number(read_torch_file(steps[0])))
    else:
        states = (state.get("optimizer_state_dict") or {}).get("state") or {}
        counts = [_number(group["step"]) for group in states.values() if "step" in group]
        found.updates = int(counts[0]) if counts else found.step
    _note_stage(found, state)
    _note_groups(found, state.get("param_groups") or [])


def _expect(value: Any, kind: type, path: Path, what: str) -> Any:
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} does not hold {what}, as DeepSpeed 0.19 writes it")
    return value
