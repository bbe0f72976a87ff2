"""Rows of the fault table in which more than one start has to do with one run folder.

Machines leave a run and join it under torchrun's elastic agents, each of which stands for a machine with one
rank; or the same run is started twice. See rows_of_state for what a row is.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from rows_of_state import KILLED, Outcome, differs, same_rows
from whole_runs import Lab, Started, committed, free_port, ledger, losses

STEPS = 80
SLOW = {  # about 0.2 s a step, so that a machine can come while it trains
    "schedule": {"steps": STEPS},
    "data": {"seq_len": 128},
    "batch": {"rows": 96},
    "checkpoint": {"every": 10, "keep": 2},
    "eval": {"rows": 5, "every": 0},
}
LARGEST = 6.0  # a loss of these runs
CLOSE = 1e-4  # of a loss: fp32 sums in another order, over STEPS steps
# torch 2.13: an agent that shares its store tells a machine that joins later no address, and both give up
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
AGENT = (
    *("--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "elastic"),
    *("--max-restarts", "5", "--monitor-interval", "0.5"),
)


class Machine(Started):
    """An agent of torchrun and its rank."""

    def __init__(self, run: Path, port: str, hosts: bool = False):
        """The one that `hosts` the agents' rendezvous can't be lost: so torchrun is made."""
        rendezvous = ("--rdzv-conf", f"last_call_timeout=3,is_host={hosts}")
        options = (*AGENT, *rendezvous, "--rdzv-endpoint", f"127.0.0.1:{port}")
        super().__init__(run, "torchrun", environment=OWN_STORE, options=options)

    def fail(self, how: signal.Signals) -> None:
        """SIGKILL: the machine is gone at once. SIGTERM: it is taken away with notice, as a spot machine."""
        for pid in [*self.members()] if how == signal.SIGKILL else [self.process.pid]:
            os.kill(pid, how)


def machines_that_leave_and_join(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """A machine of two is lost or taken away, the other goes on alone; a new one comes, both go on."""
    how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
    changes = {**SLOW, "deepspeed": f"zero{number // 2 % 4}"}
    changes["data"] = {**SLOW["data"], **_sources(lab)}
    changes["batch"] = {"rows": 96 + (number + number // 2 + 1) % 2}  # 97 can't be shared by both evenly
    golden, run, port = lab.golden(1, **changes), lab.run(**changes), free_port()
    cell = f"{how.name}, {changes['deepspeed']}, {changes['batch']['rows']} rows"
    with Machine(run, port, hosts=True) as first:
        with Machine(run, port) as second:
            broken = first.until_step(draw.randint(5, 25))
            if broken:
                return Outcome(broken, cell=cell)
            second.fail(how)
            second.process.wait(60)
            broken = first.wait_for(lambda: _worlds(run) == [2, 1], "one machine went on alone")
            broken = broken or first.until_step(losses(run)[-1][0] + 5)
        if broken:
            return Outcome(broken, cell=cell)
        with Machine(run, port) as third:
            status, _, broken = first.end()
            third.end(60)
    if not broken and status != 0:
        broken = f"the exit status is {status}"
    if not broken and _worlds(run) != [2, 1, 2]:
        broken = f"worlds {_worlds(run)} instead of 2, 1 and 2"
    apart = _apart(run, golden)
    if not broken and not apart <= CLOSE:
        broken = f"losses are {apart:.2g} apart"
    return Outcome(broken, apart, cell)


def started_twice(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """The second start waits while the first is there, a hung one even, and goes on when that is killed."""
    changes = {**KILLED, "deepspeed": f"zero{number % 4}"}
    golden, run = lab.golden(**changes), lab.run(**changes)
    hang = {"rank": 0, "place": "training", "step": draw.randint(2, 20), "kind": "sleep"}
    with Started(run, fault=hang) as first:
        broken = first.wait_for(lambda: first.mark.exists(), "the first start hangs")
        if broken:
            return Outcome(broken)
        with Started(run) as second:
            broken = second.wait_for(lambda: "waiting up to" in second.said, "the second start waits")
            time.sleep(draw.uniform(0, 2))
            if not broken and len(ledger(run)["starts"]) != 1:
                broken = "the second start wrote in the folder"
            for pid in first.members():
                os.kill(pid, signal.SIGKILL)
            status, seconds, unclean = second.end()
    broken = (
        broken or unclean or ("" if status == 0 else f"the exit status is {status}: {second.said[-500:]}")
    )
    return Outcome(broken or differs(run, golden), seconds, changes["deepspeed"])


SAVED_AT = (("zero0", 1), ("zero1", 1), ("zero2", 1), ("zero3", 1), ("zero1", 2))  # one for each kill
KILLED_IN = ("forward", "update", "saving", "evaluation", "backward")
TARGETS = [(ranks, f"zero{stage}", 1) for ranks in (1, 2, 3, 4) for stage in range(4)]
TARGETS += [(ranks, f"zero{stage}", 2) for ranks in (2, 4) for stage in (0, 1)]  # what a pipeline can have


def resumed_everywhere(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R6: killed in five places at five topologies, each resumed at 20: the same rows, losses to 1e-5.

    3 and 4 ranks can't share 10 rows evenly.
    """
    kill, target = number % len(KILLED_IN), TARGETS[number // len(KILLED_IN) % len(TARGETS)]
    ranks, strategy, pipeline = target
    changes = {**KILLED, "batch": {"rows": 10}}
    golden = lab.golden(**changes, deepspeed="zero1")
    run = lab.run(**changes, deepspeed=strategy, parallel={"pipeline": pipeline})
    shutil.copytree(_killed(lab, kill, changes), run.parent / "run")
    last = max(committed(run))
    said = lab.forked(run, ranks)
    cell = f"killed in {KILLED_IN[kill]} at {SAVED_AT[kill]}, {target}"
    if said:
        return Outcome(f"it does not go on: {said[-600:]}", cell=cell)
    start = ledger(run)["starts"][-1]
    if (start["from_step"], start["topology"]["world"]) != (last, ranks):
        return Outcome(f"it went on from {start['from_step']}, not {last}: {start['topology']}", cell=cell)
    apart = _apart(run, golden)
    return Outcome("" if apart <= 1e-5 * LARGEST else f"losses are {apart:.1e} apart", apart, cell)


def _killed(lab: Lab, kill: int, changes: dict[str, Any]) -> Path:
    """A run folder whose ranks were all killed; made once."""
    kept = lab.folder / f"killed-{kill}"
    if not kept.exists():
        strategy, pipeline = SAVED_AT[kill]
        run = lab.run(**changes, deepspeed=strategy, parallel={"pipeline": pipeline})
        step = {"saving": 12, "evaluation": 16}.get(KILLED_IN[kill], 11)
        said = lab.forked(run, fault={"rank": -1, "place": KILLED_IN[kill], "step": step, "kind": "kill"})
        assert "ended with -9" in said, said
        (run.parent / "run").rename(kept)
    return kept


def _worlds(run: Path) -> list[int]:
    """How many ranks each start of the run had."""
    if not (run.parent / "run" / "ledger.json").exists():
        return []
    return [start["topology"]["world"] for start in ledger(run)["starts"]]


def _sources(lab: Lab) -> dict[str, object]:
    dataset = str(lab.dataset)
    return {"train": [{"path": dataset}], "eval": [{"path": dataset, "split": "valid"}]}


def _apart(run: Path, golden: Path) -> float:
    """The largest distance of a loss; infinite unless every step, its tokens and its lr are there once."""
    if not same_rows(run, golden):
        return float("inf")
    pairs = zip(losses(run), losses(golden), strict=True)
    return max(abs(float(ours[1]) - float(theirs[1])) for ours, theirs in pairs)
