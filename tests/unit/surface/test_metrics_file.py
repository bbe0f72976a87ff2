from __future__ import annotations

import datetime
import errno
import json
import os
import time
from pathlib import Path

import pytest

from llmtrain.report.metrics import MetricsFile, read_metrics


def write_steps(path: Path, start: int, steps: range) -> None:
    metrics = MetricsFile(path, start)
    for step in steps:
        metrics.write({"step": step, "loss": 1.0 / step})
    metrics.close()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 8))
    write_steps(path, 4, range(5, 10))  # killed after step 7, the last checkpoint was that of step 4
    assert steps_in(path) == list(range(1, 10))


def test_a_second_resume_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for start, last in ((0, 5), (4, 7), (4, 6), (6, 8)):
        write_steps(path, start, range(start + 1, last + 1))
    assert steps_in(path) == list(range(1, 9))


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    write_steps(path, 3, range(4, 5))
    assert steps_in(path) == [1, 2, 4]


def test_a_run_from_the_start_keeps_nothing_old(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 0, range(1, 4))
    write_steps(path, 0, range(1, 2))
    assert steps_in(path) == [1]


def test_evaluations_up_to_the_checkpoint_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for record in ({"step": 0, "eval_loss": 9.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 8.0}):
        metrics.write(record)
    metrics.write({"step": 3, "eval_loss": 7.0})
    metrics.close()
    MetricsFile(path, 2).close()
    assert [record.get("eval_loss") for record in read_metrics(path)] == [9.0, None, 8.0]


def test_what_is_not_finite_is_null_and_the_line_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "skipped": True})
    metrics.close()
    record = json.loads(path.read_text())
    written = datetime.datetime.fromisoformat(record.pop("time"))
    assert record == {"step": 1, "loss": None, "grad_norm": None, "skipped": True}
    assert written.utcoffset() is not None and abs(written.timestamp() - time.time()) < 600


def test_what_a_full_disk_does_not_take_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, write = [200], os.write

    def on_a_small_disk(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(file, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr("llmtrain.report.metrics.os.write", on_a_small_disk)
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    told = [metrics.write({"step": step, "loss": 1.0 / step}) for step in range(1, 21)]
    assert told[0] == "" and told[-1] == "No space left on device"
    with pytest.raises(OSError, match="No space left"):
        metrics.sync()  # so no checkpoint counts whose steps are not on disk
    seen = list(read_metrics(path))
    assert 0 < len(seen) < 20 and not path.read_bytes().endswith(b"\n"), "a line is cut where the room ended"
    room[0] = 10_000
    assert metrics.write({"step": 21, "loss": 0.0}) == ""
    assert steps_in(path) == list(range(1, 22))
    room[0] = 0
    metrics.write({"step": 22})
    metrics.write({"step": 23})
    assert metrics.close() == 2
