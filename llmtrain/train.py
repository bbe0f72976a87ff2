"""Training: the entry that every launcher starts, and the loop, which owns only the order of things.

    deepspeed --num_gpus 8 --module llmtrain.train RUN.yaml        torchrun … -m llmtrain.train RUN.yaml
    accelerate launch … -m llmtrain.train RUN.yaml                 srun python -m llmtrain.train RUN.yaml

A run that stands in its folder goes on from its newest checkpoint. It ends with 0 only after its last step
is committed to disk, and with 75 when a signal (SIGTERM, SIGINT, SIGUSR1) made it save and stop early.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmtrain import __version__
from llmtrain.config.load import load_run
from llmtrain.config.secrets import redact
from llmtrain.config.world import World, world_from_environment
from llmtrain.data.batches import Batches
from llmtrain.data.packed import PackedRows
from llmtrain.errors import CheckpointError, EngineError, LlmtrainError, StopRequested
from llmtrain.plan.compute import flops_per_token, peak_flops
from llmtrain.plan.model_shape import shape_of
from llmtrain.plan.plan import Plan, make_plan
from llmtrain.plan.prepared import PreparedRun, prepare
from llmtrain.report.environment import device_name, versions
from llmtrain.report.run_folder import RunFolder, resolved_yaml
from llmtrain.report.run_log import RunLog, Speed
from llmtrain.report.scores import text_bytes
from llmtrain.report.tensorboard import check_installed

if TYPE_CHECKING:
    from llmtrain.checkpoint import Checkpoint, CheckpointFacts, Probe, Saver
    from llmtrain.engine.seam import Comm, Engine

MOST_SKIPS = 20  # steps in a row that were not finite: the run is lost, not unlucky
RESUME = ("auto", "must", "never")
log = logging.getLogger("llmtrain")


def train(
    plan: Plan,
    engine: Engine,
    batches: Batches,
    evaluation: PackedRows | None,
    run_log: RunLog,
    saver: Saver,
    stop: StopSignal,
    start: int = 0,
) -> None:
    """Runs the steps `start … plan.schedule.steps`; the last step, and the one a stop follows, are committed.

    Raises StopRequested after a save when any rank was asked to stop, EngineError when no step is finite or
    a save that matters is lost.
    """
    steps, run = plan.schedule.steps, plan.run
    skips = SkipCount(start - int(engine.scalars()["updates"]))
    if start == 0 and evaluation is not None:
        run_log.evaluated(0, engine.evaluate(evaluation))
    for step in range(start, steps):
        began = time.perf_counter()
        lr = plan.schedule.lr(step - skips.total)  # a skipped step does not advance the schedule
        result = engine.train_step(batches.at(step), lr, step)
        seconds = time.perf_counter() - began
        votes: list[Any] = engine.comm.gather([stop.requested, engine.memory_bytes(), saver.state()])
        stopping, memory = any(asked for asked, _, _ in votes), max(held for _, held, _ in votes)
        done = step + 1
        run_log.step(done, result, lr, seconds, memory)
        saver.settle([state for _, _, state in votes])
        skips.count(done, result.skipped, run_log)
        last = done == steps
        if evaluation is not None and (last or _due(done, run.eval.every)):
            run_log.evaluated(done, engine.evaluate(evaluation))
        if last or stopping or _due(done, run.checkpoint.every):
            saver.save(done, run_log.tokens, wait=last or stopping)
        if stopping and not last:
            raise StopRequested(f"stopped on request after step {done} of {steps}; the same command goes on")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class SkipCount:
    """Counts the steps that were not finite, and ends a run in which they do not end."""

    def __init__(self, total: int):
        self.total = total
        self.in_a_row = 0

    def count(self, step: int, skipped: bool, run_log: RunLog) -> None:
        """Takes in one step. Raises EngineError naming what to go back to."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.total += skipped
        if self.in_a_row >= MOST_SKIPS:
            raise EngineError(
                f"{MOST_SKIPS} steps in a row, up to step {step}, had a loss or gradient that is not finite, "
                f"or no token to train on; no weight was touched by them. "
                f"Last good checkpoint: {run_log.last_saved or 'none'}. "
                "A lower optimizer.lr, a longer schedule.warmup or other data may help"
            )


