"""Rank side of test_rollback: the real loop, saver and engine around injected faults."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rank_poison
from rank_checkpoints import _facts
from rank_programs import RandomRows
from rank_resume import open_seeded, state_digest

from llmtrain.checkpoint import Saver, newest
from llmtrain.config.world import World
from llmtrain.engine.watchdog import Watchdog
from llmtrain.errors import EngineError, StopRequested
from llmtrain.health import Health
from llmtrain.report.metrics import read_metrics
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.run_log import RunLog, Speed
from llmtrain.stopping import StopRequest
from llmtrain.train import train

STEPS = 16


class Watched:
    """Random rows for each step; `before[step]` is called, once, when they are asked for."""

    def __init__(self, before: dict[int, Callable[[], object]]):
        self._before = dict(before)

    def at(self, step: int) -> Any:
        self._before.pop(step, lambda: None)()
        return RandomRows(5, step)


class Loop:
    """One run in `folder` on an engine of its own; a second one in the same folder resumes it."""

    def __init__(self, world: World, folder: Path, comm: Any = None, steps: int = STEPS, **sections: Any):
        self.world, self.stop, self.folder = world, StopRequest(), RunFolder(folder)
        self.plan, self.engine = open_seeded(world, "llama", comm, **sections)
        self.plan = dataclasses.replace(
            self.plan, schedule=dataclasses.replace(self.plan.schedule, steps=steps)
        )
        self.comm = self.engine.comm
        self._undo: list[Callable[[], None]] = []

    def multiply_loss(self) -> None:
        """Makes the loss of this rank 100 times what it is, until `mend`."""
        self._undo.append(rank_poison.poison_loss(self.engine, 100.0))

    def mend(self) -> None:
        """Ends what was injected."""
        while self._undo:
            self._undo.pop()()

    def run(self, before: dict[int, Callable[[], object]], history: dict[str, Any] | None = None) -> str:
        """How it ended. `before` injects, by step counted from 0; `history` replaces the run folder's."""
        engine, plan, folder = self.engine, self.plan, self.folder

        def load(saved: Any) -> None:
            self.mend()  # what is injected belongs to one step, not to those that are trained again
            with saved.reader() as reader:
                engine.load(reader, saved.scalars)

        found = newest(folder.path, comm=self.comm)
        start, tokens = (found.step, found.manifest.tokens) if found else (0, 0)
        if found:
            load(found)
        about = {"topology": {}} if self.world.rank == 0 else None
        writes, speed = self.world.rank == 0, Speed(None, None)
        log = RunLog(plan, folder, start, tokens, speed=speed, eval_bytes=None, writes=writes, about=about)
        saver = Saver(engine, folder.path, 3, self._facts, log.save_ended)
        known: Any = history or self.comm.broadcast(log.history())
        health = Health(plan.run.health, known, lambda: newest(folder.path, comm=self.comm), load)
        cause, watch = "finished", Watchdog(World(0, 1, 0, 1, "none"), folder.logs, 0.0)
        try:
            train(plan, engine, Watched(before), None, log, saver, self.stop, health, watch, start)  # type: ignore[arg-type]
        except (StopRequested, EngineError) as error:
            cause = str(error)
        log.close(cause)
        return cause

    def _facts(self, step: int, tokens: int) -> Any:
        return dataclasses.replace(_facts(self.plan, self.engine, step, "llama"), tokens=tokens)

    def told(self) -> dict[str, Any]:
        """Each step's loss, or null where it was passed over, and what this rank holds in the end."""
        records = [r for r in read_metrics(self.folder.metrics) if "skipped" in r or "passed_over" in r]
        steps = [[r["step"], r.get("loss"), r["tokens"]] for r in records]
        return {"steps": steps, "state": state_digest(self.engine)}


