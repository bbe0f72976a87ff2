"""`llmtrain doctor`: can this machine train, and what stands in the way. Changes nothing, builds nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain.config.search_path import module_command
from llmtrain.config.shipped import shipped_folder
from llmtrain.engine import nvme
from llmtrain.engine.build_locks import build_locks, extension_folder
from llmtrain.launch import rank_environment, rendezvous_port
from llmtrain.report.environment import device_name, versions
from llmtrain.report.progress import duration, gibibytes

REDUCE_TIMEOUT_S = 120
SHARED_MEMORY = Path("/dev/shm")
LOW_DISK = 10 * 2**30
LOW_SHM = 64 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `good`, `note` (slower or to tidy up) or `bad` (can't train)."""

    name: str
    state: str
    text: str


@dataclass(frozen=True)
class Report:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def trainable(self) -> bool:
        """Whether nothing stands in the way of training."""
        return all(finding.state != "bad" for finding in self.findings)

    def as_json(self) -> str:
        """One JSON object."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"trainable": self.trainable, "findings": findings}, indent=2)

    def as_text(self) -> str:
        """A line per finding; what to paste into a report of a problem."""
        marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
        lines = [f"{marks[found.state]}  {found.name:<14}{found.text}" for found in self.findings]
        verdict = "this machine can train" if self.trainable else "this machine can't train yet: see BAD"
        return "\n".join([*lines, "", verdict])


def examine() -> Report:
    """Looks at everything. Takes some seconds: torch is imported and two processes talk to each other."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _versions,
        _devices,
        _ops,
        _stale_locks,
        _leftovers,
        _memory,
        _disk,
        _all_reduce,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - one broken library must not hide the other findings
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "bad", f"{type(error).__name__}: {error}"))
    return Report(tuple(findings))


def _versions() -> list[Finding]:
    found = versions()
    missing = [name for name in ("torch", "deepspeed", "transformers") if name not in found]
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    findings = [
        Finding("versions", "good", text),
        Finding("python", "good", sys.executable),
        Finding("files", "good", f"recipes, ds_configs, launch, constraints.txt are in {shipped_folder()}"),
    ]
    if missing:
        names = " ".join(missing)
        findings.append(Finding("packages", "bad", f"not installed; run: pip install {names}"))
    return findings


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        reason = "torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
        return [
            Finding("device", "good", f"CPU, {cores} cores, {device_name('cpu')} ({reason})"),
            Finding("precision", "good", "bf16 and fp32; fp16 is refused by DeepSpeed on a CPU"),
        ]
    findings = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = f"compute capability {facts.major}.{facts.minor}"
        text = f"{facts.name}, {gibibytes(facts.total_memory)}, {capability}"
        findings.append(Finding(f"GPU {index}", "good", text))
    half = torch.cuda.is_bf16_supported(including_emulation=False)
    text = "bf16, fp16 and fp32" if half else "fp16 and fp32; this GPU has no bf16, so write precision: fp16"
    findings.append(Finding("precision", "good" if half else "note", text))
    return findings


def _ops() -> list[Finding]:
    """Fast parts: what is there, what would have to be built. Nothing is built, and none is needed."""
    import importlib.util

    import torch

    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    findings = [
        Finding("default path", "good", "builds nothing: torch's own AdamW, attention and collectives"),
        Finding(
            "C++ compiler",
            "good" if compiler else "note",
            compiler or "none; not needed unless a DeepSpeed op is built (offload's CPU Adam, NVMe)",
        ),
    ]
    for package, use in (
        ("liger_kernel", "fused norm, RoPE, MLP and loss"),
        ("triton", "torch.compile on a GPU"),
    ):
        there = importlib.util.find_spec(package) is not None
        cuda = torch.cuda.is_available()
        state = "not installed" if not there else "ready" if cuda else "installed, used on a GPU"
        text = f"{use}: {state}"
        if cuda and not there:
            text += f"; run: pip install {package.replace('_', '-')}"
        findings.append(Finding(package, "note" if cuda and not there else "good", text))
    built = {path.parent.name for path in extension_folder().glob("*/*/*.so")}
    built |= {path.parent.name for path in extension_folder().glob("*/*.so")}
    cpu_adam = "DS_BUILD_CPU_ADAM=1 pip install --force-reinstall --no-deps --no-build-isolation deepspeed"
    for op, build, use in (
        ("cpu_adam", cpu_adam, "offloaded optimizer"),
        ("async_io", f"{nvme.BUILD} (needs libaio's headers: apt-get install libaio-dev)", "NVMe offload"),
    ):
        text = "built" if op in built else f"not built; if you want it: {build}"
        findings.append(Finding(op, "good", f"{use}: {text}"))
    return findings


