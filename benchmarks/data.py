"""Text to shards: against the bare tokenizer and `datasets.map`, through the whole chain, in bounded memory.

    python benchmarks/data.py [--parts shards chain memory near_duplicates pii] [--megabytes 200]
                              [--slow-megabytes 20] [--gigabytes 2] [--text FOLDER] [--record]

shards   no steps: a build of one JSON lines file with one worker, with each tokenizer engine and with the one
         that `auto` chooses; the same engine on the same texts and nothing else; and `datasets.map` with the
         tokenizer as transformers loads it, batched. All in one process.
chain    the filters, near-duplicates and personal data, and where the time goes
memory   two workers on --gigabytes of text: the peak of the anonymous memory of all processes together
others   `near_duplicates.py` and `pii.py` print their own tables

Rates are MB of UTF-8 per second of CPU time, of all threads. Of a build everything counts, also comparing the
engines on 2 MB of the corpus, which it does once, however large that is; the last column shows the ratio
without that. A tokenizer of 32,000 ids is trained on a part of the text first.
`tokenizers` and `datasets.map` see a part of the text (--slow-megabytes); bare and build always see the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402
from data_texts import files, mixed_pages, prose_pages, write_jsonl  # noqa: E402
from filters import FILTERS, REST  # noqa: E402
from record import machine, publish  # noqa: E402

import data_prep.tokenizer_of_build as tokenizer_module  # noqa: E402
from data_prep.build import build  # noqa: E402
from data_prep.chain import Clock  # noqa: E402
from data_prep.corpus import DEFAULT_EOS  # noqa: E402
from data_prep.engines import FASTEST_FIRST, NotUsableError  # noqa: E402
from data_prep.tokenizer import train_bpe, write_trained  # noqa: E402

GOAL_OF_ENGINE, GOAL_OF_MAP, GOAL_CHAIN, GOAL_GIB = 0.85, 10.0, 5.0, 2.0
PARTS = ("shards", "chain", "memory", "near_duplicates", "pii")
BATCH_BYTES = 1 << 20
TRAINED_ON = 4_000_000


class World:
    """A folder to work in, and what was asked for."""

    def __init__(self, folder: Path, chosen: argparse.Namespace):
        self.folder = folder
        self.chosen = chosen

    def tokenizer(self, texts: list[str]) -> Path:
        """One trained on a part of the texts, made once."""
        folder = self.folder / "tokenizer"
        if not folder.exists():
            step = max(1, sum(map(len, texts)) // TRAINED_ON)
            write_trained(train_bpe(texts[::step], self.chosen.vocab_size, DEFAULT_EOS), folder, DEFAULT_EOS)
        return folder

    def corpus(
        self, path: Path, tokenizer: Path, steps: Iterable[dict] = (), workers: int = 1, engine: str = "auto"
    ) -> Path:
        """A corpus file of one source."""
        content: dict[str, Any] = {
            "name": "benchmark",
            "output": str(self.folder / "out"),
            "workers": workers,
        }
        content |= {"sources": [{"path": str(path)}], "steps": list(steps), "splits": {}}
        content["tokenizer"] = {"source": str(tokenizer), "engine": engine}
        file = self.folder / "corpus.yaml"
        file.write_text(yaml.safe_dump(content))
        return file


def cpu_of(work: Any) -> tuple[float, Any]:
    """CPU seconds of this process, and what came of it."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def built(corpus: Path) -> tuple[float, float, Any]:
    """CPU seconds of a build, those of them that comparing engines took, and its report."""
    compared = 0.0
    choose = tokenizer_module.choose_engine

    def timed(*given: Any) -> Any:
        nonlocal compared
        compared, choice = cpu_of(lambda: choose(*given))
        return choice

    tokenizer_module.choose_engine = timed
    try:
        seconds, report = cpu_of(lambda: build(corpus, overwrite=True))
    finally:
        tokenizer_module.choose_engine = choose
    return seconds, compared, report