class StopSignal:
    """Whether this process was asked to stop. A second request ends it at once.

    Launchers repeat the signal that the terminal has already sent, so what follows within `REPEAT_S` counts
    as the same request.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    REPEAT_S = 3.0

    def __init__(self) -> None:
        self.requested = False
        self._asked_at = 0.0

    def listen(self) -> StopSignal:
        """Takes the signals over from now on."""
        for number in self.SIGNALS:
            signal.signal(number, self._asked)
        return self

    def _asked(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._asked_at = True, now
        elif number != signal.SIGUSR1 and now - self._asked_at > self.REPEAT_S:
            os._exit(128 + number)


@dataclass(frozen=True)
class Job:
    """One rank's part of a run, all that is known before its engine is opened."""

    plan: Plan
    batches: Batches
    evaluation: PackedRows | None
    config: Any  # the transformers model's configuration
    folder: RunFolder
    world: World

    @property
    def probe_rows(self) -> PackedRows:
        """What the checkpoint's probe is taken of: held-out rows if there are any."""
        return self.evaluation or self.batches.at(0)

    def facts(self, step: int, tokens: int, probe: Probe | None = None) -> CheckpointFacts:
        """What a checkpoint of this run says of it."""
        from llmtrain.checkpoint import CheckpointFacts

        plan, run, topology = self.plan, self.plan.run, self.plan.topology
        sources = zip(self.batches.datasets, run.data.train, strict=True)
        return CheckpointFacts(
            step=step,
            tokens=tokens,
            topology={
                "world": topology.world,
                "pipeline": topology.pipeline,
                "zero_stage": topology.zero_stage,
                "precision": run.precision,
            },
            dataset=self.batches.fingerprint,
            config=self.config.to_dict(),
            vocab_size=self.batches.vocab_size,
            seq_len=run.data.seq_len,
            rows=plan.batch.rows,
            seed=run.seed,
            run_yaml=resolved_yaml(run, {}),
            tokenizer_folder=self.batches.tokenizer_folder,
            optimizer=run.optimizer.type,
            probe=probe,
            data={
                "datasets": [
                    {"dataset": d.folder.name, "split": d.split, "tokens": d.tokens, "weight": source.weight}
                    for d, source in sources
                ]
            },
        )

    def speed(self) -> Speed:
        """Arithmetic per token and the device's peak, for TFLOP/s and MFU."""
        shape = shape_of(self.config.get_text_config())
        flops = None if shape is None else flops_per_token(shape, self.plan.run.data.seq_len)
        return Speed(flops, peak_flops(device_name(self.plan.device), self.plan.run.precision))


def open_job(path: str, overrides: Sequence[str], world: World) -> Job:
    """The job of this rank. Raises ConfigError or DataError; writes nothing."""
    load_run(path, overrides)  # bad input is answered before torch costs its seconds
    from llmtrain.engine import detect_device
    from llmtrain.model.build import hf_config

    device = detect_device()
    prepared: PreparedRun = prepare(path, overrides, world.size, device)
    plan, batches = prepared.plan, prepared.batches
    check_installed(plan)
    config = hf_config(plan.run.model, batches.vocab_size, batches.eos_id)
    if device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(world.local_rank % torch.cuda.device_count()).total_memory
        shape = shape_of(config.get_text_config())
        plan = make_plan(prepared.loaded, world.size, device, device_memory=memory, shape=shape)
    return Job(plan, batches, prepared.evaluation, config, RunFolder(plan.run.folder), world)


def check_agreement(comm: Comm, job: Job) -> None:
    """Raises EngineError on every rank, naming those whose run is not rank 0's."""
    content = [job.plan.run.model_dump(mode="json"), job.plan.deepspeed, job.batches.fingerprint, __version__]
    digests = comm.gather(hashlib.sha256(json.dumps(content).encode()).hexdigest())
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise EngineError(
            f"rank {', '.join(others)} was started with another run than rank 0 (file, overrides, dataset or "
            "version of llmtrain differ): start every rank with the same command on the same files"
        )


def find_checkpoint(folder: RunFolder, resume: str, comm: Comm) -> tuple[Checkpoint | None, list[str]]:
    """Where the run goes on from, and what it does not go on from, and why.

    Raises CheckpointError when `resume` (must, never) does not allow it.
    """
    from llmtrain.checkpoint import newest, passed_over

    rejected: list[tuple[Path, str]] = []
    found = newest(folder.path, lambda path, why: rejected.append((path, why)), comm)
    if resume == "must" and found is None:
        raise CheckpointError(f"--resume must: {folder.path} has no checkpoint to go on from")
    if resume == "never" and found is not None:
        raise CheckpointError(
            f"--resume never: {folder.path} already holds step {found.step}; give another output_dir, "
            "or remove that folder to start over"
        )
    return found, [passed_over(path, why, found) for path, why in rejected]


def run(path: str, overrides: Sequence[str], resume: str, world: World, stop: StopSignal) -> None:
    """One rank's part of a run, from its file to its last checkpoint."""
    job = open_job(path, overrides, world)
    from llmtrain.engine import start as join

    comm = join(world, job.plan.device)
    check_agreement(comm, job)
    found, warnings = find_checkpoint(job.folder, resume, comm)
    if found is not None:
        found.check_matches(job.facts(0, 0))
    job.folder.log_to_file(comm.rank)
    warn(warnings, comm.rank)
    run_log = open_log(job, comm.rank == 0, found)
    try:
        if found is not None and found.step >= job.plan.schedule.steps:
            run_log.note(f"nothing left to do: step {found.step} is in {found.path}")
        else:
            work(job, comm, run_log, found, stop)
    finally:
        run_log.close()


