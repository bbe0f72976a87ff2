"""The launch scripts say exactly this to the launchers (stand-ins on PATH print what they were given)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
RUN = ["recipes/1b.yaml", "seed=2"]


def said(
    tmp_path: Path, script: str, arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with every launcher replaced by a program that prints its own command line."""
    for name in ("deepspeed", "torchrun", "accelerate", "srun", "llmtrain"):
        stand_in = tmp_path / name
        stand_in.write_text('#!/bin/sh\necho "$(basename $0) $* ${PYTHONSAFEPATH:-}"\n')
        stand_in.chmod(0o755)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node-7\necho node-8\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env={"PATH": path, **environment}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "line"),
    [
        ("deepspeed.sh", RUN, {}, "deepspeed"),
        ("deepspeed.sh", RUN, {"GPUS": "4"}, "deepspeed --num_gpus 4"),
        ("deepspeed.sh", RUN, {"HOSTFILE": "hosts"}, "deepspeed --hostfile hosts"),
        ("torchrun.sh", RUN, {}, "torchrun --standalone --nproc-per-node gpu"),
        (
            "torchrun.sh", RUN, {"NODES": "2", "HEAD": "a:1", "GPUS": "8"},
            "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint a:1 --max-restarts 0 --nproc-per-node 8",
        ),
        (
            "accelerate.sh", ["launch/accelerate/zero3.yaml", *RUN], {"PROCESSES": "16"},
            "accelerate launch --config_file launch/accelerate/zero3.yaml --num_processes 16",
        ),
        (
            "slurm.sbatch", RUN, {"SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_ID": "5"},
            "srun --kill-on-bad-exit=1",
        ),
    ],
)  # fmt: skip
def test_launcher_is_called_so(
    tmp_path: Path, script: str, arguments: list[str], environment: dict[str, str], line: str
) -> None:
    done = said(tmp_path, script, arguments, **environment)
    assert done.returncode == 0, done.stderr
    entry = {
        "deepspeed.sh": "--module llmtrain.train",
        "accelerate.sh": "-m llmtrain.train",
        "torchrun.sh": "--no-python llmtrain train",  # no `python -m`, which searches the working folder
        "slurm.sbatch": "llmtrain train",
    }[script]
    safe = [] if script == "slurm.sbatch" else ["1"]
    assert done.stdout.split() == [*line.split(), *entry.split(), *RUN, *safe]


def test_slurm_takes_the_environment_of_a_checkout_or_the_one_it_was_called_in(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    own = tmp_path / ".venv" / "bin" / "llmtrain"
    job = {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "5", "PWD": str(tmp_path)}
    words = 'srun() { command -v llmtrain; }; exec() { "$@"; }; . ' + str(LAUNCH / "slurm.sbatch") + " r.yaml"
    said(tmp_path, "slurm.sbatch", [])  # makes the stand-ins
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def found(path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env={"PATH": path, **job}, capture_output=True, text=True
        )

    assert found(path).stdout.strip() == str(tmp_path / "llmtrain")
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert found(path).stdout.strip() == str(own)
    own.unlink()
    (tmp_path / "llmtrain").unlink()
    nowhere = found(f"{tmp_path}:/usr/bin:/bin")
    assert nowhere.returncode == 2 and "llmtrain is not on the PATH: activate" in nowhere.stderr


@pytest.mark.parametrize("script", ["deepspeed.sh", "torchrun.sh", "accelerate.sh", "slurm.sbatch"])
def test_script_without_a_run_says_how_to_use_it(tmp_path: Path, script: str) -> None:
    done = said(tmp_path, script, [])
    assert done.returncode != 0
    assert "usage:" in done.stderr


def test_kubernetes_job_is_a_torchrun_of_the_same_entry() -> None:
    job = yaml.safe_load((LAUNCH / "k8s.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert worker["containers"][0]["command"][:3] == ["torchrun", "--no-python", "llmtrain"]
    assert {mount["name"] for mount in worker["containers"][0]["volumeMounts"]} == {
        v["name"] for v in worker["volumes"]
    }
