"""Saving behind the loop: it waits for a copy in main memory; a thread per rank writes, hashes and syncs it.

The threads never talk to other ranks. Each rank's `state()` travels with the loop's own exchange after a
step, and `settle` draws the same conclusion from all of them on every rank: when every file is on disk,
rank 0's thread commits; when any rank failed, it takes the half-written folder away. So nothing is committed
that some rank has not written, and a lost save is known to all ranks after the same step.

At most one save is under way: the next one waits for it, so memory stays at one copy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.checkpoint.agree import failure_of, failures_told, on_every_rank, sentence
from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.checkpoint.files import HashedFile
from llmtrain.checkpoint.host_copy import HostCopy, too_little_memory
from llmtrain.checkpoint.manifest import step_folder
from llmtrain.checkpoint.save import (
    Begun,
    begin,
    commit,
    complete,
    file_specs,
    place_for,
    withdraw,
    withdrawn_on_failure,
)
from llmtrain.checkpoint.tensorfile import TensorSpec, header_of
from llmtrain.engine.seam import Engine
from llmtrain.errors import EngineError

logger = logging.getLogger(__name__)
_JOIN_S = 5.0  # how long a rank waits for its own thread before it speaks to the others again


@dataclass(frozen=True)
class SaveEnd:
    """How the save of a step ended: committed in `folder`, or lost and `why`."""

    step: int
    tokens: int
    folder: Path | None
    why: str
    stall_s: float  # how long the loop stood still for it
    total_s: float  # from its beginning to its commit


class _Task:
    """Work in a thread that ends with the process; what becomes of it can be asked at any time."""

    def __init__(self, work: Callable[[], Any]):
        self._answer: list[Any] = [False, None, None]
        self._thread = threading.Thread(target=self._run, args=(work,), name="save", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._answer = [True, work(), None]
        except BaseException as error:  # noqa: BLE001 - the loop tells it on every rank
            self._answer = [True, None, sentence(error)]

    @property
    def state(self) -> list[Any]:
        """[ended, its value, why it failed], as JSON can carry it."""
        return self._answer

    def join(self) -> None:
        """Waits for a while, not for ever: the other ranks want to hear something."""
        self._thread.join(_JOIN_S)


@dataclass
class _Flight:
    """The save that is under way."""

    begun: Begun
    began: float
    stall_s: float
    task: _Task | None
    closing: bool = False  # all files are written (or lost), rank 0 commits (or withdraws)
    why: str = ""


class Saver:
    """The saves of one run. Every rank calls each method, `state` apart, at the same moment.

    `facts(step, tokens)` describes the run at a moment, `tell` hears how each save ended. A lost save ends
    the run only when `strict`, or when it was one that had to be waited for. `first` is done by rank 0 before
    a checkpoint counts, in another thread, and when it raises the save is lost.
    """

    def __init__(
        self,
        engine: Engine,
        run_folder: Path,
        keep: int,
        facts: Callable[[int, int], CheckpointFacts],
        tell: Callable[[SaveEnd], None],
        strict: bool = False,
        first: Callable[[], object] = lambda: None,
    ):
        self._engine, self._run_folder, self._keep = engine, Path(run_folder).absolute(), keep
        self._facts, self._tell, self._strict, self._first = facts, tell, strict, first
        self._copy = HostCopy()
        self._copies: bool | None = None  # False: no memory for them, so every save is waited for
        self._plans: list[dict[str, Any]] | None = None  # what each rank writes never changes
        self._flight: _Flight | None = None

    def state(self) -> object:
        """What this rank has to say; goes to `settle` on every rank."""
        task = self._flight.task if self._flight else None
        return task.state if task else None

    def settle(self, states: Sequence[Any]) -> None:
        """Takes in all ranks' states, in rank order. Raises EngineError when a save was lost and `strict`."""
        flight = self._flight
        if flight is None:
            return
        if not flight.closing:
            if all(ended for ended, _, _ in states):
                self._close(flight, states)
            return
        ended, _, failure = states[0]
        if ended:
            self._flight = None
            why = flight.why or (f"{flight.begun.task} failed: {failure}" if failure else "")
            self._end(flight.begun.facts, why, flight.began, flight.stall_s)

    def save(self, step: int, tokens: int, wait: bool) -> None:
        """Saves the state as it is now; with `wait`, returns after the commit or raises EngineError."""
        began = time.perf_counter()
        if self._flight:
            self.finish()
            waited = time.perf_counter() - began
            logger.warning("saving step %d waited %.1f s for the save before it", step, waited)
        facts, why = self._facts(step, tokens), ""
        try:
            begun = begin(self._engine, self._run_folder, facts, self._plans)
            self._plans = begun.plans
            if not wait and self._copies_fit(begun):
                self._take_off(begun, began)
                return
            complete(self._engine, begun, self._keep, self._first)
        except EngineError as error:
            if wait:
                raise
            why = str(error)
        self._end(facts, why, began)

    def finish(self) -> None:
        """Waits for the save that is under way, if any."""
        while self._flight:
            if self._flight.task:
                self._flight.task.join()
            self.settle(self._engine.comm.gather(self.state()))

    def _copies_fit(self, begun: Begun) -> bool:
        """Whether every rank has memory for a copy of its state; found out once, alike on all ranks."""
        if self._copies is None:
            gather, plan = self._engine.comm.gather, begun.plans[self._engine.comm.rank]
            problems = gather(too_little_memory(begun.plans, plan["host"]))  # before any rank takes some
            if not any(problems):
                problems = gather(failure_of(lambda: self._copy.reserve(plan["bytes"])))
            self._copies = not any(problems)
            if not self._copies:
                self._copy = HostCopy()
                why = next(problem for problem in problems if problem)
                logger.warning("each save stops the steps until it is on disk: %s", why)
        return self._copies

    def _take_off(self, begun: Begun, began: float) -> None:
        comm = self._engine.comm
        specs = file_specs(begun.plans[comm.rank], comm.rank)
        with withdrawn_on_failure(comm, begun):
            on_every_rank(comm, begun.task, lambda: self._copy.take(self._engine, specs))
        stall_s = time.perf_counter() - began
        self._flight = _Flight(begun, began, stall_s, _Task(lambda: self._write(begun, specs)))

    def _write(self, begun: Begun, specs: Sequence[TensorSpec]) -> dict[str, Any]:
        """Thread of each rank: its file, from the copy."""
        rank = self._engine.comm.rank
        with place_for(begun, rank, self._copy.size) as path, HashedFile(path) as file:
            file.write(header_of(specs))
            for piece in self._copy.pieces():
                file.write(piece)
            return file.finish().model_dump()

    def _close(self, flight: _Flight, states: Sequence[Any]) -> None:
        """Every rank has ended its part: rank 0's thread commits it, or takes it away."""
        begun = flight.begun
        flight.why = failures_told(begun.task, [failure for _, _, failure in states])
        flight.closing, flight.task = True, None
        if self._engine.comm.rank == 0:
            entries = [entry for _, entry, _ in states]
            work = (lambda: withdraw(begun.folder)) if flight.why else (lambda: self._commit(begun, entries))
            flight.task = _Task(work)

    def _commit(self, begun: Begun, entries: list[dict[str, Any]]) -> None:
        """Thread of rank 0."""
        try:
            commit(begun, entries, self._keep, self._first)
        except BaseException:
            with contextlib.suppress(OSError):  # without COMMIT what is left is no checkpoint anyway
                withdraw(begun.folder)
            raise

    def _end(self, facts: CheckpointFacts, why: str, began: float, stall_s: float | None = None) -> None:
        total_s = time.perf_counter() - began
        folder = None if why else step_folder(self._run_folder, facts.step)
        self._tell(
            SaveEnd(facts.step, facts.tokens, folder, why, total_s if stall_s is None else stall_s, total_s)
        )
        if why and self._strict:
            raise EngineError(why)
