"""`llmtrain checkpoint import`: a DeepSpeed folder becomes a checkpoint of a run, which then goes on.

The run file says what a DeepSpeed folder does not: the model, the data and their order, the tokenizer, the
optimizer's settings. Parameters get their Hugging Face names: each name of DeepSpeed ends in exactly one of
them (`module.`, `0.stage.hf.` and other wrappings come before it), or the user gives a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint.agree import Alone
from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.checkpoint.manifest import is_committed, step_folders
from llmtrain.checkpoint.save import save
from llmtrain.checkpoint.tensorfile import elements
from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.engine.seam import BUFFER, KINDS, Slice
from llmtrain.errors import CheckpointError, ConfigError, Problem, nearest
from llmtrain.interchange.deepspeed_folder import Found, read_folder
from llmtrain.interchange.torchfile import Stored
from llmtrain.job import open_job

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Canon:
    """What a model's state consists of: trained tensors, persistent buffers, second names of tied weights."""

    shapes: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]]
    aliases: frozenset[str]


def canon_of(config: Any) -> Canon:
    """The tensors of a transformers config's causal LM. No weight is made."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    kept = model.state_dict(keep_vars=True)
    return Canon(
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in kept},
        frozenset(model.all_tied_weights_keys),
    )


def import_run(where: Path, run: str, overrides: Sequence[str], names: Path | None = None) -> str:
    """Puts the DeepSpeed checkpoint into the run's folder as `checkpoints/step-N`; tells what was done.

    Raises ConfigError for the run file, CheckpointError when the folder is none, is not whole, is not this
    model's, or the run's folder has a checkpoint already. Then nothing is written.
    """
    stages = load_run(run, overrides).config.parallel.pipeline
    table = _table(names)
    found = read_folder(where)
    job = open_job(run, overrides, World(0, stages, 0, stages, "none"))
    there = [path for path in step_folders(job.folder.path) if is_committed(path)]
    if there:
        fix = f"{there[0]} is there already: give a new output_dir, or remove that folder first"
        raise ConfigError(Problem("output_dir", str(job.folder.path), str(run), fix))
    if found.step > job.plan.schedule.steps:
        fix = f"{found.folder} is at step {found.step} already; the schedule must reach beyond it"
        raise ConfigError(Problem("schedule.steps", job.plan.schedule.steps, str(run), fix))
    source = Source(found, canon_of(job.config), table)
    tokens = found.step * job.plan.batch.rows * job.plan.run.data.seq_len
    facts = job.facts(found.step, tokens)
    folder = write(source, job.folder.path, facts)
    return "\n".join(
        [
            f"{folder}: step {found.step} of {found.folder} (ZeRO-{found.zero_stage}, {found.world} ranks, "
            f"{found.pipeline} stages)",
            *_differences(found, job.plan.run.model_dump(mode="json")),
            f"go on with: llmtrain train {' '.join([str(run), *overrides])}",
        ]
    )


def _differences(found: Found, run: Mapping[str, Any]) -> Iterator[str]:
    """What the run will do otherwise than DeepSpeed did."""
    for name, theirs in found.settings.items():
        section, _, key = name.partition(".")
        ours = run[section][key] if key else run[section]
        if ours != theirs:
            yield f"note: {name} was {theirs} under DeepSpeed and is {ours} in the run, which counts"


def write(source: Source, run_folder: Path, facts: CheckpointFacts) -> Path:
    """The checkpoint's folder; `facts` describe the run, their topology becomes that of DeepSpeed."""
    found = source.found
    came_from = {"world": found.world, "pipeline": found.pipeline, "zero_stage": found.zero_stage}
    return save(source, run_folder, replace(facts, topology={**facts.topology, **came_from}))  # type: ignore[arg-type]


