from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import SHAPE, write_run

from llmtrain.errors import ConfigError, DataError
from llmtrain.plan.prepared import prepare
from llmtrain.report.planned import planned
from llmtrain.report.tensorboard import check_installed


def test_a_good_run_is_planned_and_its_data_open(tmp_path: Path, own_dataset: Path) -> None:
    prepared = prepare(write_run(tmp_path, own_dataset), ["batch.rows=8"], 2, "cpu")
    assert prepared.plan.batch.dp == 2
    assert prepared.batches.at(0).count == 8
    assert prepared.evaluation is not None
    assert prepared.evaluation.count == 5
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_in_another_world_goes_on_with_its_rows(tmp_path: Path, own_dataset: Path) -> None:
    run = write_run(tmp_path, own_dataset)
    with pytest.raises(ConfigError, match="8 rows can't be shared by 3 data-parallel ranks"):
        prepare(run, ["batch.rows=8"], 3, "cpu")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    with pytest.raises(ConfigError):  # a save that was killed is no checkpoint
        prepare(run, ["batch.rows=8"], 3, "cpu")
    (checkpoint / "COMMIT").touch()
    prepared = prepare(run, ["batch.rows=8"], 3, "cpu")
    assert (prepared.batches.at(0).count, prepared.plan.batch.places) == (8, 9)
    text = planned(str(run), ["batch.rows=8"], 3, "cpu").as_text()
    assert (
        "9 rows = micro 3 × accumulation 1 × 3 data-parallel ranks, 3 places each: 1 of 9 are empty" in text
    )


def test_epochs_are_steps_that_see_all_rows_so_often(tmp_path: Path, own_dataset: Path) -> None:
    """One source, a mixture, and a run that goes on; the plan says the same as the start."""
    run = write_run(tmp_path, own_dataset, schedule={"epochs": 2})
    prepared = prepare(run, [], 1, "cpu")
    rows = prepared.batches.rows_per_epoch
    assert prepared.plan.schedule.steps == -(-2 * rows // 4)
    report = planned(str(run), [], 1, "cpu")
    assert report.plan.schedule == prepared.plan.schedule
    assert re.search(r"run .* = 2\.0\d epochs", report.as_text())
    seen = np.concatenate([prepared.batches.at(step).row for step in range(prepared.plan.schedule.steps)])
    assert set(np.bincount(seen)) <= {2, 3} and len(np.bincount(seen)) == rows, "every row, twice at least"

    two = [{"path": str(own_dataset)}, {"path": str(own_dataset), "split": "valid", "weight": 3}]
    mixed = write_run(tmp_path, own_dataset, schedule={"epochs": 0.5}, data={"train": two, "seq_len": 32})
    prepared = prepare(mixed, [], 1, "cpu")
    assert sum(prepared.batches.rows_of_sources) > rows
    assert prepared.plan.schedule.steps == -(-sum(prepared.batches.rows_of_sources) // 8)

    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT").touch()
    assert prepare(mixed, [], 3, "cpu").plan.schedule == prepared.plan.schedule
    nowhere = write_run(tmp_path, tmp_path / "nowhere", schedule={"epochs": 2})
    with pytest.raises(DataError, match=r"schedule.epochs = 2 .*run.yaml:\d+\): how many steps .*nowhere"):
        planned(str(nowhere), [], 1, "cpu")


def model_folder(folder: Path, dataset: Path) -> Path:
    shutil.copytree(dataset / "tokenizer", folder)
    (folder / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 400}))
    return folder


def test_the_models_own_tokenizer_may_be_written_otherwise(tmp_path: Path, own_dataset: Path) -> None:
    folder = model_folder(tmp_path / "model", own_dataset)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    run = write_run(tmp_path, own_dataset, model={"source": str(folder)})
    assert prepare(run, [], 1, "cpu").plan.run.model.source == str(folder)


@pytest.mark.parametrize("field", ["source", "tokenizer"])
def test_another_tokenizer_than_the_datasets_is_refused(
    tmp_path: Path, own_dataset: Path, field: str
) -> None:
    folder = model_folder(tmp_path / "model", own_dataset)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    model = {"source": str(folder)} if field == "source" else {"config": SHAPE, "tokenizer": str(folder)}
    run = write_run(tmp_path, own_dataset, model=model)
    with pytest.raises(DataError, match=rf"model.{field} = .*run.yaml.*2 of 400 tokens differ.*source"):
        prepare(run, [], 1, "cpu")


def test_tensorboard_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_dataset: Path
) -> None:
    run = write_run(tmp_path, own_dataset)
    check_installed(prepare(run, [], 1, "cpu").plan)
    plan = prepare(run, ["log.tensorboard=true"], 1, "cpu").plan
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log.tensorboard = True \(command line\): .*pip install"):
        check_installed(plan)
