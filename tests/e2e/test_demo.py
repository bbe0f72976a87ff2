"""What `make demo` runs after the installation, shortened, on a machine without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain import demo
from llmtrain.config.load import load_run
from llmtrain.errors import InputError
from llmtrain.plan.plan import make_plan
from llmtrain.report.planned import shape_of

ROOT = Path(__file__).parents[2]


def test_demo(tmp_path: Path) -> None:
    empty = tmp_path / "no-tools"
    empty.mkdir()
    environment = {**os.environ, "PATH": str(empty), "CXX": "/nonexistent", "CC": "/nonexistent"}
    environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path / "extensions")
    left_before = set(Path("/dev/shm").glob("deepspeed*"))
    command = [sys.executable, "-m", "llmtrain", "demo", "schedule.steps=3", "eval.rows=8"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ending = done.stdout[done.stdout.index("Done in ") :]
    for part in (
        "The model is in runs/demo/hf",
        "the trained model",
        "a unigram model",
        "the model untrained",
        "xz -9e, each file alone",
        "loss: nats per token",
        "bin/activate",  # there is no llmtrain on this PATH
        "llmtrain generate runs/demo/hf",
    ):
        assert part in ending
    assert [done.stdout.count(f"--- {number} of 3, given") for number in (1, 2, 3)] == [1, 1, 1]
    assert all(prompt in done.stdout for prompt in demo.PROMPTS)
    assert (tmp_path / "runs" / "demo" / "hf" / "model.safetensors").is_file()
    assert not (tmp_path / "extensions").exists(), "something was built"
    assert set(Path("/dev/shm").glob("deepspeed*")) <= left_before


def test_the_demo_is_what_it_is_said_to_be() -> None:
    plan = make_plan(load_run(ROOT / "recipes" / demo.RECIPE), 2, "cpu", environ={})
    shape = shape_of(plan.run.model.config or {}, vocab=2048)
    assert shape is not None
    assert 3_000_000 <= shape.parameters <= 6_000_000
    assert plan.topology.zero_stage == 1
    assert plan.run.precision == "bf16"


def test_a_demo_without_its_recipes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "RECIPE", "nowhere.yaml")
    with pytest.raises(InputError, match="recipes/nowhere.yaml.*no recipe of this name"):
        demo.demo(2)
