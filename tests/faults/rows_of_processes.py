"""Rows of the fault table that are about processes: ranks that die or hang, signals, launchers, networks.

Each trial starts real processes; see rows_of_state for what a row is. The figure is in seconds.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

from rows_of_state import KILLED, NotHereError, Outcome, differs
from whole_runs import BIN, ENDLESS, ROOT, Lab, Started, committed, free_port, ledger, losses

HANG_S = 8.0
WITHIN_S = 10.0  # after a death, and beyond the limit of the watchdog
LONG = {"schedule": {"steps": ENDLESS}, "checkpoint": {"every": 200}, "eval": {"rows": 5, "every": 0}}
PHASES = ("forward", "backward", "update", "saving", "evaluation", "loading")
DEATHS = ("kill", "exception", "exit 0", "memory")


def dying(kind: str, phase: str) -> int:
    """The number of the trial in which a rank dies so, there."""
    return DEATHS.index(kind) + len(DEATHS) * PHASES.index(phase)


def dead_rank(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R17: one rank dies in some phase, under llmtrain's own launcher."""
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
        if not broken and seconds > 2 * WITHIN_S:  # twice: the machine may be busy
            broken = f"{seconds:.0f} s until all were gone"
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
]
ENGINES = [
    *[{"deepspeed": f"zero{stage}"} for stage in range(4)],
    {"deepspeed": "pipeline", "parallel": {"pipeline": 2}},
]


