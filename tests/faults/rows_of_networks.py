"""Rows of the fault table that are about the network between two machines, which are network namespaces here.

See rows_of_state for what a row is. They take root. Where the kernel lacks netem, packets can't be lost by a
setting: so the cable is two TUN devices, and a thread of ours carries each packet from one to the other, or
does not.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import re
import select
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

from rows_of_processes import HANG_S, LONG, WITHIN_S
from rows_of_state import KILLED, NotHereError, Outcome
from whole_runs import BIN, ROOT, Lab, free_port, losses

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
RANKS_START_S = 240.0


def _words(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command.split(), capture_output=True, text=True)


class Cable:
    """Carries packets between two devices; `loss` and `delay_s` may be changed at any time."""

    def __init__(self, names: list[str], seed: int):
        self.loss, self.delay_s = 0.0, 0.0
        self._draw = random.Random(seed)
        self._ends: list[int] = []
        for name in names:
            try:
                end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            except OSError as error:
                raise NotHereError(f"no TUN devices here: {error}") from error
            self._ends.append(end)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._closed = threading.Event()

    def start(self) -> None:
        """Packets are carried from now on."""
        self._thread.start()

    def close(self) -> None:
        """No packet is carried any more, and the devices are gone."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # when it comes, number, to which end, packet
        number = 0
        while not self._closed.is_set():
            wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.1
            for end in select.select(self._ends, [], [], min(wait_s, 0.1))[0]:
                packet, number = os.read(end, 65536), number + 1
                if self._draw.random() >= self.loss:
                    other = self._ends[1 - self._ends.index(end)]
                    heapq.heappush(under_way, (time.monotonic() + self.delay_s, number, other, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(under_way)
                os.write(end, packet)


class Machines:
    """Two network namespaces with one cable between them; a rank runs on each."""

    def __init__(self, seed: int = 0):
        self._id, self._seed = f"llm{os.getpid() % 10000}", seed
        self._names = [f"{self._id}a", f"{self._id}b"]
        self.ranks: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Machines:
        for name in self._names:
            done = _words(f"ip netns add {name}")
            if done.returncode:
                self._remove()
                raise NotHereError(f"no network namespaces here: {done.stderr.strip()}")
        try:
            self.cable = Cable([f"t{name}" for name in self._names], self._seed)
        except NotHereError:
            self._remove()
            raise
        for number, name in enumerate(self._names, 1):
            _words(f"ip link set t{name} netns {name}")
            _words(f"ip -n {name} addr add 10.77.0.{number}/24 dev t{name}")
            _words(f"ip -n {name} link set t{name} up")
            _words(f"ip -n {name} link set lo up")
        self.cable.start()
        self._port = free_port()
        return self

    def __exit__(self, *failure: object) -> None:
        for rank in self.ranks.values():
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
        self.cable.close()
        self._remove()

    def _remove(self) -> None:
        for name in self._names:
            _words(f"ip netns del {name}")

    def start(self, rank: int, run: Path) -> None:
        """Starts a rank on its own machine."""
        name = self._names[rank]
        environment = {
            **os.environ,
            **{key: str(value) for key, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items()},
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": self._port,
            "GLOO_SOCKET_IFNAME": f"t{name}",
            "TP_SOCKET_IFNAME": f"t{name}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        command = ["ip", "netns", "exec", name, str(BIN / "python"), "-m", "llmtrain.train", str(run)]
        with (run.parent / f"said-{rank}").open("wb") as out:
            self.ranks[rank] = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def until_step(self, step: int, run: Path) -> str:
        """Empty once that step stands in the metrics; else what was said."""
        end = time.monotonic() + RANKS_START_S
        while not any(done >= step for done, *_ in losses(run)):
            if time.monotonic() > end or any(rank.poll() is not None for rank in self.ranks.values()):
                return f"step {step} never came: {said(run)[-800:]}"
            time.sleep(0.1)
        return ""

    def end(self, limit_s: float) -> list[int | None]:
        """The ranks' statuses; None for one that lives after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and any(rank.poll() is None for rank in self.ranks.values()):
            time.sleep(0.05)
        return [self.ranks[number].poll() for number in sorted(self.ranks)]


def said(run: Path) -> str:
    """What both ranks said."""
    return "".join(_said(run, rank) for rank in range(2))


def _said(run: Path, rank: int) -> str:
    path = run.parent / f"said-{rank}"
    return path.read_text() if path.exists() else ""


def cut_network(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R20: the network between two machines is cut; both ranks end, and say so."""
    strategy = f"zero{number % 4}"
    run = lab.run(**{**LONG, "deepspeed": strategy, "health": {"hang_s": HANG_S}})
    with Machines() as machines:
        for rank in range(2):
            machines.start(rank, run)
        broken = machines.until_step(1, run)
        if broken:
            return Outcome(broken, cell=strategy)
        time.sleep(draw.uniform(0, 1))
        machines.cable.loss = 1.0
        began = time.monotonic()
        statuses = machines.end(120)
        seconds = time.monotonic() - began - HANG_S
    told = ["error" in _said(run, rank) + _log(run, rank) for rank in range(2)]  # one speaks for both
    if statuses != [1, 1] or not all(told):
        return Outcome(f"statuses {statuses}, told by {told}: {said(run)[-500:]}", cell=strategy)
    return Outcome(f"{seconds:.0f} s late" if seconds > WITHIN_S else "", seconds, strategy)


def _log(run: Path, rank: int) -> str:
    path = run.parent / f"run/logs/rank-{rank}.log"
    return path.read_text() if path.exists() else ""


BAD_NETWORKS = ("loses 5 %", "takes 200 ms", "is away for 3 s", "comes late", "is blocked")


def bad_network(lab: Lab, number: int, draw: random.Random) -> Outcome:
    """R20: the network is bad, and the run ends as if it were not; or nobody can meet, and both say so."""
    how, strategy = BAD_NETWORKS[number % 5], f"zero{number // 5 % 4}"
    changes = {**KILLED, "schedule": {"steps": 6}, "deepspeed": strategy}
    run = lab.run(**changes, health={"hang_s": HANG_S if how == "is blocked" else 120})
    cell = f"{how}, {strategy}"
    with Machines(number) as machines:
        machines.cable.loss = {"loses 5 %": 0.05, "is blocked": 1.0}.get(how, 0.0)
        machines.cable.delay_s = 0.2 if how == "takes 200 ms" else 0.0
        began = time.monotonic()
        machines.start(1, run)
        time.sleep(draw.uniform(8, 15) if how == "comes late" else 0)  # longer than rank 1 needs to be there
        machines.start(0, run)
        if how == "is away for 3 s":
            machines.until_step(2, run)
            machines.cable.loss = 1.0
            time.sleep(3)
            machines.cable.loss = 0.0
        statuses = machines.end(600)
        seconds = time.monotonic() - began
    if how == "is blocked":
        where = r"10\.77\.0\.1:\d+ after 60 s"
        good = statuses == [1, 1] and all(
            re.search(f"error: rank {rank} has not come to {where}", said(run)) for rank in range(2)
        )
        return Outcome("" if good else f"statuses {statuses}: {said(run)[-800:]}", seconds, cell)
    if statuses != [0, 0]:
        return Outcome(f"statuses {statuses}: {said(run)[-800:]}", seconds, cell)
    golden = losses(lab.golden(**changes))
    return Outcome("" if losses(run) == golden else f"{losses(run)} is not {golden}", seconds, cell)
