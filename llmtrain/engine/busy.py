"""How long a rank works in a step. The steps themselves tell nothing: all ranks wait for the slowest.

What is timed is what a rank does alone: reading its rows, and its forward passes, in which no other rank is
waited for. Backward passes and updates are mixed with the exchange of gradients. A forward pass at ZeRO-3
gathers weights in between, and that is taken off. On a GPU the marks are events in its stream; they are read
after the step's loss is, so nothing waits for them.
"""

from __future__ import annotations

import time
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

    def begin(self) -> None:
        """A step begins; what was timed before (in an evaluation) counts for nothing."""
        self._spans.clear()

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
