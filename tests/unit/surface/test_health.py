"""What is a spike, and what is not; and ranks that were not started alike."""

from __future__ import annotations

import math
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import AloneComm

import llmtrain
from llmtrain.errors import EngineError
from llmtrain.health import Spikes
from llmtrain.job import check_agreement
from llmtrain.report.environment import source_digest
from llmtrain.report.run_folder import RunFolder


def judged(losses: list[float]) -> list[bool]:
    spikes, found = Spikes(), []
    for loss in losses:
        found.append(loss > spikes.limit())
        spikes.add(loss)
    return found


def noisy(count: int, level: float = 3.0) -> list[float]:
    draw = random.Random(5)
    return [level + draw.gauss(0, 0.01) for _ in range(count)]


def test_one_nan_changes_no_judgement() -> None:
    losses = noisy(400)
    plain = judged(losses)
    assert not any(plain)
    losses[200] = math.nan
    assert not any(judged(losses)), "OLMo-core's mean and deviation skip 129 steps here"


def test_spikes_do_not_hide_each_other() -> None:
    losses = noisy(200)
    for step in (100, 101, 102, 103):
        losses[step] = 9.0
    assert [step for step, spike in enumerate(judged(losses)) if spike] == [100, 101, 102, 103]


def test_a_falling_loss_and_small_rises_are_no_spikes() -> None:
    falling = [8.0 * 0.99**step for step in range(300)]
    assert not any(judged(falling + [falling[-1] * 1.05] * 3))
    assert not any(judged([2.0] * 100 + [2.1]))


def test_a_new_level_is_accepted_in_the_end() -> None:
    found = judged(noisy(128) + noisy(200, level=4.0))
    assert found[128] and not any(found[-100:])


def test_the_first_steps_are_never_judged() -> None:
    assert not any(judged([2.0] * 31 + [90.0]))


def job(**changes: Any) -> Any:
    run = {"seed": 1, "output_dir": "runs/a"} | {
        k: v for k, v in changes.items() if k in ("seed", "output_dir")
    }
    return SimpleNamespace(
        plan=SimpleNamespace(
            run=SimpleNamespace(model_dump=lambda mode: run),
            deepspeed={"zero_optimization": {"stage": changes.get("stage", 1)}},
        ),
        batches=SimpleNamespace(fingerprint=changes.get("dataset", "d" * 64)),
        folder=RunFolder(run["output_dir"]),
    )


def said(job: Any) -> Any:
    heard: list[Any] = []

    class Listening(AloneComm):
        def gather(self, value: object) -> list[object]:
            heard.append(value)
            return [value]

    check_agreement(Listening(), job)
    return heard[0]


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"seed": 2}, "run file or overrides)"),
        ({"output_dir": "runs/b"}, "run file or overrides, run folder)"),
        ({"dataset": "e" * 64}, "dataset)"),
        ({"stage": 2}, "DeepSpeed settings)"),
    ],
)
def test_a_rank_started_otherwise_is_named(changes: dict[str, Any], what: str) -> None:
    comm = AloneComm()
    comm.votes = [said(job()), said(job(**changes))]
    with pytest.raises(
        EngineError, match=f"rank 2 was started with another run than rank 0 \\({re.escape(what)}"
    ):
        check_agreement(comm, job())


def test_an_environment_that_changes_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = AloneComm()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    comm.votes = [said(job())]
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with pytest.raises(EngineError, match="rank 1 was started with .* rank 0 .environment.:"):
        check_agreement(comm, job())


def test_a_rank_with_other_packages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = AloneComm()
    monkeypatch.setattr("llmtrain.job.versions", lambda: {"torch": "2.9"})
    comm.votes = [said(job())]
    monkeypatch.undo()
    with pytest.raises(EngineError, match="rank 1 was started with .* rank 0 .versions.:"):
        check_agreement(comm, job())


def test_a_rank_with_other_code_of_the_same_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = AloneComm()
    monkeypatch.setattr("llmtrain.job.source_digest", lambda: "other")
    comm.votes = [said(job())]
    monkeypatch.undo()
    with pytest.raises(EngineError, match="rank 1 was started with .* rank 0 .code.:"):
        check_agreement(comm, job())


def test_the_code_is_every_module_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    package = Path(llmtrain.__file__).parent
    copy = Path(shutil.copytree(package, tmp_path / "llmtrain"))
    (copy / "notes.txt").write_text("not code")
    assert source_digest(copy) == source_digest() == source_digest(package)
    modules = sorted(copy.rglob("*.py"))
    found = {source_digest()}
    for path in (modules[0], copy / "engine" / "zero.py", modules[-1]):
        path.write_text(path.read_text() + "\n")
        found.add(source_digest(copy))
    (copy / "engine" / "zero.py").rename(copy / "engine" / "zeros.py")
    found.add(source_digest(copy))
    (copy / "more.py").touch()
    assert len(found | {source_digest(copy)}) == 6, "a change was not seen"
