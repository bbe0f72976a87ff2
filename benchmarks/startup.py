"""How long one waits: for `llmtrain --help`, and from launch to the first step of a tiny run, new or resumed.

    python benchmarks/startup.py

Goals: the median of `--help` below 0.4 s. Medians of fresh processes; a bare `python -c pass` beside it. The
resumed run is the same with two steps more; what the size of its checkpoint adds, `checkpoint.py` says of
verified loads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import machine, publish

CORPUS = """
name: tiny
output: {folder}/data
sources: [{{path: "{text}", format: text}}]
tokenizer: {{train: bpe, vocab_size: 512}}
splits: {{valid: 0.1}}
workers: 1
"""
RUN = """
name: tiny
output_dir: {folder}/run
model: {{config: {{model_type: llama, num_hidden_layers: 2, hidden_size: 64, intermediate_size: 128,
  num_attention_heads: 4, num_key_value_heads: 2}}}}
data: {{train: [{{path: {folder}/data}}], seq_len: 64}}
batch: {{rows: 4}}
schedule: {{steps: 2}}
"""


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def seconds_to_first_step(folder: Path, ranks: int, steps: int) -> tuple[float, float]:
    """From launch to the first new line of metrics.jsonl, and to the end of the run at step `steps`."""
    run = folder / "run.yaml"
    run.write_text(RUN.format(folder=folder))
    metrics = folder / "run" / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    command = [sys.executable, "-m", "llmtrain", "train", str(run), f"schedule.steps={steps}"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--ranks", str(ranks)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    first = 0.0
    while process.poll() is None:
        if not first and metrics.exists() and metrics.stat().st_size > before:
            first = time.perf_counter() - began
        time.sleep(0.02)
    whole = time.perf_counter() - began
    output = process.stdout.read() if process.stdout else ""
    if process.returncode or not first:
        raise SystemExit(f"the tiny run failed ({process.returncode}):\n{output}")
    return first, whole


def build_corpus(folder: Path) -> None:
    """A few files of Python's own library as a dataset."""
    text = Path(os.__file__).parent / "json" / "*.py"
    corpus = folder / "corpus.yaml"
    corpus.write_text(CORPUS.format(folder=folder, text=text))
    subprocess.run(
        [sys.executable, "-m", "llmtrain", "data", "build", str(corpus)], check=True, capture_output=True
    )


def row(name: str, times: list[float], goal: str = "") -> str:
    return f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} | {goal} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/DEVICE-DATE.md")
    args = parser.parse_args()
    bare, help_ = [], []
    for _ in range(args.rounds):
        bare.append(seconds([sys.executable, "-c", "pass"]))
        help_.append(seconds([sys.executable, "-m", "llmtrain", "--help"]))
    lines = ["| what | median s | min to max | goal |", "|---|---|---|---|"]
    lines += [row("`python -c pass`", bare), row("`llmtrain --help`", help_, "< 0.4")]
    with tempfile.TemporaryDirectory() as name:
        build_corpus(Path(name))
        for ranks in args.ranks:
            times: dict[str, list[float]] = {}
            for number in range(3):
                folder = Path(name) / f"{ranks}-{number}"
                folder.mkdir()
                (folder / "data").symlink_to(Path(name) / "data")
                for what, steps in (("launch", 2), ("resume", 4)):
                    first, whole = seconds_to_first_step(folder, ranks, steps)
                    times.setdefault(f"{what} to first step, {ranks} rank(s)", []).append(first)
                    times.setdefault(f"{what} to the end after 2 steps, {ranks} rank(s)", []).append(whole)
            lines += [row(what, seen) for what, seen in times.items()]
    command = " ".join(["python", *(argument for argument in sys.argv if argument != "--record")])
    publish("Start-up", command, "\n".join([machine(), "", *lines]), args.record)


if __name__ == "__main__":
    main()
