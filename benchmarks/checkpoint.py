"""How fast checkpoints are saved and loaded, against the same disk used as plainly as possible.

    python benchmarks/checkpoint.py [--folder DIR] [--gigabytes 0.5] [--rounds 5] [--ranks 2] [--record]

Each round does all of it, so that what else the machine does hits it alike: a raw write and sync of as many
bytes from memory (one file per rank, in threads); a save that is waited for; a save behind the loop, with its
stall (until the steps may go on) and its whole time (until the commit); a raw read; a load without and with
verification (every hash, then every slice as a rank of the same world reads it). Files leave the page cache
before they are read. Medians; a ratio is the median of each round's own. One save before the first round pays
for the memory of the copies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from record import machine, publish

from llmtrain.checkpoint import Checkpoint, CheckpointFacts, SaveEnd, Saver, newest
from llmtrain.checkpoint.manifest import step_folders
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
    """A share of tensors of up to 4 M elements with both moments, as a rank of ZeRO-1 holds them."""

    def __init__(self, comm: _ThreadComm, share_bytes: int):
        self.comm = comm
        self.length = min(4 << 20, share_bytes // (4 * len(KINDS)))
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


def load(folder: Path, engine: _StateEngine, verify: bool) -> None:
    found = newest(folder, comm=engine.comm) if verify else Checkpoint(step_folders(folder)[0])
    assert found is not None
    with found.reader() as reader:
        engine.load(reader, found.scalars)


def facts(step: int, ranks: int) -> CheckpointFacts:
    return CheckpointFacts(
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


def resident(peak: bool) -> int:
    """Bytes of main memory that this process holds, or held at most since `forget_peak`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(wanted)) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def saved(savers: list[Saver], step: int, wait: bool) -> None:
    def one(rank: int) -> None:
        savers[rank].save(step, step, wait)
        savers[rank].finish()

    on_all(len(savers), one)


class Bench:
    """The ranks, and what each round timed: seconds by name, bytes of memory by name."""

    def __init__(self, folder: Path, ranks: int, size: int):
        self.folder = folder
        self.ends: list[SaveEnd] = []
        values: list[object] = [None] * ranks
        meeting = threading.Barrier(ranks)
        self.engines = [
            _StateEngine(_ThreadComm(rank, ranks, values, meeting), size // ranks) for rank in range(ranks)
        ]
        self.size = sum(tensor.nbytes for engine in self.engines for tensor in engine.tensors.values())
        self.step = 0

    def savers(self) -> list[Saver]:
        """One for each rank, with no copy yet."""
        return [
            Saver(
                engine,
                self.folder,
                99,  # what is removed is removed outside the clock
                lambda step, tokens: facts(step, len(self.engines)),
                self.ends.append if rank == 0 else lambda end: None,
            )
            for rank, engine in enumerate(self.engines)
        ]

    def save(self, savers: list[Saver], wait: bool) -> SaveEnd:
        """The next step, saved by all ranks; returns when it is committed."""
        self.step += 1
        saved(savers, self.step, wait)
        end = self.ends.pop()
        assert not end.why, end.why
        return end

    def memory(self) -> dict[str, int]:
        """The most that a save adds to what the process holds."""
        extra = {}
        for name, wait in (("waited for", True), ("behind the loop", False)):
            before = resident(peak=False)
            forget_peak()
            self.save(self.savers(), wait)
            extra[name] = resident(peak=True) - before
            self.clear()
        return extra

    def clear(self) -> None:
        """Removes every checkpoint."""
        shutil.rmtree(self.folder / "checkpoints")

    def round(self, savers: list[Saver]) -> dict[str, float]:
        """Seconds of everything, once."""
        ranks, raw = len(self.engines), self.folder / "raw"
        raw.mkdir()
        seconds = {"raw write": on_all(ranks, lambda rank: raw_write(raw / str(rank), self.engines[rank]))}
        seconds["save, waited for"] = self.save(savers, wait=True).total_s
        end = self.save(savers, wait=False)
        seconds["save, behind the loop"] = end.total_s
        seconds["stall of it"] = end.stall_s
        leave_cache(self.folder)
        seconds["raw read"] = on_all(ranks, lambda rank: raw_read(raw / str(rank)))
        for name, verify in (("load, unverified", False), ("load, verified", True)):
            leave_cache(self.folder)
            seconds[name] = on_all(ranks, lambda rank: load(self.folder, self.engines[rank], verify))  # noqa: B023
        shutil.rmtree(raw)
        self.clear()
        return seconds


def table(size: int, rounds: list[dict[str, float]]) -> str:
    lines = ["| what | median s | GB/s | rate of raw |", "|---|---|---|---|"]
    for raw, names in (
        ("raw write", ["save, waited for", "save, behind the loop", "stall of it"]),
        ("raw read", ["load, unverified", "load, verified"]),
    ):
        for name in (raw, *names):
            median = statistics.median(seconds[name] for seconds in rounds)
            ratio = statistics.median(seconds[raw] / seconds[name] for seconds in rounds)
            lines.append(f"| {name} | {median:.2f} | {size / median / 1e9:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="add it to benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.ranks, int(options.gigabytes * 1e9))
        extra = bench.memory()
        savers = bench.savers()
        bench.save(savers, wait=False)
        bench.clear()
        rounds = [bench.round(savers) for _ in range(options.rounds)]
    stall = statistics.median(seconds["stall of it"] for seconds in rounds)
    memory = ", ".join(
        f"{name} {held / 1e9:.2f} GB ({held / bench.size:.2f} of the state)" for name, held in extra.items()
    )
    body = (
        f"{machine()}\n\n{bench.size / 1e9:.2f} GB of state on {options.ranks} ranks (threads), "
        f"{options.rounds} rounds\n\n{table(bench.size, rounds)}\n\n"
        f"At one save per 100 steps the stall is 3 % of training when a step takes {stall / 3:.3f} s, "
        f"and {stall:.2f} % when it takes 1 s.\nMost memory that a save adds: {memory}."
    )
    command = f"python benchmarks/checkpoint.py --gigabytes {options.gigabytes} --rounds {options.rounds}"
    publish("Saving and loading", f"{command} --ranks {options.ranks}", body, options.record)


if __name__ == "__main__":
    main()