def _table(path: Path | None) -> dict[str, str]:
    """The user's {DeepSpeed name: Hugging Face name}."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            Problem("names", str(path), "--names", f"can't be read as JSON ({error})")
        ) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        fix = "must be a JSON object of DeepSpeed's name and the Hugging Face name"
        raise ConfigError(Problem("names", str(path), "--names", fix))
    return content


class Source:
    """A DeepSpeed checkpoint as that part of an engine which `checkpoint.save` asks for."""

    def __init__(self, found: Found, canon: Canon, table: Mapping[str, str] | None = None):
        self.comm = Alone()
        self.found = found
        self._canon = canon
        self._names = _renamed(found, canon, table or {})
        self._buffers = {_ending(theirs, list(canon.buffers)): kept for theirs, kept in found.buffers.items()}
        _check_whole(found, canon, self._names, self._buffers)

    def slices(self) -> Iterator[Slice]:
        """Every fragment; its values are read from the disk only when they are used."""
        for name, theirs in self._names.items():
            for piece in self.found.fragments[theirs]:
                values = piece.stored.part(piece.first, piece.length).float()
                yield Slice(name, piece.kind, self._canon.shapes[name], piece.start, values)
        for name, shape in self._canon.buffers.items():
            kept = self._buffers[name]
            yield Slice(name, BUFFER, shape, 0, kept.part(0, kept.count))

    def scalars(self) -> dict[str, float]:
        """Updates, and the loss scaler's state, which only an fp16 run looks at."""
        kept = {name: self.found.scaler[name] for name in _SCALER_FIELDS if name in self.found.scaler}
        return {"updates": float(self.found.updates), **kept}


def _renamed(found: Found, canon: Canon, table: Mapping[str, str]) -> dict[str, str]:
    """{Hugging Face name: DeepSpeed's name}."""
    names: dict[str, str] = {}
    unknown = []
    for theirs in found.fragments:
        name = table.get(theirs) or _ending(theirs, [*canon.shapes, *canon.aliases])
        if name in canon.aliases:
            continue  # the second copy of a tied weight, on the last stage
        if name not in canon.shapes:
            unknown.append(theirs)
        elif name in names:
            raise CheckpointError(f"{found.folder}: {names[name]} and {theirs} would both be {name}")
        else:
            names[name] = theirs
    if unknown:
        missing = sorted(set(canon.shapes) - set(names))
        hint = (
            nearest(unknown[0], missing) or f"the model's {missing[0]}" if missing else "nothing is missing"
        )
        raise CheckpointError(
            f"{found.folder}: {len(unknown)} parameters have no name of the run's model, the first is "
            f"{unknown[0]} ({hint}); give --names FILE, a JSON object of DeepSpeed's names and the model's"
        )
    return names


def _ending(theirs: str, names: Sequence[str]) -> str:
    """The longest of `names` that `theirs` is or ends in, behind a dot; else an empty string."""
    return max((name for name in names if f".{theirs}".endswith(f".{name}")), key=len, default="")


def _check_whole(found: Found, canon: Canon, names: Mapping[str, str], buffers: Mapping[str, Stored]) -> None:
    missing = sorted(set(canon.shapes) - set(names)) + sorted(set(canon.buffers) - set(buffers))
    if missing:
        raise CheckpointError(
            f"{found.folder} lacks {len(missing)} tensors of the run's model, the first is {missing[0]}"
        )
    for name, theirs in names.items():
        shape, wanted = found.shapes.get(theirs), canon.shapes[name]
        if shape != wanted:
            raise CheckpointError(
                f"{found.folder}: {theirs} has shape {list(shape or ())}, {name} of the run's model "
                f"{list(wanted)}: the run file must describe the model that was saved"
            )
        for kind in KINDS:
            there = sum(piece.length for piece in found.fragments[theirs] if piece.kind == kind)
            if there != elements(wanted):
                raise CheckpointError(
                    f"{found.folder}: {kind} of {theirs} has {there} of {elements(wanted)} elements"
                )