def hung_rank(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R18: one rank makes no progress any more; the figure is what passes beyond the limit that was set."""
    kind, place, _ = HANGS[number % len(HANGS)]
    engine = ENGINES[number // len(HANGS) % len(ENGINES)]
    rank = draw.randrange(2)
    run = lab.run(**{**KILLED, **engine, "health": {"hang_s": HANG_S}})
    step = 6 if place == "saving" else 5
    fault = {"rank": rank, "place": place, "step": step, "kind": kind}
    cell = f"{kind} of rank {rank} in {place}, {engine['deepspeed']}"
    with Started(run, fault=fault) as started:
        status, _, broken = started.end()
        seconds = _since(started)
        if broken or seconds is None:
            return Outcome(broken or "the fault never came", cell=cell)
        beyond = seconds - HANG_S * (3 if place == "saving" else 1)
        broken = hang_told(started.said, status, rank, number)
        return Outcome(broken or ("" if beyond < 2 * WITHIN_S else f"{beyond:.0f} s late"), beyond, cell)


def hang_told(said: str, status: int | None, rank: int, number: int) -> str:
    """What is wrong with how a hang was told."""
    wanted = HANGS[number % len(HANGS)][2]
    first = next((line for line in said.splitlines() if line.startswith("error: no progress")), "")
    if status != 1:
        return f"the exit status is {status}: {said[-500:]}"
    if not re.search(rf"rank {rank} ({wanted})", first):
        return f"the first line is: {first or said[-500:]}"
    return ""


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
)


def asked_to_stop(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R21: one agreed checkpoint and status 75 within 25 s, whoever is asked and whenever."""
    how = SIGNALS[number % len(SIGNALS)]
    changes = {**LONG, "eval": {"rows": 5, "every": 1}} if how == "evaluation" else LONG
    if how == "saving":
        changes = {**LONG, "checkpoint": {"every": 1}}
    run = lab.run(**changes)
    limit = {"SLURM_JOB_END_TIME": str(int(time.time()) + 180 + 30)} if how == "limit" else {}
    launcher = how if how in ("torchrun", "deepspeed", "accelerate") else "own"
    with Started(run, launcher, environment=limit) as started:
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
    if how == "STOP":
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
    if how in ("torchrun", "deepspeed", "accelerate"):  # their own status, which we can't choose
        status = 75 if status not in (0, None) else status
    if status != 75:
        return f"the exit status is {status}: {said[-500:]}"
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


LAYERS = [("own", 0), ("torchrun", 0), ("deepspeed", 0), ("deepspeed", 1), ("accelerate", 0)]


def killed_launcher(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R22: SIGKILL of one layer above the ranks: no orphan after 10 s; the figure is when all were gone."""
    launcher, layer = LAYERS[number % len(LAYERS)]
    run = lab.run(**LONG)
    with Started(run, launcher) as started:
        broken = started.until_step(2)
        if broken:
            return Outcome(broken, cell=launcher)
        layers = started.layers()
        victim = layers[layer]
        os.kill(victim, signal.SIGKILL)
        status, seconds, broken = started.end(60)
        gone = seconds + getattr(started, "orphan_s", 0.0)
        cell = f"{launcher}, layer {layer} of {len(layers)}: exit status {status}"
        if status == 0 and (launcher, layer) == ("deepspeed", 1):
            note = "`deepspeed` itself ends with 0 when `deepspeed.launcher.launch` below it was killed"
            return Outcome(broken, gone, cell, note)  # no rank can change that
        return Outcome(broken or (f"the exit status is {status}" if status == 0 else ""), gone, cell)


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


def _words(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command.split(), capture_output=True, text=True)


class Namespaces:
    """Two network namespaces with one cable between them, as two machines."""

    def __enter__(self) -> Namespaces:
        self.id = f"llm{os.getpid() % 10000}"
        a, b = self.names = [f"{self.id}a", f"{self.id}b"]
        made = [
            f"ip netns add {a}",
            f"ip netns add {b}",
            f"ip link add v{a} netns {a} type veth peer name v{b} netns {b}",
        ]
        for command in made:
            done = _words(command)
            if done.returncode:
                self.__exit__()
                raise NotHereError(f"no network namespaces here: {done.stderr.strip()}")
        for number, name in enumerate(self.names, 1):
            _words(f"ip -n {name} addr add 10.77.0.{number}/24 dev v{name}")
            _words(f"ip -n {name} link set v{name} up")
            _words(f"ip -n {name} link set lo up")
        return self

    def __exit__(self, *failure: object) -> None:
        for name in self.names:
            _words(f"ip netns del {name}")

    def cut(self) -> None:
        """Pulls the cable."""
        _words(f"ip -n {self.names[1]} link set v{self.names[1]} down")

    def start(self, rank: int, run: Path, port: str) -> subprocess.Popen[bytes]:
        """A rank on its own machine."""
        name = self.names[rank]
        environment = {
            **os.environ,
            **{key: str(value) for key, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items()},
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": f"v{name}",
            "TP_SOCKET_IFNAME": f"v{name}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        command = ["ip", "netns", "exec", name, str(BIN / "python"), "-m", "llmtrain.train", str(run)]
        with (run.parent / f"said-{rank}").open("wb") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def cut_network(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R20: the network between two machines is cut; both ranks end, and say so."""
    run = lab.run(**{**LONG, "deepspeed": f"zero{number % 4}", "health": {"hang_s": HANG_S}})
    with Namespaces() as network:
        port = free_port()
        ranks = [network.start(rank, run, port) for rank in range(2)]
        try:
            deadline = time.monotonic() + 240
            while not losses(run) and time.monotonic() < deadline and all(r.poll() is None for r in ranks):
                time.sleep(0.1)
            time.sleep(draw.uniform(0, 1))
            if not losses(run) or any(r.poll() is not None for r in ranks):
                return Outcome(f"it never trained: {(run.parent / 'said-0').read_text()[-800:]}")
            network.cut()
            began = time.monotonic()
            statuses = [rank.wait(120) for rank in ranks]
            seconds = time.monotonic() - began - HANG_S
        except subprocess.TimeoutExpired:
            return Outcome("a rank hangs 120 s after the cut")
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    os.killpg(rank.pid, signal.SIGKILL)
    said = "".join((run.parent / f"said-{rank}").read_text() for rank in range(2))
    broken = "" if statuses == [1, 1] and "error" in said else f"statuses {statuses}: {said[-500:]}"
    return Outcome(broken, seconds, f"zero{number % 4}")
