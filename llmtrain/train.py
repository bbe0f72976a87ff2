"""Training: the entry that every launcher starts, and the loop, which owns only the order of things.

    deepspeed --num_gpus 8 --module llmtrain.train RUN.yaml        torchrun … -m llmtrain.train RUN.yaml
    accelerate launch … -m llmtrain.train RUN.yaml                 srun python -m llmtrain.train RUN.yaml

A run that stands in its folder goes on from its newest checkpoint. It ends with 0 only after its last step
is committed to disk, and with 75 when it was asked to save and stop early (see `stopping`).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llmtrain.config.home import settle_home
from llmtrain.config.search_path import shadow_warnings
from llmtrain.config.secrets import redact
from llmtrain.config.streams import speak_utf_8, steady_streams
from llmtrain.config.world import World, world_from_environment
from llmtrain.data.batches import Batches
from llmtrain.data.packed import PackedRows
from llmtrain.engine.build_locks import lock_warnings
from llmtrain.engine.supervisors import end_restarts, follow_launchers
from llmtrain.engine.watchdog import START_UP, Watchdog, watching
from llmtrain.errors import EngineError, InputError, LlmtrainError, StopRequested
from llmtrain.health import Fault, Health, PoisonedError
from llmtrain.held_out import HeldOut, evaluation_missing
from llmtrain.job import Job, check_agreement, find_checkpoint, open_job, reading_s
from llmtrain.plan.advice import advice
from llmtrain.plan.plan import Plan
from llmtrain.plan.schedule import is_due
from llmtrain.report.changes import Change, changes, schedule_change
from llmtrain.report.environment import device_name, versions
from llmtrain.report.ledger import starts_so_far
from llmtrain.report.run_lock import WAIT_S, sole_start
from llmtrain.report.run_log import RunLog
from llmtrain.report.scores import text_bytes
from llmtrain.stopping import StopRequest, StopWithinStep, agreed, stopped, stopped_at

if TYPE_CHECKING:
    from llmtrain.checkpoint import Checkpoint, CheckpointFacts, Probe, Saver
    from llmtrain.engine.seam import Comm, Engine

RESUME = ("auto", "must", "never")
log = logging.getLogger("llmtrain")


def train(
    plan: Plan,
    engine: Engine,
    batches: Batches,
    evaluation: PackedRows | None,
    run_log: RunLog,
    saver: Saver,
    stop: StopRequest,
    health: Health,
    watch: Watchdog,
    start: int = 0,
    evaluate_first: bool = True,
) -> None:
    """Runs the steps `start … plan.schedule.steps`; the last step, and the one a stop follows, are committed.

    Raises StopRequested after a save when any rank was asked to stop, EngineError when going back to a
    checkpoint does not help or a save that matters is lost.
    """
    steps, run = plan.schedule.steps, plan.run
    held_out = HeldOut(plan, evaluation, engine, run_log, stop, watch)
    if evaluate_first:
        held_out.evaluate_first(start)
    step, owed = start, False
    while step < steps:
        done, began = step + 1, time.perf_counter()
        lr = plan.schedule.lr(int(engine.scalars()["updates"]))  # without an update it does not advance
        result = fault = None
        watch.enter("training", done)
        if not health.passes_over(done):
            rows, compare = batches.at(step), _compares(plan, done, owed)
            result = engine.train_step(rows, lr, step, health.most_loss, compare)
            if result is None:  # left, for a stop that all ranks heard of
                watch.enter("saving", step)
                if step > start:  # where this start began is saved
                    _save(saver, run_log, step, wait=True)
                raise stopped(agreed(engine.comm.gather(stop.reason)), stopped_at(step, steps))
        seconds = time.perf_counter() - began
        stops, memories, states, works = _exchange(engine, stop, saver, result is not None)
        stopping = agreed(stops)
        if result is None:
            run_log.passed_over(done)
        else:
            run_log.step(done, result, lr, seconds, max(memories), health.is_spike(result))
            fault = health.take(done, result)
        run_log.worked(done, works)
        saver.settle(list(states))
        last, owed = done == steps, owed or is_due(done, run.checkpoint.every)
        unevaluated = fault is None and held_out.due(done)
        if unevaluated and not stopping:
            stopping, unevaluated = held_out.evaluate(done)
        if fault is None and (last or stopping or (owed and result is not None and not health.doubtful)):
            watch.enter("saving", done)
            fault, owed = _save(saver, run_log, done, wait=last or bool(stopping)), False
        if fault is not None:
            watch.enter("going back", done)
            step, owed = health.go_back(fault, run_log, saver, engine.comm), False
            continue
        if stopping and (unevaluated or not last):
            raise stopped(stopping, stopped_at(done, steps))
        step = done


def _exchange(engine: Engine, stop: StopRequest, saver: Saver, trained: bool) -> tuple[Any, ...]:
    """What the ranks tell each other once a step: reasons to stop, memory, states of the save, seconds."""
    busy = engine.busy_s() if trained else 0.0
    votes: list[Any] = engine.comm.gather([stop.reason, engine.memory_bytes(), saver.state(), busy])
    return tuple(zip(*votes, strict=True))


def _compares(plan: Plan, step: int, owed: bool) -> bool:
    """Whether replicas are compared in `step`: at their own pace, and where its weights are to be saved."""
    rules, every = plan.run.checkpoint, plan.run.health.checksum_every
    saved = owed or step == plan.schedule.steps or is_due(step, rules.every)
    return every > 0 and (saved or is_due(step, every))


def _save(saver: Saver, run_log: RunLog, step: int, wait: bool) -> Fault | None:
    """Saves; if the weights turn out to be poisoned, nothing is written and the run must go back."""
    try:
        saver.save(step, run_log.tokens, wait)
    except PoisonedError as error:
        return Fault(step, step, str(error))
    return None


def heed(stop: StopRequest, comm: Comm) -> None:
    """Ends a run whose first step has not begun: there is nothing to save, and opening can take minutes."""
    asked = agreed(comm.gather(stop.asked))
    if asked:
        raise stopped(asked, stopped_at(0, 0))


def run(path: str, overrides: Sequence[str], resume: str, world: World, stop: StopRequest) -> None:
    """One rank's part of a run, from its file to its last checkpoint."""
    job = open_job(path, overrides, world, resume)
    from llmtrain.engine import start as join

    with watching(world, job.folder.logs, job.plan.run.health.hang_s) as watch:
        comm = join(world, job.plan.device, watch=watch, met=stop.meet)
        check_agreement(comm, job)
        heed(stop, comm)
        watch.enter(START_UP, 0, more_s=WAIT_S)
        with sole_start(job.folder.path, comm, lambda: stop.asked, WAIT_S, job.plan.run.another):
            new = job.folder.is_new
            try:
                _run_alone(job, comm, resume, stop, watch)
            except InputError:
                if new and comm.rank == 0:
                    job.folder.discard()
                raise


