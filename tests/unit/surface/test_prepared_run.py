from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import SHAPE, write_run

from llmtrain.errors import ConfigError, DataError
from llmtrain.plan.prepared import prepare
from llmtrain.report.tensorboard import check_installed


def test_a_good_run_is_planned_and_its_data_open(tmp_path: Path, own_dataset: Path) -> None:
    prepared = prepare(write_run(tmp_path, own_dataset), ["batch.rows=8"], 2, "cpu")
    assert prepared.plan.batch.dp == 2
    assert prepared.batches.at(0).count == 8
    assert prepared.evaluation is not None
    assert prepared.evaluation.count == 5
    assert not (tmp_path / "run").exists()


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
