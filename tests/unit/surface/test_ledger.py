"""The ledger says what befell a run, and the account what its time went into."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from small_runs import write_run

from llmtrain import cli
from llmtrain.config.load import load_run
from llmtrain.errors import DataError, EngineError
from llmtrain.plan.plan import make_plan
from llmtrain.report.account import account
from llmtrain.report.ledger import Ledger, history, read_ledger
from llmtrain.report.metrics import MetricsFile
from llmtrain.report.run_folder import RunFolder
from llmtrain.report.run_log import RunLog, Speed

TOPOLOGY = {"world": 2, "pipeline": 1, "zero_stage": 1, "precision": "bf16"}


def trained(folder: RunFolder, start: int, last: int) -> None:
    """A start from step `start` that comes as far as `last`, each step 2 s long, and says no more."""
    Ledger(folder.ledger).start({"from_step": start, "topology": TOPOLOGY}, folder.metrics)
    metrics = MetricsFile(folder.metrics, start)
    for step in range(start + 1, last + 1):
        metrics.write({"step": step, "tokens": 10 * step, "loss": 1.5, "step_s": 2.0, "skipped": False})
    metrics.close()


@pytest.fixture
def killed_twice(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 7)
    trained(folder, 4, 9)
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 10, "tok')  # torn by the kill
    trained(folder, 8, 10)
    Ledger(folder.ledger).end("finished")
    return folder


def test_a_start_that_never_said_how_it_ended_was_killed(killed_twice: RunFolder) -> None:
    starts = read_ledger(killed_twice.ledger)["starts"]
    assert [start["ended"]["cause"] for start in starts] == ["killed", "killed", "finished"]
    assert [start["from_step"] for start in starts] == [0, 4, 8]
    assert [(start["lost_steps"], start["lost_s"]) for start in starts] == [(0, 0.0), (3, 6.0), (1, 2.0)]


def test_the_end_of_a_killed_start_is_its_last_sign_of_life(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 3)
    began = read_ledger(folder.ledger)["starts"][0]["at"]
    os.utime(folder.metrics, (began + 100, began + 100))
    trained(folder, 2, 3)
    assert read_ledger(folder.ledger)["starts"][0]["ended"]["at"] == pytest.approx(began + 100, abs=0.01)


def test_the_account_adds_up(killed_twice: RunFolder) -> None:
    content = read_ledger(killed_twice.ledger)
    for start, (began, ended) in zip(content["starts"], [(0, 15), (115, 120), (1120, 1140)], strict=True):
        start["at"], start["ended"]["at"] = began, ended
    content["starts"][1]["changes"] = [
        {"field": "optimizer.lr", "before": 0.003, "now": 0.0001, "origin": "command line"}
    ]
    killed_twice.ledger.write_text(json.dumps(content))
    with killed_twice.metrics.open("a") as file:
        for save in (
            {"save_s": 2.0, "stall_s": 0.1},
            {"save_lost": "no space", "stall_s": 0.2},
            {"stall_s": 0.1},
        ):
            file.write(json.dumps({"step": 10, "tokens": 100, **save}) + "\n")
    found = account(killed_twice.path)
    assert (found.step, found.tokens, found.useful_s, found.wall_s) == (10, 100, 20.0, pytest.approx(40))
    assert (found.lost_steps, found.lost_s) == (4, 8.0)
    assert found.goodput == pytest.approx(0.5)
    assert found.line() == (
        "10 steps in 0:40, with 18:20 between starts, goodput 50.0%: 2 restarts, 0 rollbacks, "
        "4 steps lost (0:08), 0 skipped, 0 passed over, 2 saves that held it up for 0.4 s"
    )
    assert "  optimizer.lr 0.003 → 0.0001 (command line)" in found.as_text().splitlines()


def test_a_start_that_never_ended_counts_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 3)
    began = read_ledger(folder.ledger)["starts"][0]["at"]
    os.utime(folder.metrics, (began + 8, began + 8))
    assert account(folder.path).wall_s == pytest.approx(8, abs=0.01)
    assert account(folder.path).goodput == pytest.approx(0.75, abs=0.01)


def test_report_prints_starts_and_rollbacks(
    killed_twice: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    back = {"from_step": 10, "to_step": 8, "updates": 8, "passed_over": [10, 10], "why": "a spike"}
    Ledger(killed_twice.ledger).went_back(back, killed_twice.metrics)
    assert cli.main(["report", str(killed_twice.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "start 2: from step 4 on 2 ranks (1 stage, ZeRO-1, bf16), 3 steps lost" in lines
    assert lines.count("  ended: killed") == 2
    assert lines[-1] == "rollback from step 10 to 8, passing over 10 to 10: a spike"
    assert cli.main(["report", str(killed_twice.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rollbacks"][0]["lost_steps"] == 2 and told["goodput"] > 0


def test_history_is_what_later_steps_are_judged_by(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 130)
    metrics = MetricsFile(folder.metrics, 130)
    metrics.write({"step": 130, "tokens": 1, "eval_loss": 9.0})
    for step in (131, 132):
        metrics.write({"step": step, "tokens": 1, "loss": float("nan"), "step_s": 1.0, "skipped": True})
    metrics.write({"step": 133, "tokens": 1, "passed_over": True})
    metrics.close()
    known = history(folder.metrics, read_ledger(folder.ledger))
    assert known == {"losses": [1.5] * 128, "skipped": 2, "passed_over": [], "went_back_to": []}


def test_a_run_from_the_start_passes_over_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 3)
    back = {"from_step": 3, "to_step": 2, "updates": 2, "passed_over": [3, 3], "why": "a spike"}
    Ledger(folder.ledger).went_back(back, folder.metrics)
    trained(folder, 0, 3)
    assert read_ledger(folder.ledger)["rollbacks"] == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "llmtrain-ledger", "version": 2}'])
def test_a_damaged_ledger_is_named_and_not_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(content)
    with pytest.raises(
        DataError, match=r"ledger.json can't be read .*which steps the run passes over: restore"
    ):
        read_ledger(path)


def test_a_start_that_hung_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trained(folder, 0, 7)
    told = "no progress for 61 s: rank 1 waits in barrier of step 8"
    Ledger(folder.ledger).start({"from_step": 4, "topology": TOPOLOGY}, folder.metrics, told)
    assert read_ledger(folder.ledger)["starts"][0]["ended"]["cause"] == f"error: {told}"


def test_a_ledger_that_cannot_be_written_stops_a_rollback_and_not_the_end(
    killed_twice: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(load_run(write_run(killed_twice.path.parent, killed_twice.path)), 1, "cpu")
    log = RunLog(plan, killed_twice, 0, 0, speed=Speed(None, None), eval_bytes=None, writes=True, about={})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llmtrain.report.ledger.os.fsync", full)
    back = {"from_step": 10, "to_step": 8, "updates": 8, "passed_over": [10, 10], "why": "a spike"}
    said = r"ledger.json can't be written \(No space left on device\): make room, then"
    with pytest.raises(EngineError, match=said):
        log.went_back(back, 80)
    with pytest.raises(EngineError, match=r"metrics.jsonl can't be written"):
        log.sync()
    log.close("finished")
    assert re.search(f"warning: .*{said}", "".join(capsys.readouterr()))
    assert read_ledger(killed_twice.ledger)["starts"][-1]["ended"] is None, "the next start calls it killed"


def test_a_folder_without_a_ledger_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "has no ledger.json: give the folder of a run that was started" in capsys.readouterr().err
