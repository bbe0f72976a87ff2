"""A mistyped path is answered at once with what lies near it: no verb asks the Hub for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from small_runs import write_run

from llmtrain.cli import main
from llmtrain.config import hub_reach
from llmtrain.config.schema import ModelSection
from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model.build import hf_config
from llmtrain.model.weights import WeightFiles
from llmtrain.plan.prepared import prepare
from llmtrain.report.planned import planned


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, and a machine without any network: a name that is looked up ends the test."""

    def asked(*address: object, **_: object) -> None:
        raise AssertionError(f"{address} was looked up")

    for name in ("demo", "tuned"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "eval runs/dmeo --data data",
        "generate runs/dmeo hello",
        "export runs/dmeo out",
        "checkpoint show runs/dmeo",
        "checkpoint ls runs/dmeo",
        "checkpoint verify runs/dmeo",
        "checkpoint prune runs/dmeo --keep 1",
        "checkpoint export runs/dmeo out --format dcp",
    ],
)
def test_each_verb_names_the_runs_that_are_there(
    here: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "error: runs/dmeo does not exist: no such file or folder (seen from " in said
    assert "did you mean 'runs/demo'?" in said and "; runs here: runs/demo, runs/tuned\n" in said


@pytest.mark.parametrize("field", ["model.source", "model.tokenizer"])
def test_a_run_whose_model_is_a_missing_folder_is_refused_before_torch(
    here: Path, own_dataset: Path, field: str
) -> None:
    run = write_run(here, own_dataset)
    content = yaml.safe_load(run.read_text())
    content["model"] = {"source": "runs/tunde"} if field == "model.source" else {
        **content["model"], "tokenizer": "runs/tunde"
    }  # fmt: skip
    run.write_text(yaml.safe_dump(content))
    for act in (prepare, planned):
        with pytest.raises(ConfigError, match=rf"{field} = 'runs/tunde' \(\S+:\d+\): no such file") as caught:
            act(str(run), [], 1, "cpu")
        assert "did you mean 'runs/tuned'?" in str(caught.value)


def test_weights_and_a_configuration_are_not_asked_of_the_hub_either(here: Path) -> None:
    with pytest.raises(CheckpointError, match="model.source './nosuch': no such file or folder"):
        WeightFiles("./nosuch")
    with pytest.raises(ConfigError, match="model.source = 'runs/nosuch' .*no such file or folder"):
        hf_config(ModelSection(source="runs/nosuch"), 97)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    hub_reach.settle_reach.cache_clear()
    for _ in range(2):
        hub_reach.settle_reach()
    said = capsys.readouterr().err
    assert said.count("warning: 127.0.0.1 can't be reached (") == 1
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    os.environ.pop("HF_HUB_OFFLINE")  # which it has set for the processes it might start
    hub_reach.settle_reach.cache_clear()
