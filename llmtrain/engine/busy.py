"""How long a rank works in a step. The steps themselves tell nothing: all ranks wait for the slowest.

What is timed is what a rank does alone: reading its rows, and its forward passes, in which no other rank is
waited for. Backward passes and updates are mixed with the exchange of gradients. A forward pass at ZeRO-3
gathers weights in between, and that is taken off. On a GPU the marks are events in its stream; they are read
after the step's loss is, so nothing waits for them.

On a GPU a rank that waits for another shows it nowhere in Python: its stream waits in a collective, and
the host goes on until it wants a value or the queue is full, in whatever line that is. `behind` tells it
by events.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class BusyClock:
    """Adds up one step's spans of work."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[int, Any, Any]] = []  # sign, first mark, last mark
        self._working = False
        self._asked = 0
        self._ends: deque[Any] = deque(maxlen=256)  # events behind what was asked of the GPU, oldest first

    def asked(self) -> None:
        """The host has asked the device for all of a micro-batch, or of what follows the last one."""
        self._asked += 1
        if self._cuda:
            self._ends.append(self._mark())

    def behind(self) -> str:
        """What a GPU that has not done all it was asked for waits in, for the watchdog; else an empty string.

        A rank with an empty queue keeps the others waiting; of those with work in it, the one that did least.
        """
        late = 0
        for end in reversed(list(self._ends)):
            if end.query():
                break
            late += 1
        done = self._asked - late
        return f"waits in the GPU's queue behind micro-batch {done}" if late else ""

    def begin(self) -> None:
        """A step begins; what was timed before (in an evaluation) counts for nothing."""
        self._spans.clear()
        self._ends.clear()
        self._asked = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block is this rank's own work."""
        first, self._working = self._mark(), True
        try:
            yield
        finally:
            self._working = False
            self._spans.append((+1, first, self._mark()))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block may wait for other ranks: it is taken off the work around it, if it is in any."""
        first = self._mark() if self._working else None
        try:
            yield
        finally:
            if first is not None:
                self._spans.append((-1, first, self._mark()))

    def seconds(self) -> float:
        """The work of this step, which the device must have finished."""
        return sum(sign * self._between(first, last) for sign, first, last in self._spans)

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) / 1e3 if self._cuda else last - first
