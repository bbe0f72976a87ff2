"""Rows of the fault table that are about processes: ranks that die, hang or are slow, signals, launchers.

Each trial starts real processes; see rows_of_state for what a row is. The figure is in seconds.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from rows_of_state import KILLED, Outcome, differs, goes_on
from whole_runs import ENDLESS, ENGINES, Lab, Started, committed, ledger, losses

from llmtrain.report.account import account
from llmtrain.report.metrics import read_metrics

HANG_S = 8.0
LEAST_MEET_S = 60.0  # as llmtrain.engine.environment has it
LOCKED_S = 60.0  # a run of two steps beside a stale lock
WITHIN_S = 10.0  # after a death, and beyond the limit of the watchdog
LONG = {"schedule": {"steps": ENDLESS}, "checkpoint": {"every": 200}, "eval": {"rows": 5, "every": 0}}
PHASES = ("forward", "backward", "update", "saving", "evaluation", "loading")
FOREIGN = ("torchrun", "deepspeed", "accelerate")
DEATHS = ("kill", "exception", "exit 0", "memory")


def dying(kind: str, phase: str) -> int:
    """The number of the trial in which a rank dies so, there."""
    return DEATHS.index(kind) + len(DEATHS) * PHASES.index(phase)


def dead_rank(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R17: one rank dies in some phase, under llmtrain's own launcher; then the run goes on."""
    kind, phase = DEATHS[number % len(DEATHS)], PHASES[number // len(DEATHS) % len(PHASES)]
    changes = {**KILLED, "deepspeed": f"zero{draw.randrange(4)}"}
    run, rank = lab.run(**changes), draw.randrange(2)
    if phase == "loading":
        lab.forked(run, fault={"rank": 0, "place": "update", "step": 8, "kind": "kill"})
        (run.parent / "struck").unlink()
    step = 6 if phase == "saving" else 8 if phase == "evaluation" else draw.randint(2, 8)
    cell = f"{kind} of rank {rank} in {phase}, {changes['deepspeed']}"
    fault = {"rank": rank, "place": phase, "step": step, "kind": kind}
    with Started(run, fault=fault) as started:
        status, _, broken = started.end()
        seconds = _since(started)
        if not broken and seconds is None:
            broken = "the fault never came"
        if not broken and status != 1:
            broken = f"the exit status is {status}"
        if not broken and f"rank {rank} " not in (errors := _errors(started.said)):
            broken = f"rank {rank} is not named: {errors}"
        if not broken and seconds > WITHIN_S:
            broken = f"{seconds:.0f} s until all were gone"
    broken = broken or goes_on(lab, run, lab.golden(**changes)).broken
    return Outcome(broken, seconds or 0.0, cell)


def _since(started: Started) -> float | None:
    """Seconds from the fault to the end of all that was started."""
    at = started.struck_at()
    return None if at is None else time.time() - at


def _errors(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if "error" in line.lower())


HANGS = [
    ("stop", "forward", "gives no sign"),
    ("sleep", "data", "is in data loading"),
    ("sleep", "saving", "is in saving"),
    ("sleep", "backward", "waits in|is in training"),
    ("hold the interpreter", "update", "gives no sign"),
    ("stop", "start-up", "has not come to"),
    ("stop", "agreement", "gives no sign"),
]


def hung_rank(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R18: one rank makes no progress any more; the figure is what passes beyond the limit that was set.

    Then the run goes on.
    """
    kind, place, _ = HANGS[number % len(HANGS)]
    engine = ENGINES[number // len(HANGS) % len(ENGINES)]
    rank = draw.randrange(2)
    changes = {**KILLED, **engine}
    run = lab.run(**changes, health={"hang_s": HANG_S})
    step = 6 if place == "saving" else 5
    fault = {"rank": rank, "place": place, "step": step, "kind": kind}
    cell = f"{kind} of rank {rank} in {place}, {engine['deepspeed']}"
    with Started(run, fault=fault) as started:
        status, _, broken = started.end()
        seconds = _since(started)
        if broken or seconds is None:
            return Outcome(broken or "the fault never came", cell=cell)
        limit = HANG_S * (3 if place in ("saving", "agreement") else 1)
        limit = LEAST_MEET_S if place == "start-up" else limit
        beyond = seconds - limit
        broken = hang_told(started.said, status, rank, number) or _stacks_missing(run, rank, number)
        broken = broken or ("" if beyond < WITHIN_S else f"{beyond:.0f} s late")
    broken = broken or goes_on(lab, run, lab.golden(**changes)).broken
    return Outcome(broken, beyond, cell)


def _stacks_missing(run: Path, hung: int, number: int) -> str:
    """Which log of a rank that still could speak lacks its stack, or the name of the rank that hangs."""
    kind, place, _ = HANGS[number % len(HANGS)]
    for rank in range(2) if kind == "sleep" else [1 - hung]:
        log = (run.parent / f"run/logs/rank-{rank}.log").read_text()
        if not re.search(rf"error: .*\brank {hung} ", log):
            return f"rank {rank} does not name rank {hung} in its log: {log[-500:]}"
        if "most recent call first" not in log and place != "start-up":  # there they wait in no collective
            return f"rank {rank}'s stack is not in its log: {log[-500:]}"
    return ""


def hang_told(said: str, status: int | None, rank: int, number: int) -> str:
    """What is wrong with how a hang was told."""
    wanted = HANGS[number % len(HANGS)][2]
    first = next((line for line in said.splitlines() if re.match("error: (no progress|rank)", line)), "")
    if status != 1:
        return f"the exit status is {status}: {said[-500:]}"
    if not re.search(rf"rank {rank} ({wanted})", first):
        return f"the first line is: {first or said[-500:]}"
    return ""


SLOW_STEPS, STEPS = 40, 80  # two windows, and two more for the recovery
SLICE_S = 0.001  # every step is a slice


def slow_rank(lab: Lab, number: int, draw: random.Random, times: float = 3.0) -> Outcome:
    """R19: one rank is slower for a while; it is told once, and its recovery; the figure is the ratio."""
    engine, kind = ENGINES[number % 5], ("slow", "short of time")[number // 5 % 2]
    ranks = 4 if "parallel" in engine else 2
    rank = draw.randrange(ranks)
    fault = {
        "rank": rank,
        "place": "forward",
        "step": SLOW_STEPS,
        "kind": kind,
        "slice_s": SLICE_S,
        "times": times,
    }
    run = _long_steps(lab, engine)
    cell = f"rank {rank} {kind}, {engine['deepspeed']}"
    broken = lab.forked(run, ranks, fault=fault)
    if broken:
        return Outcome(broken, cell=cell)
    told = _told_slow(run)
    ratio = max((event["ratio"] for event in told), default=0.0)
    if [(event["slow_rank"], event["recovered"]) for event in told] != [(rank, False), (rank, True)]:
        broken = f"told was {told}"
    elif told[0]["step"] > SLOW_STEPS or not any(line.startswith(f"rank {rank} ") for line in _report(run)):
        broken = f"told too late, or not in the report: {told}, {_report(run)}"
    return Outcome(broken, ratio, cell)


def no_slow_rank(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R19: the same runs, undisturbed; nobody is called slow."""
    engine = ENGINES[number % 5]
    run = _long_steps(lab, engine)
    fault = {"rank": -2, "slice_s": SLICE_S}  # nobody's
    broken = lab.forked(run, 4 if "parallel" in engine else 2, fault=fault)
    told = [] if broken else _told_slow(run)
    return Outcome(broken or (f"told was {told}" if told else ""), cell=engine["deepspeed"])


def _long_steps(lab: Lab, engine: dict[str, Any]) -> Path:
    """A run whose forward passes are longer than a scheduler's turn."""
    data = {"train": [{"path": str(lab.dataset)}], "seq_len": 256}
    steps = {"schedule": {"steps": STEPS}, "checkpoint": {"every": STEPS}, "batch": {"rows": 8}}
    return lab.run(**steps, **engine, data=data)


def _told_slow(run: Path) -> list[dict[str, Any]]:
    records = read_metrics(run.parent / "run" / "metrics.jsonl")
    return [record for record in records if "slow_rank" in record]


def _report(run: Path) -> list[str]:
    return account(run.parent / "run").as_text().splitlines()


RESTARTS = "STOP under torchrun --max-restarts 3"
SIGNALS = (
    "launcher",
    "one rank",
    "all",
    "start-up",
    "evaluation",
    "saving",
    "twice",
    "USR1",
    "STOP",
    "limit",
    "torchrun",
    "deepspeed",
    "accelerate",
    RESTARTS,
)


def asked_to_stop(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R21: one agreed checkpoint and status 75 within 25 s, whoever is asked and whenever."""
    how = SIGNALS[number % len(SIGNALS)]
    changes = {**LONG, "eval": {"rows": 5, "every": 1}} if how == "evaluation" else LONG
    if how == "saving":
        changes = {**LONG, "checkpoint": {"every": 1}}
    run = lab.run(**changes)
    limit = {"SLURM_JOB_END_TIME": str(int(time.time()) + 180 + 30)} if how == "limit" else {}
    launcher = how if how in FOREIGN else "torchrun" if how == RESTARTS else "own"
    options = ("--max-restarts", "3") if how == RESTARTS else ()
    with Started(run, launcher, environment=limit, options=options) as started:
        if how == "start-up":
            broken = started.wait_for(lambda: len(started.ranks()) == 2, "two ranks")
            time.sleep(draw.uniform(0.5, 4))
        else:  # a time limit comes whatever step it is
            broken = "" if how == "limit" else started.until_step(draw.randint(3, 60))
        if broken:
            return Outcome(broken, cell=how)
        _ask(started, how)
        status, seconds, broken = started.end(120)
        broken = broken or stopped_well(run, status, seconds, started.said, how)
        return Outcome(broken, 0.0 if how == "limit" else seconds, how)


def _ask(started: Started, how: str) -> None:
    number = signal.SIGUSR1 if how == "USR1" else signal.SIGTERM
    if how in ("STOP", RESTARTS):
        (started.run.parent / "run" / "STOP").touch()
    elif how == "one rank":
        os.kill(started.ranks()[1], number)
    elif how == "all":
        for pid in started.members():
            os.kill(pid, number)
    elif how != "limit":
        started.process.send_signal(number)
    if how == "twice":  # the second request is to end at once
        time.sleep(0.3)
        started.process.send_signal(number)


def stopped_well(run: Path, status: int | None, seconds: float, said: str, how: str) -> str:
    """What is wrong with a run that was asked to stop."""
    if how == "twice":  # the commit may have been made, or not
        return "" if status not in (0, None) else f"the exit status is {status}: {said[-500:]}"
    if how in (*FOREIGN, RESTARTS):  # their own status, which we can't choose
        status = 75 if status not in (0, None) else status
    if status != 75:
        return f"the exit status is {status}: {said[-500:]}"
    if how == RESTARTS and len(ledger(run)["starts"]) != 1:
        return f"{len(ledger(run)['starts'])} starts"
    if seconds > 25 and how != "limit":
        return f"it took {seconds:.0f} s"
    done = losses(run)
    if how == "start-up" and not done:
        return ""  # asked before there was anything to save
    if not done or max(committed(run), default=0) != done[-1][0]:
        return f"steps {done[-1:]} were done, {committed(run)} committed"
    if "stopped on request" not in said:
        return f"it does not say why it ended: {said[-300:]}"
    return ""


FOLLOWED: dict[str, Any] = {  # longer than a rank takes to find its launcher gone
    "schedule": {"steps": 400},
    "checkpoint": {"every": 50, "keep": 2},
    "eval": {"rows": 5, "every": 0},
}
LAYERS = [("own", 0), ("torchrun", 0), ("deepspeed", 0), ("deepspeed", 1), ("accelerate", 0)]


def killed_launcher(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R22: SIGKILL of one layer above the ranks: no orphan after 10 s; the figure is when all were gone.

    Then the run goes on.
    """
    launcher, layer = LAYERS[number % len(LAYERS)]
    run = lab.run(**FOLLOWED)
    with Started(run, launcher) as started:
        broken = started.until_step(2)
        if broken:
            return Outcome(broken, cell=launcher)
        layers = started.layers()
        victim = layers[layer]
        os.kill(victim, signal.SIGKILL)
        status, seconds, broken = started.end(60)
        gone = seconds + getattr(started, "orphan_s", 0.0)
        cell, note = f"{launcher}, layer {layer} of {len(layers)}: exit status {status}", ""
        if status == 0 and (launcher, layer) == ("deepspeed", 1):
            note = "`deepspeed` itself ends with 0 when `deepspeed.launcher.launch` below it was killed"
        elif status == 0 and not broken:
            broken = "the exit status is 0"
    if not broken and losses(run)[-1][0] == FOLLOWED["schedule"]["steps"]:
        broken = "the run was over before it could be ended"
    broken = broken or goes_on(lab, run, lab.golden(**FOLLOWED)).broken
    return Outcome(broken, gone, cell, note)


def stale_lock(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R23: the lock of a build that was killed is told at the start, and nothing waits for it."""
    run = lab.run(schedule={"steps": 2})
    op = draw.choice(["deepspeed_shm_comm", "cpu_adam", "fused_adam", "utils"])
    lock = run.parent / "extensions" / op / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with Started(run, environment={"TORCH_EXTENSIONS_DIR": str(run.parent / "extensions")}) as started:
        status, seconds, broken = started.end(240)
        if not broken and (status != 0 or str(lock) not in started.said):
            broken = f"status {status}, the lock is not named: {started.said[-500:]}"
        if not broken and seconds > LOCKED_S:
            broken = f"it took {seconds:.0f} s"
        return Outcome(broken, seconds, op)


def restarted_by_torchrun(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """Elastic agents: a killed rank makes torchrun start the ranks again; the run is the undisturbed one."""
    changes = {**KILLED, "deepspeed": "zero1"}
    golden, run = lab.golden(**changes), lab.run(**changes)
    fault = {"rank": number % 2, "place": "update", "step": draw.randint(5, 20), "kind": "kill"}
    with Started(run, "torchrun", fault=fault, options=("--max-restarts", "2")) as started:
        status, seconds, broken = started.end(400)
        if not broken and status != 0:
            broken = f"the exit status is {status}: {started.said[-800:]}"
        if not broken and len(ledger(run)["starts"]) != 2:
            broken = f"{len(ledger(run)['starts'])} starts"
        return Outcome(broken or differs(run, golden), seconds)
