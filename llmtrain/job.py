"""One rank's part of a run, before its engine is opened: what it trains on, with whom, and from where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.config.world import World
from llmtrain.data.batches import Batches
from llmtrain.data.packed import PackedRows
from llmtrain.errors import CheckpointError, EngineError
from llmtrain.launch import likely_device
from llmtrain.plan.begun import another_run, begun, differences, has_begun
from llmtrain.plan.compute import flops_per_token, peak_flops
from llmtrain.plan.model_shape import shape_of
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.plan.prepared import PreparedRun, prepare
from llmtrain.report.environment import device_name, source_digest, versions
from llmtrain.report.run_folder import RunFolder, resolved_yaml
from llmtrain.report.run_log import Speed
from llmtrain.report.tensorboard import check_installed

if TYPE_CHECKING:
    from llmtrain.checkpoint import Checkpoint, CheckpointFacts, Probe
    from llmtrain.engine.seam import Comm

SLOW_READ = 50e6  # bytes/s of all ranks together
# Variables that change what the kernels compute.
NUMERIC_ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


@dataclass(frozen=True)
class Job:
    """One rank's part of a run, all that is known before its engine is opened."""

    plan: Plan
    batches: Batches
    evaluation: PackedRows | None
    config: Any  # the transformers model's configuration
    folder: RunFolder
    world: World
    generation: Mapping[str, Any] = field(default_factory=dict)  # the model's generation_config.json
    note: str = ""  # what the user should know of the model before it is trained

    @property
    def probe_rows(self) -> PackedRows:
        """What the checkpoint's probe is taken of: held-out rows if there are any."""
        return self.evaluation or self.batches.at(0)

    @property
    def topology(self) -> dict[str, Any]:
        """What a checkpoint and the ledger say of where the run ran."""
        topology = self.plan.topology
        return {
            "world": topology.world,
            "pipeline": topology.pipeline,
            "zero_stage": topology.zero_stage,
            "precision": self.plan.run.precision,
        }

    def facts(self, step: int, tokens: int, probe: Probe | None = None) -> CheckpointFacts:
        """What a checkpoint of this run says of it."""
        from llmtrain.checkpoint import CheckpointFacts

        plan, run = self.plan, self.plan.run
        sources = zip(self.batches.datasets, run.data.train, strict=True)
        return CheckpointFacts(
            step=step,
            tokens=tokens,
            topology=self.topology,
            dataset=self.batches.fingerprint,
            config=self.config.to_dict(),
            vocab_size=self.batches.vocab_size,
            seq_len=run.data.seq_len,
            rows=plan.batch.rows,
            seed=run.seed,
            run_yaml=resolved_yaml(run, {}),
            tokenizer_folder=self.batches.tokenizer_folder,
            optimizer=run.optimizer.type,
            another=run.another,
            probe=probe,
            generation=self.generation,
            data={
                "document_end": self.batches.datasets[0].manifest.tokenizer.eos,
                "datasets": [
                    {"dataset": d.folder.name, "split": d.split, "tokens": d.tokens, "weight": source.weight}
                    for d, source in sources
                ],
            },
        )

    def speed(self) -> Speed:
        """Arithmetic per token and the device's peak, for TFLOP/s and MFU."""
        shape = shape_of(self.config.get_text_config())
        flops = None if shape is None else flops_per_token(shape, self.plan.run.data.seq_len)
        return Speed(flops, peak_flops(device_name(self.plan.device), self.plan.run.precision))


def check_input(
    path: str, overrides: Sequence[str], ranks: int, device: str, resume: str = ""
) -> PreparedRun:
    """The run of a start, as far as its input can be judged without the seconds that torch takes.

    `resume` is how it may go on (see `find_checkpoint`); empty: it is no start. Raises InputError; writes
    nothing.
    """
    prepared = prepare(path, overrides, ranks, device)
    check_installed(prepared.plan)
    if resume:
        _check_resume(prepared, resume)
    return prepared