def warn(warnings: Sequence[str], rank: int) -> None:
    """Says it in every rank's log, and once on stderr."""
    for warning in warnings:
        log.warning("%s", warning)
        if rank == 0:
            print(f"warning: {warning}", file=sys.stderr)


def open_log(job: Job, writes: bool, found: Checkpoint | None) -> RunLog:
    """The run folder's files and the display; the first lines say what is about to happen."""
    plan, batch = job.plan, job.plan.batch
    step, tokens = (found.step, found.manifest.tokens) if found else (0, 0)
    known = text_bytes(job.evaluation, job.batches.tokenizer_folder) if job.evaluation and writes else None
    if writes:
        job.folder.write(plan)
    run_log = RunLog(plan, job.folder, step, tokens, speed=job.speed(), eval_bytes=known, writes=writes)
    run_log.last_saved = found.path if found else None
    rows = f"{batch.rows} rows × {plan.run.data.seq_len} tokens"
    split = f"micro {batch.micro} × accumulation {batch.accumulation} × {batch.dp} data-parallel ranks"
    where = f"{job.world.size} × {device_name(plan.device)} started by {job.world.launcher}"
    run_log.note(f"{plan.run.name}: {plan.schedule.steps:,} steps of {rows}, {split}; {where}")
    if found is not None:
        run_log.note(f"going on from {found.path}")
    return run_log


def work(job: Job, comm: Comm, run_log: RunLog, found: Checkpoint | None, stop: StopSignal) -> None:
    """Opens the engine, gives it its state, trains."""
    from llmtrain import checkpoint
    from llmtrain.engine import open_engine

    plan, source = job.plan, job.plan.run.model.source
    weights = None
    if source and found is None:
        from llmtrain.model.weights import WeightFiles

        weights = WeightFiles(source)
    with job.folder.talk_to_log(comm.rank):
        engine = open_engine(plan, job.config, job.world, weights, comm)  # type: ignore[arg-type]
    if comm.rank == 0:
        job.folder.write_environment(versions(), device_name(plan.device), engine.kernels, job.world)
    log.info("kernels: %s", ", ".join(f"{part} {name}" for part, name in engine.kernels.items()))
    if found is not None:
        with found.reader() as reader:
            engine.load(reader, found.scalars)

    def facts(step: int, tokens: int) -> CheckpointFacts:
        return job.facts(step, tokens, checkpoint.take_probe(engine, job.probe_rows))

    rules = plan.run.checkpoint
    strict = rules.on_failure == "stop"
    saver = checkpoint.Saver(engine, job.folder.path, rules.keep, facts, run_log.save_ended, strict)
    try:
        train(plan, engine, job.batches, job.evaluation, run_log, saver, stop, found.step if found else 0)
    except StopRequested:
        engine.close()  # all ranks agreed on it, so all are here
        raise
    engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The rank's entry; returns its exit status. With other ranks, a failure ends the process at once."""
    stop = StopSignal().listen()  # before torch is imported: a request is never lost
    arguments = _parser().parse_intermixed_args(argv)
    world = None
    try:
        world = world_from_environment(os.environ)
        run(arguments.run, arguments.overrides, arguments.resume, world, stop)
        return 0
    except Exception as error:  # noqa: BLE001 - this is where a rank ends
        status = tell(error, world, arguments.debug)
    sys.stdout.flush()
    sys.stderr.flush()
    if world is not None and world.size > 1:
        os._exit(
            status
        )  # the others learn of it when this process is gone; libraries' exit handlers can hang
    return status


def tell(error: Exception, world: World | None, debug: bool) -> int:
    """Says on stderr, and in the rank's log, why the run ended; returns the exit status."""
    expected = isinstance(error, LlmtrainError)
    status = error.exit_status if isinstance(error, LlmtrainError) else 1
    name = f"rank {world.rank}: " if world is not None and world.rank > 0 else ""
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    word = "" if isinstance(error, StopRequested) else "error: "
    if log.handlers:
        log.log(logging.ERROR if word else logging.INFO, "%s", text, exc_info=None if expected else error)
    if debug or not (expected or log.handlers):  # else the traceback is in the rank's log
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    for line in text.splitlines() or [""]:
        print(f"{name}{word}{redact(line)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmtrain.train", description="One rank of a run.")
    parser.add_argument("run", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resume", choices=RESUME, default="auto")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "--local_rank", "--local-rank", help=argparse.SUPPRESS
    )  # the deepspeed launcher adds it
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
