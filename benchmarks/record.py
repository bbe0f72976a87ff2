"""How a benchmark says where it ran, prints its Markdown, and adds it to the recorded results."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))


@lru_cache
def device_name() -> str:
    """The GPU's own name, or the CPU's. Asked outside torch, so that this process takes no device memory."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return (
            subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
        )
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> str:
    """One line: device, cores, load, and the versions that matter."""
    versions = []
    for package in ("torch", "deepspeed", "transformers", "liger_kernel", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    software = ", ".join([f"Python {platform.python_version()}", *versions])
    return f"{device_name()}; {cores} CPU cores, load {load}; {software}"


def publish(title: str, command: str, body: str, record: bool) -> None:
    """Prints a section of Markdown and, when asked, appends it to results/DEVICE-DATE.md."""
    today = datetime.date.today().isoformat()
    section = f"## {title}\n\n    {command}\n\n{body}\n"
    print(section, flush=True)
    if not record:
        return
    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    path = RESULTS / f"{name}-{today}.md"
    RESULTS.mkdir(exist_ok=True)
    head = "" if path.exists() else f"# {device_name()}, {today}\n\n"
    with path.open("a") as file:
        file.write(f"{head}{section}\n")