def bare(make: Any, folder: Path, texts: list[str]) -> float:
    """CPU seconds of an engine, loaded and cold, on batches of the texts."""
    batches: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    engine = make(folder)
    return cpu_of(lambda: [engine(batch)[0] for batch in batches])[0]


def mapped(path: Path, folder: Path, cache: Path) -> float:
    """CPU seconds of `datasets.map` with the tokenizer that transformers loads; opening both not counted."""
    os.environ["USE_TORCH"] = "0"
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))

    def encode(batch: dict) -> dict:
        return {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

    return cpu_of(lambda: rows.map(encode, batched=True, remove_columns=["text"]))[0]


def shards(world: World) -> list[str]:
    """The table of text to shards without steps."""
    texts, where = files(world.chosen.megabytes)
    few = texts[:: max(1, round(world.chosen.megabytes / world.chosen.slow_megabytes))]
    whole, part = world.folder / "whole.jsonl", world.folder / "part.jsonl"
    sizes = {path: write_jsonl(path, chosen) / 1e6 for path, chosen in ((whole, texts), (part, few))}
    size = sizes[whole]
    folder = world.tokenizer(texts)
    lines = [f"{len(texts):,} texts, {size:.1f} MB, from {where}.", ""]
    lines += ["| engine | MB | bare MB/s | build MB/s | build / bare | engines not compared |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    ratios: dict[str, float] = {}
    auto = 0.0
    for name, make in [("auto", None), *FASTEST_FIRST.items()]:
        path, chosen = (part, few) if name == "tokenizers" else (whole, texts)
        try:
            if make is not None:
                alone = sizes[path] / bare(make, folder, chosen)
        except NotUsableError as reason:
            lines.append(f"| {name} | {reason} | | | | |")
            continue
        corpus = world.corpus(path, folder, engine=name)
        seconds, compared, report = built(corpus)
        speed = sizes[path] / seconds
        engine = report.manifest.tokenizer.engine.split()[0]
        if make is None:
            auto, name = speed, f"auto: {engine}"
            alone = size / bare(FASTEST_FIRST[engine], folder, texts)
        ratios[name] = speed / alone
        steady = sizes[path] / (seconds - compared) / alone
        figures = f"{sizes[path]:.1f} | {alone:.1f} | {speed:.1f} | {speed / alone:.3f} | {steady:.3f}"
        lines.append(f"| {name} | {figures} |")
    hub = sizes[part] / mapped(part, folder, world.folder / "cache")
    lines += [f"| datasets.map | {sizes[part]:.1f} | | {hub:.2f} | | |", ""]
    reached = [name for name, ratio in ratios.items() if ratio >= GOAL_OF_ENGINE]
    missed = [name for name in ratios if name not in reached]
    lines.append(f"Goal ({GOAL_OF_ENGINE} of the bare engine): met with {', '.join(reached) or 'none'}"
                 + (f"; missed with {', '.join(missed)}." if missed else "."))  # fmt: skip
    met = "met" if auto >= GOAL_OF_MAP * hub else "missed"
    lines.append(f"Goal ({GOAL_OF_MAP:g} x datasets.map): {met}, {auto / hub:.1f} x.")
    return lines


def chain(world: World) -> list[str]:
    """The whole chain, and where its time goes."""
    texts, where = prose_pages(world.chosen.text, world.chosen.megabytes)
    path = world.folder / "pages.jsonl"
    size = write_jsonl(path, texts) / 1e6
    corpus = world.corpus(path, world.tokenizer(texts), FILTERS + REST)
    Clock.now = staticmethod(time.process_time)
    seconds, report = cpu_of(lambda: build(corpus, overwrite=True))
    Clock.now = staticmethod(time.perf_counter)
    spent = json.loads((world.folder / "out/build.json").read_text())["seconds_by_step"]
    spent["all else: engines compared, files hashed, duplicates decided, shards written"] = seconds - sum(
        spent.values()
    )
    kept = report.manifest.counts.documents_out / report.manifest.counts.documents_in
    lines = [f"{len(texts):,} pages, {size:.1f} MB, from {where}; {kept:.0%} kept."]
    lines += ["", "| where the time goes | CPU seconds | share | MB/s of all text |", "|---|---:|---:|---:|"]
    for name, took in sorted(spent.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {took:.2f} | {took / seconds:.1%} | {size / max(took, 1e-6):,.0f} |")
    speed = size / seconds
    met = "met" if speed >= GOAL_CHAIN else "missed"
    lines += [f"| all | {seconds:.2f} | | {speed:.2f} |", ""]
    lines.append(f"Goal ({GOAL_CHAIN:g} MB/s per core): {met}, {speed:.2f}.")
    return lines


def memory(world: World) -> list[str]:
    """Two workers on much text: the peak of what all processes hold that no file backs."""
    texts, where = prose_pages(world.chosen.text, min(20, world.chosen.gigabytes * 1000))
    path = world.folder / "much.jsonl"
    size = write_jsonl(path, mixed_pages(texts, world.chosen.gigabytes * 1e9)) / 1e6
    corpus = world.corpus(path, world.tokenizer(texts), FILTERS + REST, workers=2)
    command = [sys.executable, "-m", "llmtrain", "data", "build", str(corpus), "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, peak, processes = time.monotonic(), 0, 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(world.folder / "said", "w") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        while running.poll() is None:
            held = anonymous(running.pid)
            peak, processes = max(peak, sum(held)), max(processes, len(held))
            time.sleep(0.1)
    assert running.returncode == 0, (world.folder / "said").read_text()[-2000:]
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    gib = peak / 2**30
    met = "met" if gib <= GOAL_GIB else "missed"
    return [
        f"{size / 1e3:.2f} GB of sentences of {len(texts):,} pages in new orders, from {where}.",
        f"Two workers, {processes} processes: {seconds:.0f} s, {size / seconds:.1f} MB/s, "
        f"{size / cpu:.2f} MB per CPU second.",
        f"Peak of anonymous memory: {gib:.2f} GiB. Goal (at most {GOAL_GIB:g} GiB): {met}.",
    ]


def anonymous(root: int) -> list[int]:
    """Bytes of anonymous memory of a process and of each below it."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text()
            for task in Path(f"/proc/{process}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has just ended
            continue
        held = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        found.append(1024 * int(held[0]) if held else 0)
    return found


def other(program: str, options: list[str], record: bool) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / program), *options]
    subprocess.run(command + ["--record"] * record, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--megabytes", type=float, default=200.0, help="of text for shards and chain")
    parser.add_argument("--slow-megabytes", type=float, default=20.0, help="of it, for what is slow")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of text for memory")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--text", type=Path, help="a folder of prose for chain and memory")
    parser.add_argument("--documents", type=int, default=20_000, help="of near_duplicates.py")
    parser.add_argument("--sentences", type=int, default=20_000, help="of pii.py")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    titles = {
        "shards": ("Text to shards without steps", shards),
        "chain": ("Text to shards through filters, near-duplicates and personal data", chain),
        "memory": ("Memory of a large build", memory),
    }
    command = "python " + " ".join(["benchmarks/data.py", *sys.argv[1:]])
    for part in chosen.parts:
        if part == "near_duplicates":
            few = chosen.documents < 20_000  # asked to be short
            options = ["--documents", str(chosen.documents), *(["--memory"] if few else [])]
            other("near_duplicates.py", options, chosen.record)
        elif part == "pii":
            other("pii.py", ["--sentences", str(chosen.sentences)], chosen.record)
        else:
            title, measure = titles[part]
            with tempfile.TemporaryDirectory() as folder:
                lines = [f"{machine()}.", *measure(World(Path(folder), chosen))]
            publish(title, command, "\n".join(lines), chosen.record)


if __name__ == "__main__":
    main()
