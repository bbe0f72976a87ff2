from __future__ import annotations

import errno
import io
import re
from typing import Any

import pytest

from llmtrain.report.progress import (
    LiveProgress,
    Pace,
    PlainProgress,
    duration,
    open_byte_progress,
    open_progress,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(step: int, **changes: Any) -> dict[str, Any]:
    values = {"step": step, "tokens": step * 100, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "step_s": 2.0}
    more = {"tokens_per_s": 50.0, "mfu": None, "memory_bytes": 2**30, "skipped": False}
    return values | more | changes


def test_plain_lines_come_when_due_and_at_both_ends() -> None:
    out = io.StringIO()
    shown = PlainProgress(steps=12, start=0, every=5, stream=out)
    for step in range(1, 13):
        shown.step(record(step))
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 1/12", "step 5/12", "step 10/12", "step 12/12"]
    for part in (
        "loss 2.5000",
        "lr 1.00e-03",
        "grad norm 0.500",
        "tokens/s 50",
        "memory 1.00 GiB",
        "left 0:04",
    ):
        assert part in lines[2]


def test_a_skipped_step_is_always_shown() -> None:
    out = io.StringIO()
    PlainProgress(steps=12, start=0, every=5, stream=out).step(
        record(3, skipped=True, grad_norm=float("inf"))
    )
    assert "skipped not finite, weights untouched" in out.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(open_progress(10, 0, 1, io.StringIO()), PlainProgress)


def test_a_terminal_gets_a_live_display_that_shows_the_same() -> None:
    out = Terminal()
    shown = open_progress(10, 0, 1, out)
    assert isinstance(shown, LiveProgress)
    shown.step(record(1))
    shown.step(record(2))
    shown.note("a note [with brackets]")
    shown.close()
    for part in ("step 2/10", "2.5000", "tokens/s", "left", "a note [with brackets]"):
        assert part in out.getvalue()


def test_on_a_terminal_the_losses_stay_as_lines_above_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    shown = open_progress(12, 0, 5, out)
    for step in range(1, 13):
        shown.step(record(step, loss=step / 100))
    shown.close()
    lines = re.findall(r"step (\d+)/12 · loss ([\d.]+) · ", out.getvalue())
    assert lines == [("1", "0.0100"), ("5", "0.0500"), ("10", "0.1000"), ("12", "0.1200")]


def test_time_left_ignores_the_first_step_which_warms_up() -> None:
    pace = Pace(steps=10, start=4)
    pace.add(record(5, step_s=60.0))
    assert pace.left(5) == "-:--"
    pace.add(record(6))
    assert pace.left(6) == "0:08"
    assert pace.tokens_per_s == 50.0


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert [duration(days * 86_400) for days in (1.9, 14.5)] == ["45:36:00", "14.5 days"]


def test_work_in_bytes_tells_rate_time_left_and_drops_in_a_line_now_and_then(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("llmtrain.report.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    shown = open_byte_progress(out)
    for second in range(100):
        now[0] = 100.0 + second
        shown.tell("tokenizing", second * 2_000_000, 400_000_000, second // 20)
    assert out.getvalue().splitlines() == [
        "tokenizing: 60.0 of 400.0 MB · 2.00 MB/s · 2:50 left · 1 left out",
        "tokenizing: 120.0 of 400.0 MB · 2.00 MB/s · 2:20 left · 3 left out",
        "tokenizing: 180.0 of 400.0 MB · 2.00 MB/s · 1:50 left · 4 left out",
    ]
    shown.tell("writing shards", 5, 0)
    now[0] += 31
    shown.tell("writing shards", 31_000_005, 0)
    shown.close()
    assert out.getvalue().splitlines()[-1] == "writing shards: 31.0 MB · 1.00 MB/s"


def test_a_terminal_shows_the_work_at_hand_and_nothing_of_what_is_done(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    shown = open_byte_progress(out)
    shown.tell("training the tokenizer", 3, 10)
    shown.tell("tokenizing", 5_000_000, 10_000_000, 1234)
    out.truncate(0)
    shown.bar.refresh()
    shown.close()
    assert "5.0/10.0 MB" in out.getvalue() and "1,234 left out" in out.getvalue()
    assert "training the tokenizer" not in out.getvalue()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_takes_nothing_ends_no_run() -> None:
    PlainProgress(10, 0, 1, FullDisk()).note("nobody reads this")
