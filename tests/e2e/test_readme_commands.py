"""The README's own commands, typed in its order in an empty folder, only smaller."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import commands

ROOT = Path(__file__).parents[2]
# What makes each command small enough for a test; everything else is as the README has it.
SMALLER = {
    "llmtrain data build": ["sources.0.limit=150", "workers=2", "tokenizer.vocab_size=600"],
    "llmtrain train": [
        "schedule.steps=4",
        "data.seq_len=64",
        "model.config.hidden_size=64",
        "model.config.intermediate_size=128",
        "model.config.num_hidden_layers=2",
        "checkpoint.every=2",
        "eval.rows=8",
    ],
    "llmtrain eval runs/demo --data data/stdlib --rolling": [],
    "llmtrain eval": ["--rows", "8"],
    "llmtrain generate": ["--max-new-tokens", "8"],
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every `llmtrain` command of the README that needs no GPU, with what it printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("recipes", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    output = {}
    for line in commands():
        if not line.startswith("llmtrain ") or line.endswith("--ranks 8"):
            continue
        smaller = next((more for start, more in SMALLER.items() if line.startswith(start)), [])
        words, environment = shlex.split(line) + smaller, {**os.environ, "PATH": path}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        output[words[2] if words[1] == "data" else words[1]] = done.stdout
    return output


def test_the_commands_in_order(said: dict[str, str]) -> None:
    assert list(said) == [
        *("build", "show", "plan", "train", "report", "checkpoint"),
        *("eval", "export", "generate", "doctor"),
    ]


def test_what_the_commands_say(said: dict[str, str]) -> None:
    assert "perplexity" in said["eval"] and "whole documents, rolling" in said["eval"]
    assert "step 4" in said["export"]
    assert said["generate"].startswith("def read(")
    assert "zero1" in said["plan"]
    assert "goodput" in said["report"]
    assert "step-00000004  complete" in said["checkpoint"]
