"""The GPU session needs no package but those that its machine has or that are carried to it as wheels."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "benchmarks" / "gpu_image.txt"

# Hides every installed package that is in no list, then does what the session does on one rank: the modules
# of the launcher's entry and of each program, a step, a checkpoint.
PROGRAM = """
import importlib.machinery, importlib.metadata, os, re, sys
allowed = set(sys.argv[1].split(","))
def plain(name): return re.sub(r"[-_.]+", "-", name).lower()
hidden = {
    top for top, dists in importlib.metadata.packages_distributions().items()
    if not {plain(each) for each in dists} & allowed
}
if sys.argv[2]:
    hidden.add(sys.argv[2])
find = importlib.machinery.PathFinder.find_spec
def among_listed(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(among_listed)
os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
import llmtrain.train, llmtrain.cli, llmtrain.checkpoint, llmtrain.report.run_log
import step_time, gpu_kernels, gpu_profile, gpu_zero
import tempfile
from pathlib import Path
with tempfile.TemporaryDirectory() as folder:
    from presets import PRESETS
    preset = PRESETS["tiny"]
    spec = gpu_zero.Spec(
        "llmtrain:auto", "", preset.config, 16, 2, 1, 0, 1, "bf16", "zero3", folder
    )
    engine = gpu_zero.open_llmtrain(spec)
    assert engine.train_step(gpu_zero.RandomRows(spec, 0), 1e-3).loss > 0
    gpu_zero.save(engine, spec, Path(folder) / "run")
print("audited")
sys.stdout.flush()
os._exit(0)
"""


def listed() -> set[str]:
    """Both lists, and what the image's packages need themselves; wheels are carried without their needs."""
    image, carried = (
        set(re.findall(r"^[a-z0-9-]+$", part, re.MULTILINE)) for part in LISTS.read_text().split("[carried]")
    )
    found, left = set(), [*image]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += needs(name)
    return found | carried


def needs(name: str) -> list[str]:
    try:
        required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # only that machine has it
        return []
    names = [re.match(r"[\w.-]+", each) for each in required if "extra ==" not in each]
    return [re.sub(r"[-_.]+", "-", each[0]).lower() for each in names if each]


def audited(hidden: str = "") -> subprocess.CompletedProcess[str]:
    allowed = ",".join(sorted({*listed(), "llmtrain"}))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, allowed, hidden],
        cwd=ROOT / "benchmarks", env={"PYTHONPATH": f"{ROOT}:{ROOT}/benchmarks"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_a_gpu_session_needs_no_package_that_its_machine_lacks() -> None:
    done = audited()
    assert done.stdout.endswith("audited\n"), done.stderr[-2000:]


def test_the_audit_sees_a_package_that_is_missing() -> None:
    """pydantic needs typing_inspection, which that machine lacks."""
    done = audited("typing_inspection")
    assert done.returncode != 0 and "No module named 'typing_inspection'" in done.stderr
