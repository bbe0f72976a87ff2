"""How fast checkpoints are saved and loaded, against the same disk used as plainly as possible.

    python benchmarks/checkpoint.py [--folder DIR] [--gigabytes 0.5] [--rounds 5] [--ranks 2]

Each round does all four, so that what else the machine does hits them alike: a raw write and sync of as many
bytes from memory (one file per rank, in threads), a save (preflight, hashing, sync, commit), a raw read, and
a load (every hash verified, then every slice read as a rank of the same world reads it). Files leave the page
cache before they are read. Medians; the ratio is the median of each round's own.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint import CheckpointFacts, newest, save
from llmtrain.engine.seam import KINDS, EvalResult, Slice, SliceReader, StepResult

PIECE = 8 << 20


class _ThreadComm:
    """Ranks as threads of this process."""

    def __init__(self, rank: int, size: int, values: list[object], meeting: threading.Barrier):
        self.rank, self.size, self._values, self._meeting = rank, size, values, meeting

    def barrier(self) -> None:
        self._meeting.wait()

    def gather(self, value: object) -> list[object]:
        self._values[self.rank] = value
        self.barrier()
        values = list(self._values)
        self.barrier()
        return values

    def broadcast(self, value: object) -> object:
        return self.gather(value)[0]


class _StateEngine:
    """A share of tensors of 4 M elements with both moments, as a rank of ZeRO-1 holds them."""

    def __init__(self, comm: _ThreadComm, share_bytes: int):
        self.comm = comm
        self.length = 4 << 20
        count = max(1, share_bytes // (self.length * 4 * len(KINDS)))
        self.tensors = {
            (f"layers.{index}.weight", kind): torch.rand(self.length)
            for index in range(count)
            for kind in KINDS
        }

    def slices(self) -> Iterator[Slice]:
        whole = (self.length * self.comm.size,)
        for (name, kind), tensor in self.tensors.items():
            yield Slice(name, kind, whole, self.comm.rank * self.length, tensor)

    def scalars(self) -> dict[str, float]:
        return {"step": 1.0}

    def load(self, reader: SliceReader, scalars: dict[str, float]) -> None:
        for (name, kind), tensor in self.tensors.items():
            tensor.copy_(reader.read(name, kind, self.comm.rank * self.length, self.length))

    def train_step(self, rows: Any, lr: float) -> StepResult:
        raise NotImplementedError

    def evaluate(self, rows: Any) -> EvalResult:
        raise NotImplementedError

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


def on_all(ranks: int, work: Callable[[int], object]) -> float:
    """Seconds until the last of `ranks` threads is done."""
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - start


def raw_write(path: Path, engine: _StateEngine) -> None:
    with open(path, "wb", buffering=0) as file:
        for tensor in engine.tensors.values():
            data = memoryview(tensor.view(torch.uint8).numpy())
            for start in range(0, len(data), PIECE):
                file.write(data[start : start + PIECE])
        os.fsync(file.fileno())


def raw_read(path: Path) -> None:
    buffer = bytearray(PIECE)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def leave_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def load(folder: Path, engine: _StateEngine) -> None:
    found = newest(folder, comm=engine.comm)
    assert found is not None
    with found.reader() as reader:
        engine.load(reader, found.scalars)


def one_round(folder: Path, engines: list[_StateEngine], step: int) -> dict[str, float]:
    ranks = len(engines)
    facts = CheckpointFacts(
        step=step,
        tokens=step,
        topology={"world": ranks, "zero_stage": 1},
        dataset="none",
        config={"model_type": "llama"},
        vocab_size=1,
        seq_len=1,
        rows=1,
        seed=0,
        run_yaml="",
    )
    raw = folder / "raw"
    raw.mkdir()
    seconds = {
        "raw write": on_all(ranks, lambda rank: raw_write(raw / str(rank), engines[rank])),
        "save": on_all(ranks, lambda rank: save(engines[rank], folder, facts, keep=1)),
    }
    leave_cache(folder)
    seconds["raw read"] = on_all(ranks, lambda rank: raw_read(raw / str(rank)))
    seconds["load"] = on_all(ranks, lambda rank: load(folder, engines[rank]))
    shutil.rmtree(raw)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    values: list[object] = [None] * options.ranks
    meeting = threading.Barrier(options.ranks)
    share = int(options.gigabytes * 1e9) // options.ranks
    engines = [
        _StateEngine(_ThreadComm(rank, options.ranks, values, meeting), share)
        for rank in range(options.ranks)
    ]
    size = sum(tensor.nbytes for engine in engines for tensor in engine.tensors.values())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = [one_round(Path(folder), engines, step + 1) for step in range(options.rounds)]
    print(
        f"{size / 1e9:.2f} GB, {options.ranks} ranks, {options.rounds} rounds, {os.cpu_count()} cores, "
        f"{platform.machine()}\n\n| what | median s | GB/s | of raw |\n|---|---|---|---|"
    )
    for raw_name, name in (("raw write", "save"), ("raw read", "load")):
        ratio = statistics.median(seconds[raw_name] / seconds[name] for seconds in rounds)
        for label, share_of in ((raw_name, "1"), (name, f"{ratio:.2f}")):
            median = statistics.median(seconds[label] for seconds in rounds)
            print(f"| {label} | {median:.2f} | {size / median / 1e9:.2f} | {share_of} |")


if __name__ == "__main__":
    main()
