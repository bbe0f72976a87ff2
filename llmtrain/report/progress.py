"""How a run looks while it runs: plain lines, and on a terminal a live panel below them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

RECENT_STEPS = 20  # speed and time left are means over this many


class Progress(Protocol):
    """A display of one run; `record` is a line of metrics.jsonl."""

    def step(self, record: Mapping[str, Any]) -> None:
        """A step is done."""

    def note(self, text: str) -> None:
        """Something worth a line of its own happened."""

    def close(self) -> None:
        """The run has ended; the display lets go of the terminal."""


def open_progress(steps: int, start: int, every: int, stream: TextIO | None = None) -> Progress:
    """The display that fits `stream` (stdout): a line every `every` steps, on a terminal a panel too."""
    out = stream or sys.stdout
    if out.isatty():
        return LiveProgress(steps, start, every, out)
    return PlainProgress(steps, start, every, out)


class Silent:
    """The display of every rank but the first."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Has nothing to close."""


class Pace:
    """Speed and time left from the last few steps. The first step, which warms up, is left out."""

    def __init__(self, steps: int, start: int):
        self.steps = steps
        self.warm_after = start + 1
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)
        self.tokens = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes in one step's record."""
        trained = max(0, record["tokens"] - self.tokens) if self.tokens else 0  # a run may go back
        self.tokens = record["tokens"]
        if record["step"] > self.warm_after:
            self.recent.append((record["step_s"], trained))

    @property
    def tokens_per_s(self) -> float:
        """Trained tokens per second, 0 while unknown."""
        seconds = sum(step_s for step_s, _ in self.recent)
        return sum(tokens for _, tokens in self.recent) / seconds if seconds else 0.0

    def left(self, step: int) -> str:
        """Time left after `step`, as text."""
        if not self.recent:
            return "-:--"
        mean = sum(step_s for step_s, _ in self.recent) / len(self.recent)
        return duration(mean * (self.steps - step))


def duration(seconds: float) -> str:
    """`2:03`, `1:02:03`, or `14.5 days` from two days on."""
    if seconds >= 2 * 86_400:
        return f"{seconds / 86_400:.1f} days"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def gibibytes(count: float) -> str:
    """`1.50 GiB`, and in MiB what would round to little or nothing."""
    if 0 < count < 2**30 / 10:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**30:.2f} GiB"


def _shown(record: Mapping[str, Any], pace: Pace) -> dict[str, str]:
    """What both displays show of a step, in order."""
    mfu = record.get("mfu")
    shown = {
        "loss": f"{record['loss']:.4f}",
        "lr": f"{record['lr']:.2e}",
        "grad norm": f"{record['grad_norm']:.3f}",
        "tokens/s": f"{pace.tokens_per_s or record['tokens_per_s']:,.0f}",
        "memory": gibibytes(record["memory_bytes"]),
        "left": pace.left(record["step"]),
    }
    if mfu:
        shown["MFU"] = f"{mfu:.1%}"
    if record["skipped"]:
        why = "a spike" if record.get("spike") else "not finite"
        shown["skipped"] = f"{why}, weights untouched"
    return shown


class StepLines:
    """A line every `every` steps, for the first and the last one, and for one that was skipped."""

    def __init__(self, steps: int, start: int, every: int):
        self.pace = Pace(steps, start)
        self.steps, self.start, self.every = steps, start, every

    def line(self, record: Mapping[str, Any]) -> str:
        """What is said of a step, empty when nothing is."""
        self.pace.add(record)
        step = record["step"]
        if step % self.every and step not in (self.start + 1, self.steps) and not record["skipped"]:
            return ""
        facts = " · ".join(f"{name} {value}" for name, value in _shown(record, self.pace).items())
        return f"step {step}/{self.steps} · {facts}"


