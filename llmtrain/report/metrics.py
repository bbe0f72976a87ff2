"""metrics.jsonl: one JSON object per line, the truth about a run that every display is drawn from.

    {"step": 12, "time": "2026-11-30T09:15:02.117+01:00", "tokens": 98304, "loss": 5.1, "lr": 0.001, ...}
    {"step": 100, "time": "2026-11-30T09:16:40.502+01:00", "tokens": 819200, "eval_loss": 4.2, ...}

`time` is the wall clock when the line was written, in ISO 8601 with the machine's offset from UTC.
`step` counts finished optimizer steps: 1 is the first one, and an evaluation at 0 is of the model as it
started. `tokens` counts the trained tokens so far. A value that is not finite is written as null.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def wall_clock(seconds: float | None = None) -> str:
    """A time (default: now) as ISO 8601 has it, to the millisecond, with the offset from UTC."""
    now = time.time() if seconds is None else seconds
    return datetime.datetime.fromtimestamp(now).astimezone().isoformat(timespec="milliseconds")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; what a kill tore off at the end is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line)
            if record is not None:
                yield record


class MetricsFile:
    """Appends to metrics.jsonl. Lines are only appended, so a kill can tear only the last one.

    What the disk does not take (it is full) is owed, and written with the next record. Two threads use it:
    the one that trains, and the one that commits a checkpoint.
    """

    def __init__(self, path: Path, start: int):
        """Opens the file for a run that has `start` steps behind it; later lines are dropped by rename."""
        self.path = path
        kept = [record for record in read_metrics(path) if start > 0 and record["step"] <= start]
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".new")
        scratch.write_bytes(b"".join(_line(record) for record in kept))
        os.replace(scratch, path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._owed, self._lock = bytearray(), threading.Lock()

    def write(self, record: Mapping[str, Any]) -> str:
        """Appends one record, and when; empty, or why the disk does not take it now."""
        try:
            self._pay(_line({"step": record["step"], "time": wall_clock(), **record}))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _pay(self, more: bytes = b"") -> None:
        with self._lock:
            self._owed += more
            while self._owed:
                del self._owed[: os.write(self._file, self._owed)]  # a full disk may take a part of it

    def sync(self) -> None:
        """Makes every record survive a power cut; worth its time only at a checkpoint. Raises OSError."""
        self._pay()
        os.fsync(self._file)

    def close(self) -> int:
        """Closes the file; how many records it lacks because the disk did not take them."""
        with contextlib.suppress(OSError):
            self._pay()
        with contextlib.suppress(OSError):  # a network's file system may refuse only now
            os.close(self._file)
        return self._owed.count(b"\n")


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _line(record: Mapping[str, Any]) -> bytes:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(finite, allow_nan=False).encode() + b"\n"