def healed(world: World, **sections: Any) -> dict[str, Any]:
    """NaN in one weight of one rank, three skipped steps, back to a checkpoint, a stop, a resume.

    Beside it a run that never was disturbed and passes over the same steps: it must end the same.
    """
    sections |= {"checkpoint": {"every": 4}, "health": {"skips": 3, "checksum_every": 5}}
    first = Loop(world, Path("unused"), **sections)
    folder = Path(str(first.comm.broadcast(tempfile.mkdtemp(prefix="rollback-"))))
    first.folder = RunFolder(folder / "a")
    guilty = rank_poison.guilty(world, first.plan)

    def poison() -> None:
        if guilty:
            rank_poison.poison_weight(first.engine, float("nan"))

    def ask_to_stop() -> None:
        if world.rank == world.size - 1:
            first.stop.ask("a test")

    ended = [first.run({6: poison, 10: ask_to_stop})]
    resumed = Loop(world, folder / "a", first.comm, seed=4321, **sections)
    ended.append(resumed.run({}))
    straight = Loop(world, folder / "b", first.comm, **sections)
    known = {"losses": [], "skipped": 0, "passed_over": [[7, 9]], "went_back_to": []}
    ended.append(straight.run({}, known))
    first.comm.barrier()
    answer = {"ended": ended, "disturbed": resumed.told(), "straight": straight.told()}
    if world.rank == 0:
        answer["ledger"] = json.loads((folder / "a" / "ledger.json").read_text())
    first.comm.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
    first.engine.close()
    return answer


def flipped(world: World, **sections: Any) -> dict[str, Any]:
    """A bit flips in one rank's copy of a weight between two comparisons, and a save is due before the next.

    The run stops; what is newest in its folder is gone on from, beside a run that never was disturbed.
    """
    sections |= {"checkpoint": {"every": 4}, "health": {"checksum_every": 5}}
    first = Loop(world, Path("unused"), steps=9, **sections)
    folder = Path(str(first.comm.broadcast(tempfile.mkdtemp(prefix="flip-"))))
    first.folder = RunFolder(folder / "a")

    def flip() -> None:
        if world.rank == world.size - 1:
            rank_poison.flip_bit(first.engine)

    ended = [first.run({5: flip})]  # before step 6: compared after 5, to be saved after 8
    first.comm.barrier()
    saved = sorted(path.name for path in (folder / "a" / "checkpoints").iterdir())
    first.comm.barrier()
    resumed = Loop(world, folder / "a", first.comm, steps=9, seed=4321, **sections)
    ended.append(resumed.run({}))
    straight = Loop(world, folder / "b", first.comm, steps=9, **sections)
    ended.append(straight.run({}))
    first.comm.barrier()
    answer = {"ended": ended, "saved": saved, "resumed": resumed.told(), "straight": straight.told()}
    first.comm.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
    first.engine.close()
    return answer


def spiked(world: World, **sections: Any) -> dict[str, Any]:
    """A step whose loss is 100 times what it should be: withheld, gone back from, and never seen at all."""
    at, steps = 34, 38
    comm, answer = None, {}
    folder = Path()
    for name in ("skip", "rollback", "straight"):
        health = {"on_spike": "report" if name == "straight" else name}
        settings = {**sections, "checkpoint": {"every": 10}, "health": health}
        loop = Loop(world, Path("unused"), comm, steps=steps, **settings)
        if comm is None:
            comm = loop.comm
            folder = Path(str(comm.broadcast(tempfile.mkdtemp(prefix="spike-"))))
        loop.folder = RunFolder(folder / name)
        before = {at: loop.multiply_loss, at + 1: loop.mend}
        known = {"losses": [], "skipped": 0, "passed_over": [[at + 1, at + 1]], "went_back_to": []}
        ended = loop.run({}, known) if name == "straight" else loop.run(before)
        comm.barrier()
        answer[name] = {"ended": ended, "state": loop.told()["state"]}
        if world.rank == 0:
            records = list(read_metrics(loop.folder.metrics))
            answer[name]["withheld"] = [r["step"] for r in records if r.get("spike") and r["skipped"]]
            answer[name]["passed_over"] = [r["step"] for r in records if "passed_over" in r]
    comm.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
    loop.engine.close()
    return answer