def _run_alone(job: Job, comm: Comm, resume: str, stop: StopRequest, watch: Watchdog) -> None:
    """The run, in a folder that no other start writes."""
    reading = reading_s(job.folder)
    watch.enter(START_UP, 0, more_s=reading)
    found, warnings = find_checkpoint(job.folder, resume, comm)
    if found is not None:
        found.check_matches(job.facts(0, 0))
    last_hang = watch.log_to(job.folder.log_to_file(comm.rank))
    watch.enter(START_UP, 0, more_s=reading)
    warn(warnings, comm.rank)
    warn([*lock_warnings(), *shadow_warnings(job.world.launcher), *job.batches.notes], comm.rank)
    warn(advice(job.plan, job.batches), comm.rank)
    step, steps = found.step if found else 0, job.plan.schedule.steps
    missing = comm.rank == 0 and evaluation_missing(job.plan, job.evaluation, job.folder.metrics, step)
    evaluate_first = bool(comm.broadcast(missing))
    left = step < steps or evaluate_first
    run_log, cause = open_log(job, comm.rank == 0, found, left, last_hang), ""
    if comm.rank == 0:
        stop.watch(job.folder.path)
    try:
        if left:
            work(job, comm, run_log, found, stop, watch, evaluate_first)
            cause = "finished"
    except StopRequested as request:
        cause = str(request).partition(";")[0]
        raise
    except Exception as error:
        cause = redact(f"error: {error}" if isinstance(error, LlmtrainError) else f"error: {error!r}")
        raise
    finally:
        run_log.close(cause)


def warn(warnings: Sequence[str], rank: int) -> None:
    """Says it in every rank's log, and once on stderr."""
    for warning in warnings:
        log.warning("%s", warning)
        if rank == 0:
            print(f"warning: {warning}", file=sys.stderr)


def open_log(job: Job, writes: bool, found: Checkpoint | None, left: bool, last_hang: str) -> RunLog:
    """The run folder's files and the display; the first lines say what is about to happen.

    `left`: there is something to do, so this start is one for the ledger.
    """
    plan = job.plan
    step, tokens = (found.step, found.manifest.tokens) if found else (0, 0)
    known = text_bytes(job.evaluation, job.batches.tokenizer_folder) if job.evaluation and writes else None
    changed = changes(found.run_yaml, plan) if found else []
    about = {
        "topology": dict(job.topology),
        "launcher": job.world.launcher,
        "device": device_name(plan.device),
        "versions": versions(),
        "changes": [change.record() for change in changed],
    }
    if writes and left:
        about["config"] = job.folder.write(plan, starts_so_far(job.folder.ledger) + 1, found is not None)
    run_log = RunLog(
        plan,
        job.folder,
        step,
        tokens,
        speed=job.speed(),
        eval_bytes=known,
        writes=writes,
        about=about if left else None,
        last_hang=last_hang,
    )
    run_log.last_saved = found.path if found else None
    _introduce(job, run_log, found, changed, left)
    return run_log


