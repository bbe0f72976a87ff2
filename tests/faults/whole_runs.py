"""Whole runs of a tiny llama to which something is done: forked ranks, or real processes of any launcher.

Processes are found by a mark in their environment, so that an orphan is found whoever its parent is now.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "surface"))
from small_runs import ROOT, SHAPE, build_dataset, write_run  # noqa: E402
from worlds import RankFailedError, Worlds  # noqa: E402

from llmtrain.report.metrics import read_metrics  # noqa: E402

MARK = "LLMTRAIN_FAULT_TRIAL"
BIN = Path(sys.executable).parent
FAULTY = str(Path(__file__).with_name("rank_faulty.py"))
ORPHAN_S = 10.0  # so long after the end of what was started a rank may live
ENDLESS = 1_000_000  # steps of a run that only a fault ends
ENGINES = [
    *[{"deepspeed": f"zero{stage}"} for stage in range(4)],
    {"deepspeed": "pipeline", "parallel": {"pipeline": 2}},
]
DROPOUT = {  # a model with it
    **{key: value for key, value in SHAPE.items() if key != "num_key_value_heads"},
    "model_type": "gpt_neox",
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}


class Lab:
    """A dataset, a server of forked ranks, and the runs that were never disturbed."""

    def __init__(self, folder: Path, worlds: Worlds):
        self.folder, self.worlds = folder, worlds
        self.dataset = build_dataset(folder)
        self._count = 0
        self._golden: dict[str, Path] = {}

    def run(self, **changes: Any) -> Path:
        """A run file in a folder of its own; its run folder is `run` beside it."""
        self._count += 1
        folder = self.folder / f"trial-{self._count}"
        folder.mkdir()
        return write_run(folder, self.dataset, **changes)

    def golden(self, ranks: int = 2, **changes: Any) -> Path:
        """The same run, never disturbed."""
        key = json.dumps([ranks, changes])
        if key not in self._golden:
            path = self.run(**changes)
            said = self.forked(path, ranks)
            assert not said, f"the undisturbed run failed: {said}"
            self._golden[key] = path
        return self._golden[key]

    def forked(
        self,
        run: Path,
        ranks: int = 2,
        fault: dict[str, Any] | None = None,
        limit_s: float = 240,
        arguments: tuple[str, ...] = (),
        environment: dict[str, dict[str, str]] | None = None,
    ) -> str:
        """Trains in forked ranks, killed with SIGKILL after `limit_s`; an empty string, or how it failed."""
        words = [str(run), *arguments]
        fault = fault and {"mark": str(run.parent / "struck"), **fault}
        try:
            self.worlds.run(
                "faults/rank_faulty.py:train",
                ranks,
                limit_s,
                fault=fault or {},
                arguments=words,
                environment=environment,
            )
        except RankFailedError as error:
            return str(error)
        return ""


def losses(run: Path) -> list[tuple[int, str, str, int, str]]:
    """Step, loss, gradient norm, tokens and lr of each step that stands in the metrics, to the last bit."""
    records = [r for r in read_metrics(run.parent / "run" / "metrics.jsonl") if "loss" in r]
    return [(r["step"], repr(r["loss"]), repr(r["grad_norm"]), r["tokens"], repr(r["lr"])) for r in records]


def evaluations(run: Path) -> list[tuple[int, str]]:
    """Step and loss of each evaluation that stands in the run's metrics, to the last bit."""
    records = read_metrics(run.parent / "run" / "metrics.jsonl")
    return [(r["step"], repr(r["eval_loss"])) for r in records if "eval_loss" in r]


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints that count."""
    return sorted(int(path.parent.name[-8:]) for path in run.parent.glob("run/checkpoints/step-*/COMMIT"))


def weights(run: Path) -> dict[str, bytes]:
    """The tensors of the newest checkpoint, file by file."""
    newest = run.parent / f"run/checkpoints/step-{committed(run)[-1]:08d}"
    return {path.name: path.read_bytes() for path in newest.glob("rank-*.safetensors")}


def ledger(run: Path) -> dict[str, Any]:
    """What befell the run, as it says itself."""
    return dict(json.loads((run.parent / "run" / "ledger.json").read_text()))


class Started:
    """A run of real processes. `launcher` is own, torchrun, deepspeed, accelerate, or words of a command."""

    def __init__(
        self,
        run: Path,
        launcher: str = "own",
        fault: dict[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        options: tuple[str, ...] = (),
    ):
        self.run, self.mark = run, run.parent / "struck"
        self._id = uuid.uuid4().hex
        self._shared = set(os.listdir("/dev/shm"))
        injected = [FAULTY, json.dumps({"mark": str(self.mark), **fault} if fault else {})]
        command = [*_command(launcher, injected, fault is not None, options), str(run), *arguments]
        self._out = (run.parent / "said").open("ab")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                MARK: self._id,
                **(environment or {}),
            },
            stdout=self._out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *failure: object) -> None:
        for pid in self.members():
            _kill(pid)
        self.process.wait(30)
        self._out.close()

    @property
    def said(self) -> str:
        """What stood on the screen."""
        return (self.run.parent / "said").read_text(errors="replace")

    def members(self) -> dict[int, dict[str, str]]:
        """Every process of this run that lives, with its environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(word.split("=", 1) for word in words if "=" in word)
                if environment.get(MARK) == self._id and alive(int(entry.name)):
                    found[int(entry.name)] = environment
        return found

    def ranks(self) -> dict[int, int]:
        """Rank → process id, of those that are there."""
        members = self.members()
        return {int(each["RANK"]): pid for pid, each in members.items() if each.get("RANK", "").isdigit()}

    def layers(self) -> list[int]:
        """The processes above the ranks, outermost first."""
        return sorted(pid for pid, each in self.members().items() if "RANK" not in each)

    def wait_for(self, condition: Callable[[], object], what: str, limit_s: float = 240) -> str:
        """Empty once the condition holds; else what did not happen."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end or self.process.poll() is not None:
                return f"never happened: {what}; {self.said[-800:]}"
            time.sleep(0.05)
        return ""

    def until_step(self, step: int) -> str:
        """Empty once that step stands in the metrics."""
        return self.wait_for(lambda: any(s >= step for s, *_ in losses(self.run)), f"step {step}")

    def end(self, limit_s: float = 240) -> tuple[int | None, float, str]:
        """Exit status, seconds until it was there, and which promise of every end broke.

        What was started may be gone already; orphans and files in /dev/shm are looked for then.
        """
        began = time.monotonic()
        try:
            status: int | None = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None, limit_s, f"no end after {limit_s:.0f} s; {self.said[-800:]}"
        seconds, deadline = time.monotonic() - began, time.monotonic() + ORPHAN_S
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.orphan_s = time.monotonic() - began - seconds
        left = self.members()
        if left:
            return status, seconds, f"{len(left)} orphans live after {ORPHAN_S:.0f} s"
        shared = [name for name in set(os.listdir("/dev/shm")) - self._shared if _nobodys(name)]
        return status, seconds, f"left in /dev/shm: {shared}" if shared else ""

    def struck_at(self) -> float | None:
        """When the fault came, as time.time() has it."""
        return float(self.mark.read_text()) if self.mark.exists() else None


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _nobodys(name: str) -> bool:
    """Whether a file of /dev/shm has no process any more.

    Other programs of this machine use it too. Semaphores of Python's multiprocessing are always theirs:
    training makes none.
    """
    if name.startswith("sem.mp-"):
        return False
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text(errors="replace"):
                return False
    return Path("/dev/shm", name).exists()


def free_port() -> str:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _command(launcher: str, injected: list[str], faulty: bool, options: tuple[str, ...]) -> list[str]:
    """The launcher's words for two ranks, up to the run file."""
    if launcher == "own":
        head = (
            [sys.executable, injected[0], "--own", injected[1]]
            if faulty
            else [str(BIN / "llmtrain"), "train"]
        )
        return [*head, "--ranks", "2", *options]
    program = injected if faulty else ["-m", "llmtrain.train"]
    port = free_port()
    if launcher == "torchrun":
        return [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", port, *options, *program]
    if launcher == "deepspeed":
        module = program if faulty else ["--module", "llmtrain.train"]
        return [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port, *options, *module]
    assert launcher == "accelerate", launcher
    own = [
        "--config_file",
        "launch/accelerate/zero1.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        port,
    ]
    return [str(BIN / "accelerate"), "launch", *own, *options, *program]
