"""One run, started by each launcher with two ranks on the CPU: the same losses, and 0 as the exit status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of llmtrain's own source and a two-step run on it."""
    from data_prep.build import build

    folder = tmp_path_factory.mktemp("launchers")
    corpus = {
        "name": "own",
        "output": str(folder / "data"),
        "sources": [{"path": str(ROOT / "llmtrain/**/*.py")}],
        "tokenizer": {"train": "bpe", "vocab_size": 400},
        "splits": {},
        "workers": 1,
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    build(folder / "corpus.yaml", [])
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    run = {
        "name": "tiny",
        "model": {"config": {**shape, "num_attention_heads": 2, "num_key_value_heads": 2}},
        "data": {"train": [{"path": str(folder / "data")}], "seq_len": 32},
        "batch": {"rows": 4, "micro": 1},
        "schedule": {"steps": 2},
        "precision": "fp32",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def _losses(run_file: Path, name: str, command: list[str], *overrides: str) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    output, beside = run_file.parent / name, run_file.parent / "beside"
    if not beside.exists():  # files of people's own, whose names are those of modules
        (beside / "datasets").mkdir(parents=True)
        for file in ("torch.py", "tokenizers.py", "statistics.py", "datasets/__init__.py"):
            (beside / file).write_text("raise SystemExit(f'{__name__} of the working folder was executed')")
    words = [port if word == "PORT" else word for word in command]
    finished = subprocess.run(
        [str(BIN / words[0]), *words[1:], str(run_file), f"output_dir={output}", *overrides],
        cwd=beside,
        env={
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **SAFE.get(name, {}),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", "PORT", "-m", "llmtrain.train"],
    "deepspeed": [
        "deepspeed",
        "--num_accelerators",
        "2",
        "--master_port",
        "PORT",
        "--module",
        "llmtrain.train",
    ],
    "accelerate": [
        "accelerate",
        "launch",
        "--config_file",
        str(ROOT / "launch/accelerate/zero2.yaml"),  # whose strategy is found from any folder
        "--num_processes",
        "2",
        "--main_process_port",
        "PORT",
        "-m",
        "llmtrain.train",
    ],
}

# deepspeed starts a helper of its own with `python -m` before anything of ours runs (launch/deepspeed.sh)
SAFE = {"deepspeed": {"PYTHONSAFEPATH": "1"}}


def test_every_launcher_starts_the_same_run(run_file: Path) -> None:
    expected = _losses(run_file, "own", ["llmtrain", "train", "--ranks", "2"], "deepspeed=zero1")
    assert len(expected) == 2
    for name, command in LAUNCHERS.items():
        strategy = [] if name == "accelerate" else ["deepspeed=zero1"]
        assert _losses(run_file, name, command, *strategy) == pytest.approx(expected, rel=1e-5), name
    resolved = json.loads((run_file.parent / "accelerate" / "ds_config.json").read_text())
    assert resolved["zero_optimization"]["stage"] == 2, "accelerate's own choice was not honoured"
    origins = (run_file.parent / "accelerate" / "config.yaml").read_text()
    assert "accelerate" in origins, "the resolved config does not say that accelerate chose the strategy"