def _introduce(
    job: Job, run_log: RunLog, found: Checkpoint | None, changed: Sequence[Change], left: bool
) -> None:
    """The lines with which a start begins: the run, where it goes on, and what is no longer as it was."""
    plan, batch = job.plan, job.plan.batch
    rows = f"{batch.rows} rows × {plan.run.data.seq_len} tokens"
    where = f"{job.world.size} × {device_name(plan.device)} started by {job.world.launcher}"
    run_log.note(f"{plan.run.name}: {plan.schedule.steps:,} steps of {rows}, {batch.split}; {where}")
    if job.note:
        run_log.note(job.note)
    if found is None:
        return
    run_log.note(
        f"going on from {found.path}" if left else f"nothing left to do: step {found.step} is in {found.path}"
    )
    for change in changed:
        run_log.note(change.told(left))
    updates = int(found.scalars["updates"])
    bent = schedule_change(found.run_yaml, plan, updates, job.batches.rows_per_epoch) if changed else ""
    if bent and left:
        run_log.note(bent)
    if changed and not left:
        run_log.note(f"more schedule.steps go on from there; {plan.run.another} starts another run")


def work(
    job: Job,
    comm: Comm,
    run_log: RunLog,
    found: Checkpoint | None,
    stop: StopRequest,
    watch: Watchdog,
    evaluate_first: bool,
) -> None:
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
    watch.behind = engine.behind
    if comm.rank == 0:
        job.folder.write_environment(versions(), device_name(plan.device), engine.kernels, job.world)
    log.info("kernels: %s", ", ".join(f"{part} {name}" for part, name in engine.kernels.items()))

    def load(saved: Checkpoint) -> None:
        with saved.reader() as reader:
            engine.load(reader, saved.scalars)

    def facts(step: int, tokens: int) -> CheckpointFacts:
        return job.facts(step, tokens, _finite_probe(engine, job.probe_rows, step))

    watch.enter(START_UP, 0, more_s=reading_s(job.folder))
    if found is not None:
        load(found)
    start = found.step if found else 0
    rules, strict = plan.run.checkpoint, plan.run.checkpoint.on_failure == "stop"
    tell, sync = run_log.save_ended, run_log.sync
    saver = checkpoint.Saver(engine, job.folder.path, rules.keep, facts, tell, strict, first=sync)
    history: Any = comm.broadcast(run_log.history())
    run_log.hosts = comm.gather(socket.gethostname())
    health = Health(plan.run.health, history, partial(checkpoint.newest, job.folder.path, comm=comm), load)
    engine.leaves_step = StopWithinStep(comm, stop)
    try:
        heed(stop, comm)
        rows = job.evaluation
        train(plan, engine, job.batches, rows, run_log, saver, stop, health, watch, start, evaluate_first)
    except StopRequested as request:  # all ranks agreed on it, so all are here
        if request.whole:
            end_restarts(comm, job.world.local_rank)
        engine.close()
        raise
    except EngineError as error:
        raise EngineError(f"{error}. Last good checkpoint: {run_log.last_saved or 'none'}") from error
    engine.close()


def _finite_probe(engine: Engine, rows: PackedRows, step: int) -> Probe:
    """The probe of a checkpoint. Raises PoisonedError when the weights it would vouch for are not finite."""
    from llmtrain.checkpoint import take_probe

    probe = take_probe(engine, rows)
    if not math.isfinite(probe.loss):
        raise PoisonedError(f"after step {step} the model's loss is {probe.loss}: its weights are not finite")
    return probe


def main(argv: Sequence[str] | None = None) -> int:
    """The rank's entry; returns its exit status. With other ranks, a failure ends the process at once."""
    if argv is None:
        speak_utf_8()
    stop = StopRequest().listen()  # before torch is imported: a request is never lost
    steady_streams(stdout=True)
    settle_home()
    arguments = _parser().parse_intermixed_args(argv)
    world = None
    try:
        world = world_from_environment(os.environ)
        if world.launcher not in ("none", "llmtrain"):  # our own launcher takes its ranks along by itself
            follow_launchers()
        run(arguments.run, arguments.overrides, arguments.resume, world, stop)
        return 0
    except (Exception, SystemExit) as error:  # noqa: BLE001 - this is where a rank ends; nothing else ends it
        status = error.exit_status if isinstance(error, LlmtrainError) else 1
        with suppress(OSError):  # a full disk, or nobody who reads
            tell(error, world, arguments.debug)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if world is not None and world.size > 1:
        os._exit(
            status
        )  # the others learn of it when this process is gone; libraries' exit handlers can hang
    return status


def tell(error: Exception | SystemExit, world: World | None, debug: bool) -> None:
    """Says on stderr, and in the rank's log, why the run ended."""
    expected = isinstance(error, LlmtrainError)
    name = f"rank {world.rank}: " if world is not None and world.rank > 0 else ""
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    word = "" if isinstance(error, StopRequested) else "error: "
    if log.handlers:
        log.log(logging.ERROR if word else logging.INFO, "%s", text, exc_info=None if expected else error)
    if debug or not (expected or log.handlers):  # else the traceback is in the rank's log
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    for line in text.splitlines() or [""]:
        print(f"{name}{word}{redact(line)}", file=sys.stderr)


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