def _stale_locks() -> list[Finding]:
    """A build that was killed leaves a lock for which every later build of that op waits for ever."""
    findings = []
    for lock, age in build_locks():
        text = f"{lock} is {duration(age)} old; if no build is running, remove it: rm {lock}"
        findings.append(Finding("build lock", "note", text))
    return findings or [Finding("build locks", "good", f"none in {extension_folder()}")]


def _leftovers() -> list[Finding]:
    """DeepSpeed's shared-memory op, which llmtrain turns off, leaves 69 MB a rank and run."""
    files = [path for path in SHARED_MEMORY.glob("deepspeed_*") if path.is_file()]
    if not files:
        return [Finding("/dev/shm", "good", "no files left by DeepSpeed")]
    size = gibibytes(sum(path.stat().st_blocks * 512 for path in files))
    text = f"{len(files)} files left by DeepSpeed hold {size}; if nothing trains: rm /dev/shm/deepspeed_*"
    return [Finding("/dev/shm", "note", text)]


def _memory() -> list[Finding]:
    facts = {}
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        facts[name] = int(rest.split()[0]) * 1024
    text = f"{gibibytes(facts['MemAvailable'])} of {gibibytes(facts['MemTotal'])} free"
    state = "good" if facts["MemAvailable"] > 2 * 2**30 else "note"
    findings = [Finding("memory", state, text)]
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        text = gibibytes(size) + ("" if size > LOW_SHM else "; NCCL wants more, in docker: --shm-size=1g")
        findings.append(Finding("shared memory", "good" if size > LOW_SHM else "note", text))
    return findings


def _disk() -> list[Finding]:
    free = shutil.disk_usage(".").free
    text = f"{gibibytes(free)} free in {Path.cwd()}"
    return [Finding("disk", "good" if free > LOW_DISK else "note", text)]


def _all_reduce() -> list[Finding]:
    import torch

    findings = [_reduce_over("cpu")]
    if torch.cuda.device_count() >= 2:
        findings.append(_reduce_over("cuda"))
    return findings


def _reduce_over(device: str) -> Finding:
    """Two ranks add up a number each; a second time when another program took the port in between."""
    name = f"2 ranks, {'gloo' if device == 'cpu' else 'nccl'}"
    for _ in range(2):
        statuses, said = _two_ranks(device)
        if statuses == [0, 0]:
            return Finding(name, "good", "an all-reduce gave the right sum")
        if not any("in use" in line for line in said):
            break
    if None in statuses:
        return Finding(name, "bad", f"no answer in {REDUCE_TIMEOUT_S} s: does a firewall block 127.0.0.1?")
    errors = [line for line in said if "Error" in line or "error" in line]
    why = (errors or said or ["no message"])[-1]
    return Finding(name, "bad", f"the ranks ended with {statuses[0]} and {statuses[1]}: {why}")


def _two_ranks(device: str) -> tuple[list[int | None], list[str]]:
    """How two ranks that met by the engine's own way in ended (None: not in time), and their words."""
    port = rendezvous_port({})
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank-{rank}.log") for rank in range(2)]
        ranks = []
        for rank, log in enumerate(logs):
            with log.open("wb") as sink:
                command = [*module_command("llmtrain.doctor"), device]
                environment = rank_environment(rank, 2, port, os.environ)
                ranks.append(subprocess.Popen(command, env=environment, stdout=sink, stderr=sink))
        deadline = time.monotonic() + REDUCE_TIMEOUT_S
        while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
            time.sleep(0.05)
        statuses = [rank.poll() for rank in ranks]
        for process in ranks:
            process.kill()
            process.wait()
        said = [
            line
            for log in logs
            for line in log.read_text(errors="replace", encoding="utf-8").splitlines()
            if line.strip()
        ]
    return statuses, said


def _one_rank(device: str) -> int:
    import torch

    from llmtrain.config.world import world_from_environment
    from llmtrain.engine import start

    comm = start(world_from_environment(os.environ), device, timeout_s=REDUCE_TIMEOUT_S / 2)
    found = comm.sum_on_device(torch.tensor([comm.rank + 1.0]))
    comm.barrier()
    return 0 if found.item() == 3.0 else 1


if __name__ == "__main__":
    ended = _one_rank(sys.argv[1])
    sys.stdout.flush()
    os._exit(ended)  # the answer is known; gloo's threads may abort a process that takes its leave slowly
