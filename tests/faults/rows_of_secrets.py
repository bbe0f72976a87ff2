"""Rows S3 and S5 of the fault table: what is said, written and readable when a run goes the whole way.

Real commands, under umask 000 and with secrets in the environment: text to shards, a step that fails with the
secrets in its message, training, a crash with them, evaluation, export, generation; and four secrets that
were written where none belongs. It is done once per folder; every trial looks for one secret, or at one mode.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "surface"))
from small_runs import ROOT, SHAPE  # noqa: E402

LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
STEP = """
import os
def step(documents, tally):
    raise RuntimeError(" ".join(os.environ[name] for name in {names}))
    yield
"""
CRASH = """
import os, sys
from llmtrain.data.dataset import Dataset
from llmtrain.train import main
def fail(*_):
    raise RuntimeError(" ".join(os.environ[name] for name in {names}))
Dataset.windows = fail
sys.exit(main(sys.argv[1:]))
"""


def canaries() -> dict[str, str]:
    """A secret by where it is: four variables of the environment, four places where none may stand."""
    draw = random.Random(11)

    def secret(head: str, length: int) -> str:
        return head + "".join(draw.choices(LETTERS, k=length))

    return {
        "HF_TOKEN": secret("hf_", 34),
        "WANDB_API_KEY": secret("", 40),
        "AWS_SECRET_ACCESS_KEY": secret("", 40),
        "DB_PASSWORD": secret("", 12),
        "run file": secret("ghp_", 36),
        "DeepSpeed file": secret("", 30),
        "address": secret("", 16),
        "command line": secret("sk-", 40),
    }


VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")


class WholeWay:
    """All of it; `said` by command, `argv` the words of every process that was seen meanwhile."""

    def __init__(self, folder: Path):
        self.folder, self.secrets = folder, canaries()
        self.said: dict[str, str] = {}
        self.argv: set[bytes] = set()
        self.asked = folder / "asked"  # what holds secrets because they were put there
        self.asked.mkdir()
        self.environment = {
            **os.environ,
            **{name: self.secrets[name] for name in VARIABLES},
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        }
        self._write_files()
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            self._run_all()
        finally:
            over.set()
            watcher.join()

    def _write_files(self) -> None:
        corpus = {
            "name": "own",
            "output": "data",
            "sources": [{"path": str(ROOT / "llmtrain/*.py")}],
            "tokenizer": {"train": "bpe", "vocab_size": 400},
            "splits": {"valid": 0.2},
            "workers": 2,
        }
        self.run = {
            "name": "tiny",
            "model": {"config": SHAPE},
            "data": {
                "train": [{"path": "data"}],
                "eval": [{"path": "data", "split": "valid"}],
                "seq_len": 32,
            },
            "batch": {"rows": 4},
            "schedule": {"steps": 4},
            "checkpoint": {"every": 2},
            "eval": {"rows": 5},
            "precision": "fp32",
        }
        files = {
            "corpus.yaml": yaml.safe_dump(corpus),
            "failing.yaml": yaml.safe_dump(
                {**corpus, "output": "failed", "steps": [{"python": {"file": "failing.py"}}]}
            ),
            "failing.py": STEP.format(names=VARIABLES),
            "crash.py": CRASH.format(names=VARIABLES),
            "run.yaml": yaml.safe_dump(self.run),
            "asked/run.yaml": yaml.safe_dump({**self.run, "output_dir": self.secrets["run file"]}),
            "asked/ds.json": json.dumps(
                {"wandb": {"enabled": True, "api_key": self.secrets["DeepSpeed file"]}}
            ),
            "asked/address.yaml": yaml.safe_dump(
                {**self.run, "model": {"source": f"https://me:{self.secrets['address']}@host/model"}}
            ),
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def _run_all(self) -> None:
        llmtrain = ["-m", "llmtrain"]
        self._command("build", 0, *llmtrain, "data", "build", "corpus.yaml")
        self._command("failing step", 2, *llmtrain, "data", "build", "failing.yaml")
        self._command("train", 0, *llmtrain, "train", "run.yaml", "--ranks", "2")
        self._command("crash", 1, "crash.py", "run.yaml", "name=crashed", "--debug")
        self._command("eval", 0, *llmtrain, "eval", "runs/tiny", "--data", "data")
        self._command("export", 0, *llmtrain, "export", "runs/tiny", "out")
        self._command("generate", 0, *llmtrain, "generate", "out", "def", "--max-new-tokens", "3")
        self._command("doctor", 0, *llmtrain, "doctor")
        for name in ("run", "address"):
            self._command(f"asked {name}", 2, *llmtrain, "plan", f"asked/{name}.yaml")
        self._command("asked ds", 2, *llmtrain, "plan", "run.yaml", "deepspeed=asked/ds.json")
        override = f"optimizer.lr={self.secrets['command line']}"
        self._command("asked override", 2, *llmtrain, "plan", "run.yaml", override)

    def _command(self, name: str, status: int, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.umask(0) and None,
            timeout=300,
        )
        self.said[name] = done.stdout + done.stderr
        assert done.returncode == status, f"{name} ended with {done.returncode}: {self.said[name][-800:]}"

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.argv.add(path.read_bytes())
                except OSError:
                    continue

    def places_of(self, name: str) -> list[str]:
        """Where a secret is that it should not be."""
        secret = self.secrets[name]
        found = [f"said by {command}" for command, text in self.said.items() if secret in text]
        if name != "command line":  # there its owner has put it
            found += [f"argv {words[:80]!r}" for words in self.argv if secret.encode() in words]
        for path in self.folder.rglob("*"):
            if path.is_file() and self.asked not in path.parents and secret.encode() in path.read_bytes():
                found.append(str(path.relative_to(self.folder)))
        return found


_way = functools.cache(WholeWay)  # goes once for a folder


def secret(folder: Path, number: int, draw: random.Random) -> str:
    """S3: a secret is in nothing that is said or written, and in the words of no process."""
    way = _way(folder)
    name = list(way.secrets)[number % len(way.secrets)]
    found = way.places_of(name)
    wanted = {"run file": "asked run", "address": "asked address", "DeepSpeed file": "asked ds"}
    command = wanted.get(name, "asked override" if name == "command line" else "")
    if command and "looks like a secret" not in way.said[command]:
        found.append(f"not named: {way.said[command][:200]}")
    return f"{name}: {found}" if found else ""


def modes(folder: Path, number: int, draw: random.Random) -> str:
    """S5: under umask 000 others can't enter a run folder, nor read or write what is in a checkpoint; only
    its owner can write an export; no folder of extensions is made."""
    way = _way(folder)
    if number % 4 == 0:
        runs = [path for path in (way.folder / "runs").iterdir() if path.stat().st_mode & 0o7]
        return f"others can enter {runs}" if runs else ""
    if number % 4 == 3:
        return "there are extensions" if (way.folder / "extensions").exists() else ""
    places, forbidden = ("runs/tiny/checkpoints", 0o027) if number % 4 == 1 else ("out", 0o022)
    paths = [way.folder / places, *(way.folder / places).rglob("*")]
    assert len(paths) > 5, f"{places} is empty"
    open_ones = [
        f"{path.name} {path.stat().st_mode & 0o777:o}" for path in paths if path.stat().st_mode & forbidden
    ]
    return f"too open: {open_ones}" if open_ones else ""
