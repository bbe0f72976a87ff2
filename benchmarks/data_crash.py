"""Builds that are killed at random, alone and with helpers, and what is lost: nothing but chunks in hand.

    python benchmarks/data_crash.py --trials 50 --seed 1

Each trial starts a build of several processes, and often a helper that joins it as if from another machine,
kills the build's process group, the helper's, or one worker, with SIGKILL at a random moment, runs the
command again if need be, and compares every byte of the dataset with one that was never disturbed. Prints
trials, failures, and how many chunks were done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKERS = (2, 1, 2, 4, 2)  # by the seed of the trial
DRIVER = """
import sys, time
sys.path.insert(0, {root!r})
from data_prep import build, files, leases, sources, worker
from data_prep.build import build as run
from data_prep.join import join

sources.LEAST_CHUNK_BYTES = files.CHUNK_BYTES = {chunk_bytes}
build.ALONE_BELOW_BYTES = 0
quick = worker.Worker.do
def slow(*arguments):
    time.sleep({pause})
    return quick(*arguments)
worker.Worker.do = slow
leases.BEAT_SECONDS, leases.SILENT_SECONDS = 0.2, 3.0
if sys.argv[1] == "join":  # as if on another machine: it is missed only by its silence, and misses others so
    leases.here = lambda: "elsewhere-1"
if __name__ == "__main__":
    def tell(what, *_):
        print(what, flush=True)
    if sys.argv[1] == "join":
        print(join(sys.argv[2], sys.argv[3:]).render())
    else:
        run(sys.argv[2], sys.argv[3:], tell)
"""


@dataclass(frozen=True)
class Outcome:
    """What one trial showed; `again` chunks were taken more than once."""

    victim: str
    workers: int
    when: str
    same: bool
    chunks: int
    again: int


class World:
    """A corpus of many small chunks with duplicates, and what an undisturbed build makes of it."""

    def __init__(self, folder: Path, documents: int = 900, chunk_bytes: int = 6_000, pause: float = 0.1):
        self.folder = folder
        rng = random.Random(7)
        words = ["the", "quick", "fox", "naïve", "数据", "🙂", "f(x):", "12", "\n"]
        texts = [" ".join(rng.choice(words) for _ in range(30)) for _ in range(documents * 2 // 3)]
        lines = [json.dumps({"text": rng.choice(texts)}) + "\n" for _ in range(documents)]
        (folder / "a.jsonl").write_text("".join(lines))
        corpus = {
            "name": "crash",
            "output": str(folder / "undisturbed"),
            "sources": [{"path": str(folder / "a.jsonl"), "weight": 1.5}],
            "tokenizer": {"train": "bpe", "vocab_size": 400, "sample_bytes": 50_000},
            "steps": [{"dedup": {}}],
            "splits": {"valid": 0.1},
            "workers": 2,
        }
        self.corpus = folder / "corpus.yaml"
        self.corpus.write_text(yaml.safe_dump(corpus))
        self.driver = folder / "driver.py"
        self.driver.write_text(DRIVER.format(root=str(ROOT), chunk_bytes=chunk_bytes, pause=pause))
        first = self.start("build", "undisturbed")
        first.communicate(timeout=120)
        assert first.returncode == 0, "the undisturbed build failed"
        self.taken = json.loads((folder / "undisturbed/build.json").read_text())["chunks_taken"]
        self.expected = files_of(folder / "undisturbed")

    def start(self, how: str, output: str, workers: int = 2) -> subprocess.Popen:
        """A process group of its own that builds, or joins the build of, a dataset."""
        words = [f"output={self.folder / output}", f"workers={workers}"]
        command = [sys.executable, str(self.driver), how, str(self.corpus), *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )

    def trial(self, seed: int) -> Outcome:
        """Kills something at a moment that `seed` draws, goes on, and compares."""
        rng = random.Random(seed)
        output = self.folder / f"trial-{seed}"
        victim = rng.choice(["build", "build", "helper", "worker"])
        workers = WORKERS[seed % len(WORKERS)]
        workers = max(workers, 2) if victim == "worker" else workers  # alone, it is the build itself
        build = self.start("build", output.name, workers)
        helper = self._helper(output, build) if victim == "helper" or rng.random() < 0.5 else None
        moment = rng.randint(0, self.taken)  # at the start, at a chunk, or while shards are written
        helped = helper is None or victim != "helper"
        while (self._taken(output) < moment or not helped) and build.poll() is None and not output.exists():
            helped = helped or any("elsewhere" in line for line in self._claims(output))
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        before = self._taken(output)
        doing = "all is done" if output.exists() else f"{before} chunks were taken"
        self._kill(victim, build, helper, rng)
        for process in (build, helper):
            if process is not None:
                process.communicate(timeout=120)
        if not output.exists():
            assert not list(output.parent.glob(f"{output.name}/manifest.json")), "half a dataset"
            again = self.start("build", output.name, rng.choice(WORKERS))
            again.communicate(timeout=120)
        built = json.loads((output / "build.json").read_text())
        wanted = built["chunks"] * built["passes"]
        left = [path.name for path in self.folder.glob(f"{output.name}.*")]
        same = files_of(output) == self.expected and not left
        shutil.rmtree(output)
        return Outcome(victim, workers, doing, same, wanted, built["chunks_taken"] - wanted)

    def _helper(self, output: Path, build: subprocess.Popen) -> subprocess.Popen:
        """One that joins once there is something to join."""
        partial = output.with_name(output.name + ".partial")
        while build.poll() is None and not list(partial.glob("*/queue-0")):
            time.sleep(0.02)
        return self.start("join", output.name)

    def _taken(self, output: Path) -> int:
        return len(self._claims(output))

    def _claims(self, output: Path) -> list[str]:
        found = list(output.with_name(output.name + ".partial").glob("*/claims"))
        with contextlib.suppress(FileNotFoundError):  # all was done in this moment
            return found[0].read_text().splitlines() if found else []
        return []

    def _kill(
        self, victim: str, build: subprocess.Popen, helper: subprocess.Popen | None, rng: random.Random
    ) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
            if victim == "build":
                os.killpg(build.pid, signal.SIGKILL)
            elif victim == "helper" and helper is not None:
                os.killpg(helper.pid, signal.SIGKILL)
            else:
                children = Path(f"/proc/{build.pid}/task/{build.pid}/children").read_text().split()
                os.kill(int(rng.choice(children)), signal.SIGKILL)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset, without what tells how long the build took."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("build.json", "report.html")
    }
    found["report.json"] = json.dumps(json.loads(found["report.json"])["content"]).encode()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        outcomes = []
        for seed in range(arguments.seed, arguments.seed + arguments.trials):
            outcomes.append(world.trial(seed))
            print(f"seed {seed}: {outcomes[-1]}", flush=True)
    failures = sum(not outcome.same for outcome in outcomes)
    worst = max(outcome.again for outcome in outcomes)
    print(
        f"{len(outcomes)} trials with SIGKILL at a random moment, {failures} datasets that differ; "
        f"of {outcomes[0].chunks} chunks at most {worst} were done again "
        f"({sum(outcome.again for outcome in outcomes)} in all trials together)"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