def _check_resume(prepared: PreparedRun, resume: str) -> None:
    """Raises CheckpointError when the run in the folder can't go on as this one, the model aside."""
    plan, batches = prepared.plan, prepared.batches
    run, folder = plan.run, Path(plan.run.folder)
    if resume == "must" and not has_begun(folder):
        raise _none_to_go_on_from(folder)
    there = begun(folder)
    if there is None:
        return
    if resume == "never":
        raise _there_already(folder, there.step)
    ours = {
        "dataset": batches.fingerprint,
        "vocab_size": batches.vocab_size,
        "seq_len": run.data.seq_len,
        "rows": plan.batch.rows,
        "seed": run.seed,
        "optimizer": run.optimizer.type,
        "precision": run.precision,
    }
    lines = differences(there.identity, ours)
    if lines:
        raise another_run(there.path, lines, run.another)


def open_job(path: str, overrides: Sequence[str], world: World, resume: str = "") -> Job:
    """The job of this rank. Raises InputError; writes nothing."""
    prepared = check_input(path, overrides, world.size, likely_device(), resume)
    from llmtrain.engine import detect_device
    from llmtrain.model.build import hf_config
    from llmtrain.model.generation import settings_of_run
    from llmtrain.model.lengths import take_length

    plan, batches, device = prepared.plan, prepared.batches, detect_device()
    config = hf_config(plan.run.model, batches.vocab_size, batches.eos_id)
    note = take_length(config, plan.run.data.seq_len)
    memory = shape = None
    if device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(world.local_rank % torch.cuda.device_count()).total_memory
        shape = shape_of(config.get_text_config())
    if device != plan.device or memory is not None:
        plan = make_plan(
            prepared.loaded,
            world.size,
            device,
            device_memory=memory,
            shape=shape,
            goes_on=has_begun(plan.run.folder),
            epoch_rows=batches.rows_per_epoch,
        )
    generation = settings_of_run(plan.run.model, config, batches.datasets)
    return Job(
        plan, batches, prepared.evaluation, config, RunFolder(plan.run.folder), world, generation, note
    )


def check_agreement(comm: Comm, job: Job) -> None:
    """Raises EngineError on every rank, naming the ranks whose run is not rank 0's, and what differs."""
    parts = {
        "run file or overrides": job.plan.run.model_dump(mode="json"),
        "DeepSpeed settings": job.plan.deepspeed,
        "dataset": job.batches.fingerprint,
        "run folder": str(job.folder.path.absolute()),
        "versions": versions(),
        "code": source_digest(),
        "environment": {name: os.environ.get(name) for name in NUMERIC_ENVIRONMENT},
    }
    digests = {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}
    told: list[Any] = comm.gather(digests)
    others = [str(rank) for rank, digest in enumerate(told) if digest != told[0]]
    if others:
        what = [name for name in parts if len({digest[name] for digest in told}) > 1]
        raise EngineError(
            f"rank {', '.join(others)} was started with another run than rank 0 ({', '.join(what)}): start "
            "every rank with the same command on the same files"
        )


def reading_s(folder: RunFolder) -> float:
    """So long it may take, from a slow disk, to read and verify all that the run has saved."""
    return sum(path.stat().st_size for path in folder.checkpoints.glob("step-*/*")) / SLOW_READ


def find_checkpoint(folder: RunFolder, resume: str, comm: Comm) -> tuple[Checkpoint | None, list[str]]:
    """Where the run goes on from, and what it does not go on from, and why.

    Raises CheckpointError when `resume` (must, never) does not allow it.
    """
    from llmtrain.checkpoint import newest, passed_over

    rejected: list[tuple[Path, str]] = []
    found = newest(folder.path, lambda path, why: rejected.append((path, why)), comm)
    if resume == "must" and found is None:
        raise _none_to_go_on_from(folder.path)
    if resume == "never" and found is not None:
        raise _there_already(folder.path, found.step)
    return found, [passed_over(path, why, found) for path, why in rejected]


def _none_to_go_on_from(folder: Path) -> CheckpointError:
    return CheckpointError(f"--resume must: {folder} has no checkpoint to go on from")


def _there_already(folder: Path, step: int) -> CheckpointError:
    return CheckpointError(
        f"--resume never: {folder} already holds step {step}; give another output_dir, "
        "or remove that folder to start over"
    )
