"""A whole run on a disk that is full for a while: what it says, what it leaves, and its true status."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from worlds import RankFailedError, Worlds

from llmtrain.checkpoint import newest
from llmtrain.report.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "surface"))
from small_runs import build_dataset, write_run  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("own"))


def start(worlds: Worlds, folder: Path, dataset: Path, refused: int, *overrides: str) -> list[Any]:
    run = write_run(folder, dataset, checkpoint={"every": 2, "keep": 9})
    program = "faults/rank_lost_saves.py:train"
    return worlds.run(program, 2, run=str(run), refused=refused, overrides=list(overrides))


def kept(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[-2:]) for path in (folder / "run").glob("checkpoints/step-*/COMMIT"))


def test_a_save_lost_on_the_way_is_an_event_and_training_goes_on(
    worlds: Worlds, tmp_path: Path, dataset: Path
) -> None:
    assert [result["status"] for result in start(worlds, tmp_path, dataset, refused=4)] == [0, 0]
    assert kept(tmp_path) == [2, 6] and sorted(os.listdir(tmp_path / "run" / "checkpoints")) == [
        "step-00000002",
        "step-00000006",
    ]
    saves = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "save_s" in record]
    assert [(save["step"], "save_lost" in save) for save in saves] == [(2, False), (4, True), (6, False)]
    assert saves[1]["save_lost"].startswith("saving step 4 failed: rank 1: no space in ")
    for rank in range(2):
        text = (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
        assert "ERROR" in text and saves[1]["save_lost"] in text


@pytest.mark.parametrize(
    ("refused", "overrides", "left"), [(6, [], [2, 4]), (2, ["checkpoint.on_failure=stop"], [])]
)
def test_a_lost_save_that_matters_is_not_status_0(
    worlds: Worlds, tmp_path: Path, dataset: Path, refused: int, overrides: list[str], left: list[int]
) -> None:
    with pytest.raises(RankFailedError, match="ended with 1") as caught:
        start(worlds, tmp_path, dataset, refused, *overrides)
    assert f"error: saving step {refused} failed: rank 1: no space in " in str(caught.value)
    assert kept(tmp_path) == left
    found = newest(tmp_path / "run")
    assert (found.step if found else None) == (left[-1] if left else None)
