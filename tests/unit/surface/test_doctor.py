from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from llmtrain import doctor
from llmtrain.cli import main
from llmtrain.doctor import Finding, Report, examine


def test_a_machine_is_examined_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    names = {finding["name"] for finding in found["findings"]}
    assert {"versions", "device", "precision", "C++ compiler", "memory", "disk", "2 ranks, gloo"} <= names
    assert found["trainable"], found
    assert status == 0


def test_two_ranks_that_can_not_meet_are_told_with_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def in_use(device: str) -> tuple[list[int | None], list[str]]:
        tried.append(device)
        return [1, None], ["RuntimeError: the port is in use", "a last word"]

    monkeypatch.setattr(doctor, "_two_ranks", in_use)
    assert "no answer in" in doctor._reduce_over("cpu").text
    assert tried == ["cpu", "cpu"], "a port that was taken in between is no verdict"
    monkeypatch.setattr(doctor, "_two_ranks", lambda device: ([0, -6], ["ImportError: no gloo", "bye"]))
    found = doctor._reduce_over("cpu")
    assert (found.state, found.text) == ("bad", "the ranks ended with 0 and -6: ImportError: no gloo")


def test_a_stale_build_lock_is_found_with_age_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    an_hour_ago = time.time() - 3600
    os.utime(lock, (an_hour_ago, an_hour_ago))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (finding,) = doctor._stale_locks()
    assert finding.state == "note"
    assert f"{lock} is 1:00:0" in finding.text
    assert finding.text.endswith(f"rm {lock}")


def test_what_deepspeed_left_in_memory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "deepspeed_allreduce_buffer_0").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    (finding,) = doctor._leftovers()
    assert finding.state == "note"
    assert "1 files left by DeepSpeed hold" in finding.text
    (tmp_path / "deepspeed_allreduce_buffer_0").unlink()
    assert doctor._leftovers()[0].state == "good"


def test_a_machine_without_a_compiler_can_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (compiler,) = [finding for finding in doctor._ops() if finding.name == "C++ compiler"]
    assert compiler.state == "note"
    assert "not needed" in compiler.text


def test_the_op_for_nvme_is_found_or_its_build_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def told() -> str:
        return next(finding.text for finding in doctor._ops() if finding.name == "async_io")

    assert "NVMe offload: not built; if you want it: python -m llmtrain.engine.nvme" in told()
    (tmp_path / "async_io").mkdir()
    (tmp_path / "async_io" / "async_io.so").touch()
    assert told() == "NVMe offload: built"


def test_one_broken_library_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise ImportError("libcuda.so.1: cannot open")

    monkeypatch.setattr(doctor, "_devices", broken)
    monkeypatch.setattr(doctor, "_all_reduce", list)
    report = examine()
    assert not report.trainable
    assert "ImportError: libcuda.so.1: cannot open" in report.as_text()
    assert any(finding.name == "memory" for finding in report.findings)


def test_the_verdict_follows_the_findings() -> None:
    assert Report((Finding("a", "good", ""), Finding("b", "note", ""))).as_text().endswith("can train")
    assert not Report((Finding("a", "bad", "x"),)).trainable
