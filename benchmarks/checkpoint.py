"""How fast checkpoints are saved and loaded, against the same disk used as plainly as possible.

    python benchmarks/checkpoint.py [--folder DIR] [--gigabytes 0.5] [--rounds 6] [--ranks 2] [--record]

Each round does all of it in an order that turns, so that what else the machine does hits it alike:

- a raw write and sync of as many bytes from memory, one file per rank, in threads;
- a save that is waited for;
- a save behind the loop: its stall (until the steps may go on) and the whole of it (until the commit). Then,
  of its files and from outside the page cache, a raw read, and a load without and with verification (every
  hash, then every slice as a rank of the same world reads it).

Each begins in an empty folder: a virtual disk that takes two gigabytes at once may take a third much more
slowly. A raw copy in memory is the least that a stall can be. Medians; a ratio is the median of each round's
own. One save before the first round pays for the memory of the copies.

Goals: a save takes at most 1 / 0.8 of the raw write; the stall is at most 3 % of training at a save every 100
steps, which depends on the step and is said so; verification at most doubles a load.
"""

from __future__ import annotations

import argparse
import hashlib
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
import xxhash
from record import machine, publish

from llmtrain.checkpoint import Checkpoint, CheckpointFacts, SaveEnd, Saver, newest
from llmtrain.checkpoint.manifest import rank_file, step_folders
from llmtrain.engine.seam import KINDS, EvalResult, Slice, SliceReader, StepResult

PIECE = 8 << 20
WRITE_GOAL, STALL_GOAL, LOAD_GOAL = 0.8, 0.03, 2.0
SAVES = ("save, waited for", "save, behind the loop")


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


def raw_copy(engine: _StateEngine, copies: list[torch.Tensor]) -> None:
    for copy, tensor in zip(copies, engine.tensors.values(), strict=True):
        copy.copy_(tensor)


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

    def round(self, savers: list[Saver], number: int) -> dict[str, float]:
        """Seconds of everything, once."""
        engines, raw = self.engines, self.folder / "raw"
        copies = [[torch.zeros_like(tensor) for tensor in engine.tensors.values()] for engine in engines]
        seconds: dict[str, float] = {}

        def timed(name: str, work: Callable[[int], object]) -> None:
            seconds[name] = on_all(len(engines), work)

        def write() -> None:
            raw.mkdir()
            timed("raw write", lambda rank: raw_write(raw / str(rank), engines[rank]))
            shutil.rmtree(raw)

        def wait() -> None:
            seconds[SAVES[0]] = self.save(savers, wait=True).total_s
            self.clear()

        def behind() -> None:
            end = self.save(savers, wait=False)
            seconds[SAVES[1]], seconds["stall of it"] = end.total_s, end.stall_s
            assert end.folder is not None
            files = [end.folder / rank_file(rank) for rank in range(len(engines))]
            for read in turned(
                [
                    lambda: timed("raw read", lambda rank: raw_read(files[rank])),
                    lambda: timed("load, unverified", lambda rank: load(self.folder, engines[rank], False)),
                    lambda: timed("load, verified", lambda rank: load(self.folder, engines[rank], True)),
                ],
                number,
            ):
                leave_cache(self.folder)
                read()
            self.clear()

        timed("raw copy", lambda rank: raw_copy(engines[rank], copies[rank]))
        for work in turned([write, wait, behind], number):
            work()
        return seconds


def turned(turns: list[Callable[[], None]], number: int) -> list[Callable[[], None]]:
    """Round `number`'s order, so that each is first, second and last equally often."""
    number %= len(turns)
    return turns[number:] + turns[:number]


def ratio(rounds: list[dict[str, float]], of: str, to: str) -> float:
    """The median over rounds of `of` ÷ `to`."""
    return statistics.median(seconds[of] / seconds[to] for seconds in rounds)


def table(size: int, rounds: list[dict[str, float]]) -> str:
    lines = ["| what | median s | GB/s | rate of raw |", "|---|---|---|---|"]
    for raw, names in (
        ("raw write", SAVES),
        ("raw copy", ["stall of it"]),
        ("raw read", ["load, unverified", "load, verified"]),
    ):
        for name in (raw, *names):
            median = statistics.median(seconds[name] for seconds in rounds)
            rate = ratio(rounds, raw, name)
            lines.append(f"| {name} | {median:.2f} | {size / median / 1e9:.2f} | {rate:.2f} |")
    return "\n".join(lines)


def verdict(rounds: list[dict[str, float]]) -> str:
    """Which goals of the module's docstring were met, and by how much."""
    rates = {name: ratio(rounds, "raw write", name) for name in SAVES}
    least, told = min(rates.values()), "; ".join(f"{name}: {rate:.2f}" for name, rate in rates.items())
    stall = statistics.median(seconds["stall of it"] for seconds in rounds)
    copies = ratio(rounds, "stall of it", "raw copy")
    slower = ratio(rounds, "load, verified", "load, unverified")
    return "\n".join(
        [
            f"Goal (total >= {WRITE_GOAL} of the raw write rate): {met(least >= WRITE_GOAL)} ({told})",
            f"Goal (stall <= {STALL_GOAL:.0%} of training at one save per 100 steps): met when a step takes "
            f"{stall / (100 * STALL_GOAL):.3f} s or more; {stall / 100:.2%} when it takes 1 s. "
            f"The stall is {copies:.2f} x a plain copy in memory",
            f"Goal (verified load <= {LOAD_GOAL:g} x unverified): {met(slower <= LOAD_GOAL)} ({slower:.2f})",
        ]
    )


def hash_rates() -> str:
    """What a core hashes, with the hash of the files and with the one they had in format 1."""
    data = os.urandom(64 << 20)
    rates = []
    for name, make in (("XXH3-128", xxhash.xxh3_128), ("sha256", hashlib.sha256)):
        began = time.thread_time()
        make(data)
        rates.append(f"{name} {len(data) / (time.thread_time() - began) / 1e9:.1f} GB/s")
    return f"A core hashes: {', '.join(rates)}."


def met(yes: bool) -> str:
    return "met" if yes else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="add it to benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.ranks, int(options.gigabytes * 1e9))
        extra = bench.memory()
        savers = bench.savers()
        bench.save(savers, wait=False)
        bench.clear()
        rounds = [bench.round(savers, number) for number in range(options.rounds)]
    memory = ", ".join(
        f"{name} {held / 1e9:.2f} GB ({held / bench.size:.2f} of the state)" for name, held in extra.items()
    )
    body = (
        f"{machine()}\n\n{bench.size / 1e9:.2f} GB of state on {options.ranks} ranks (threads), "
        f"{options.rounds} rounds\n\n{table(bench.size, rounds)}\n\n"
        f"{verdict(rounds)}\n\n{hash_rates()}\nMost memory that a save adds: {memory}."
    )
    command = f"python benchmarks/checkpoint.py --gigabytes {options.gigabytes} --rounds {options.rounds}"
    publish("Saving and loading", f"{command} --ranks {options.ranks}", body, options.record)


if __name__ == "__main__":
    main()