class PlainProgress:
    """Lines alone, for logs, pipes and batch systems."""

    def __init__(self, steps: int, start: int, every: int, stream: TextIO):
        self.lines, self.stream = StepLines(steps, start, every), stream

    def step(self, record: Mapping[str, Any]) -> None:
        """Prints the step's line when it has one."""
        if line := self.lines.line(record):
            self.note(line)

    def note(self, text: str) -> None:
        """Prints a line; a stream that takes none (its disk is full, its reader gone) ends no run."""
        with contextlib.suppress(OSError):
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Has nothing to close."""


class LiveProgress:
    """A bar and a table of the newest values, redrawn in place; lines and notes scroll above it."""

    def __init__(self, steps: int, start: int, every: int, stream: TextIO):
        from rich.console import Console
        from rich.live import Live

        self.lines, self.steps = StepLines(steps, start, every), steps
        self.started = time.monotonic()
        self.live = Live(console=Console(file=stream), refresh_per_second=4, transient=False)
        self.live.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """Prints the step's line when it has one, and redraws."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if line := self.lines.line(record):
            self.note(line)
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        elapsed = duration(time.monotonic() - self.started)
        bar = ProgressBar(total=self.steps, completed=record["step"])
        head.add_row(f"step {record['step']}/{self.steps}", bar, elapsed)
        shown = _shown(record, self.lines.pace).items()
        facts = [Text.assemble((f"{name} ", "dim"), value, no_wrap=True) for name, value in shown]
        self.live.update(Group(head, Columns(facts, padding=(0, 2))))

    def note(self, text: str) -> None:
        """Prints a line above the display."""
        from rich.text import Text

        self.live.console.print(Text(text))

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self.live.stop()


def open_byte_progress(stream: TextIO) -> ByteProgress | PlainByteProgress:
    """For work counted in bytes: a bar on a terminal, now and then a line elsewhere."""
    return ByteProgress(stream) if stream.isatty() else PlainByteProgress(stream)


class ByteProgress:
    """A bar for work that is counted in bytes, with its speed and the time left."""

    def __init__(self, stream: TextIO):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        size = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), *size, TextColumn("{task.fields[dropped]}"))
        self.bar = Progress(*columns, console=Console(file=stream), transient=True)
        self.what = ""
        self.task: Any = None
        self.bar.start()

    def tell(self, what: str, done: int, total: int, dropped: int = 0) -> None:
        """`done` bytes of `what` are done, of `total` (0: unknown); `dropped` documents were left out."""
        if what != self.what:
            if self.task is not None:
                self.bar.remove_task(self.task)  # it is done, and would go on to tell its time left
            self.what, self.task = what, self.bar.add_task(what, total=total or None, dropped="")
        shown = f"{dropped:,} left out" if dropped else ""
        self.bar.update(self.task, completed=done, total=total or None, dropped=shown)

    def close(self) -> None:
        """Takes the bar off the screen."""
        self.bar.stop()


class PlainByteProgress:
    """A line every `every` seconds at most, for logs and pipes: work that is done sooner prints none."""

    def __init__(self, stream: TextIO, every: float = 30.0):
        self.stream = stream
        self.every = every
        self.what = ""
        self.printed = self.began = time.monotonic()
        self.first = 0  # bytes that were done when `what` began

    def tell(self, what: str, done: int, total: int, dropped: int = 0) -> None:
        """`done` bytes of `what` are done, of `total` (0: unknown); `dropped` documents were left out."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.began, self.first = what, now, done
        if now - self.printed < self.every:
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        facts = [f"{what}: {done / 1e6:,.1f}" + (f" of {total / 1e6:,.1f} MB" if total else " MB")]
        facts.append(f"{rate / 1e6:.2f} MB/s")
        if total and rate:
            facts.append(f"{duration((total - done) / rate)} left")
        if dropped:
            facts.append(f"{dropped:,} left out")
        print(" · ".join(facts), file=self.stream, flush=True)

    def close(self) -> None:
        """Has nothing to close."""
