"""Text becomes a Hugging Face folder by the commands a user types, with stops and kills on the way.

Two ranks on the CPU, and no compiler to be found: whatever would build an op fails here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STEPS = 10
SECRETS = {
    "HF_TOKEN": "hf_" + "PlantedCanary" * 3,
    "WANDB_API_KEY": "PlantedWithoutAnyShape",
    "AWS_SECRET_ACCESS_KEY": "Planted/With+Signs/0123456789",
    "DB_PASSWORD": "planted-horse-battery",
}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Place:
    """A folder with a dataset and a run file, and a shell without compilers in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        no_tools = folder / "no-tools"
        no_tools.mkdir()
        self.environment = {**os.environ, "PATH": str(no_tools), "CXX": "/nonexistent", "CC": "/nonexistent"}
        self.environment["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
        self.environment |= SECRETS

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmtrain", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def llmtrain(self, *words: str) -> str:
        with self.start(*words) as process:
            said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
        assert not [name for name, secret in SECRETS.items() if secret in said]
        return said

    def until(self, text: str, number: int, *words: str) -> int:
        """Runs a command, sends signal `number` once it has said `text`; returns its status."""
        with self.start(*words) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if text in line:
                    process.send_signal(number)
                    break
            else:
                pytest.fail("".join(said))
            process.stdout.read()
            return process.wait(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("flow"))
    corpus = {
        "name": "own",
        "output": "data",
        "sources": [{"path": str(ROOT / "llmtrain/**/*.py")}],
        "tokenizer": {"train": "bpe", "vocab_size": 512},
        "splits": {"valid": 0.1},
        "workers": 1,
    }
    run = {
        "name": "whole",
        "model": {"config": {"model_type": "llama", **SHAPE, "num_key_value_heads": 1}},
        "data": {"train": [{"path": "data"}], "eval": [{"path": "data", "split": "valid"}], "seq_len": 64},
        "batch": {"rows": 8, "micro": 2},
        "schedule": {"steps": STEPS, "warmup": 0.2},
        "optimizer": {"lr": 1e-2},
        "checkpoint": {"every": 3, "keep": 2},
        "eval": {"every": 5, "rows": 7},
        "log": {"every": 1},
    }
    (place.folder / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    (place.folder / "run.yaml").write_text(yaml.safe_dump(run))
    return place


def records(place: Place, name: str) -> list[dict]:
    lines = (place.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(place: Place, name: str) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records(place, name) if "loss" in record]


def test_the_whole_way(place: Place) -> None:
    """Without assertions (`python -O`): what an assertion did, or kept out, would be missed here."""
    place.environment["PYTHONOPTIMIZE"] = "1"
    try:
        whole_way(place)
    finally:
        del place.environment["PYTHONOPTIMIZE"]


def whole_way(place: Place) -> None:
    left_before = set(Path("/dev/shm").glob("deepspeed*"))
    assert "documents in" in place.llmtrain("data", "build", "corpus.yaml")
    said = place.llmtrain("train", "run.yaml", "--ranks", "2")
    assert f"step {STEPS}/{STEPS}" in said
    assert "eval after step 0" in said
    whole = losses(place, "whole")
    assert [step for step, _ in whole] == list(range(1, STEPS + 1))
    assert whole[-1][1] < whole[0][1]
    run = place.folder / "runs" / "whole"
    found = json.loads(place.llmtrain("eval", "runs/whole", "--data", "data", "--baselines", "--json"))
    evaluations = [record for record in records(place, "whole") if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 5, STEPS]
    assert found["eval_loss"] == pytest.approx(evaluations[-1]["eval_loss"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(evaluations[-1]["bits_per_byte"], rel=1e-5)
    assert found["baselines"]["untrained"]["eval_loss"] == pytest.approx(
        evaluations[0]["eval_loss"], rel=1e-5
    )
    said = place.llmtrain("export", "runs/whole", "out")
    assert f"step {STEPS} in bfloat16" in said
    words = ("--max-new-tokens", "8", "--greedy")
    text = place.llmtrain("generate", "out", "def main(", *words)
    assert text.startswith("def main(")
    assert text == place.llmtrain("generate", "runs/whole", "def main(", *words)
    for name in ("config.yaml", "ds_config.json", "environment.json", "logs/rank-0.log", "logs/rank-1.log"):
        assert (run / name).stat().st_size > 0, name
    written = [path for path in place.folder.rglob("*") if path.is_file()]
    assert len(written) > 30
    for name, secret in SECRETS.items():
        found = [path for path in written if secret.encode() in path.read_bytes()]
        assert not found, f"{name} was written"
    assert not (place.folder / "extensions").exists(), "something was built"
    assert set(Path("/dev/shm").glob("deepspeed*")) <= left_before


def test_a_run_that_was_stopped_and_killed_is_the_same_run(place: Place) -> None:
    """With assertions: `losses` are also those of the run without."""
    if not (place.folder / "runs" / "whole").exists():
        test_the_whole_way(place)
    words = ("train", "run.yaml", "name=broken", "--ranks", "2")
    assert place.until("step 2/", signal.SIGTERM, *words) == 75
    checkpoints = place.folder / "runs" / "broken" / "checkpoints"
    stopped_at = max(checkpoints.iterdir()).name
    assert place.until("saved step 6 ", signal.SIGKILL, *words) == -signal.SIGKILL
    said = place.llmtrain(*words, "--resume", "must")
    assert "going on from" in said
    assert stopped_at not in said, "the newest checkpoint is the one to go on from"
    assert losses(place, "broken") == losses(place, "whole")
    steps = [record["step"] for record in records(place, "broken") if "eval_loss" in record]
    assert steps == [0, 5, STEPS]
    assert "nothing left to do" in place.llmtrain(*words)
    with place.start(*words, "--resume", "never") as process:
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 2
    assert f"error: --resume never: runs/broken already holds step {STEPS}" in said


def rank_process(launcher: int, rank: int) -> int:
    """The process id of a rank that `launcher` has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(path.parent.name)
    raise AssertionError(f"rank {rank} of {launcher} was not found")


def test_a_rank_that_dies_ends_the_run_and_is_named(place: Place) -> None:
    if not (place.folder / "data").exists():
        place.llmtrain("data", "build", "corpus.yaml")
    words = ("train", "run.yaml", "name=torn", "schedule.steps=100000", "eval.rows=1", "--ranks", "2")
    with place.start(*words) as process:
        assert process.stdout is not None
        said = ""
        while "step 2/" not in said:
            said += process.stdout.readline() or pytest.fail(said)
        other = rank_process(process.pid, 0)
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        ending = process.stdout.read()
        assert process.wait(60) == 1
    errors = [line for line in ending.splitlines() if line.startswith("error: rank")]
    assert errors[0].startswith("error: rank 1 of 2 was killed by SIGKILL"), ending
    assert not Path(f"/proc/{other}").exists()
